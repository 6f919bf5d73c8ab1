"""Uploads of folders: the manifest is last, and what another upload left is gone."""

from __future__ import annotations

import uuid

import pytest

from plsc.errors import StorageError
from plsc.remote.folder import RemoteFolder
from plsc.remote.upload import upload_folder
from tests._support.s3 import fill, names


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "in").mkdir(parents=True)
    for name in ("a", "in/b", "manifest.json"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def remote():
    return RemoteFolder(f"memory://{uuid.uuid4().hex}/run")


def test_the_manifest_is_deleted_first_and_written_last(source, remote, monkeypatch):
    fill(remote.url, {"manifest.json": b"old", "a": b"old", "left": b"old"})
    done = []
    upload, delete = RemoteFolder.upload, RemoteFolder.delete

    def note_upload(self, path, name):
        done.append(name)
        upload(self, path, name)

    def note_delete(self, deleted):
        done.append(list(deleted))
        delete(self, done[-1])

    monkeypatch.setattr(RemoteFolder, "upload", note_upload)
    monkeypatch.setattr(RemoteFolder, "delete", note_delete)
    upload_folder(source, remote, last="manifest.json")
    assert done[0] == ["manifest.json", "left"]
    assert sorted(done[1:3]) == ["a", "in/b"]
    assert done[3:] == ["manifest.json"]
    assert names(remote.url) == ["a", "in/b", "manifest.json"]


def test_files_that_the_service_lost_are_found_before_the_manifest_is_written(source, remote, monkeypatch):
    upload = RemoteFolder.upload

    def lose(self, path, name):
        upload(self, path, name)
        if name == "in/b":
            self.delete([name])

    monkeypatch.setattr(RemoteFolder, "upload", lose)
    with pytest.raises(StorageError, match="in/b: found no such file after the upload, expected 4 bytes"):
        upload_folder(source, remote, last="manifest.json")
    assert names(remote.url) == ["a"]
