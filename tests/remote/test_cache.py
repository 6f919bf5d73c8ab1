"""The cache of remote folders: what is copied, what is deleted, and processes that share it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from plsc.errors import StorageError
from plsc.remote.cache import GIGABYTE, Cache
from plsc.remote.folder import RemoteFolder
from tests._support.ranks import ROOT
from tests._support.s3 import fill

KB = 1000


@pytest.fixture
def remote(tmp_path):
    """A function that makes a remote folder of {name: bytes}."""

    def make(files, name=None):
        url = f"file://{tmp_path}/remote/{name or uuid.uuid4().hex}"
        fill(url, files)
        return RemoteFolder(url)

    return make


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 10 * KB / GIGABYTE)


@pytest.fixture
def fetched(monkeypatch):
    """The names of the files that are fetched."""
    found, fetch = [], RemoteFolder.fetch

    def note(self, name, to, size):
        found.append(name)
        fetch(self, name, to, size)

    monkeypatch.setattr(RemoteFolder, "fetch", note)
    return found


def release():
    """Forget what this process uses, as its end would."""
    from plsc.remote import cache

    for handle in cache._USED.values():
        os.close(handle)
    cache._USED.clear()


def test_a_folder_is_copied_once(remote, cache, fetched):
    folder = remote({"a": b"1", "in/b": b"22"})
    local = cache.fetch(folder)
    assert ((local / "a").read_bytes(), (local / "in" / "b").read_bytes()) == (b"1", b"22")
    assert cache.fetch(folder) == local
    assert sorted(fetched) == ["a", "in/b"]


def test_only_what_is_wanted_is_copied(remote, cache, fetched):
    folder = remote({"a": b"1", "b": b"2"})
    cache.fetch(folder, lambda name: name == "a")
    local = cache.fetch(folder, lambda name: name == "b")
    assert fetched == ["a", "b"]
    assert sorted(path.name for path in local.iterdir()) == ["a", "b"]


def test_what_has_changed_or_gone_there_changes_or_goes_here(remote, cache, fetched):
    folder = remote({"a": b"1", "b": b"2", "c": b"3"})
    cache.fetch(folder)
    fill(folder.url, {"a": b"new"})
    folder.delete(["b"])
    local = cache.fetch(folder)
    assert {path.name: path.read_bytes() for path in local.iterdir()} == {"a": b"new", "c": b"3"}
    assert sorted(fetched) == ["a", "a", "b", "c"]


def test_a_copy_that_was_cut_off_is_completed(remote, cache, fetched, monkeypatch):
    folder, fetch = remote(dict.fromkeys("abcdef", b"x")), RemoteFolder.fetch

    def fail(self, name, to, size):
        if name == "d":
            raise StorageError("gone")
        fetch(self, name, to, size)

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="gone"):
        patched.setattr(RemoteFolder, "fetch", fail)
        cache.fetch(folder)
    fetched.clear()
    assert sorted(path.name for path in cache.fetch(folder).iterdir()) == list("abcdef")
    assert not {"a", "b", "c"} & set(fetched)
    assert not list(cache.folder.rglob("*.partial"))


def test_the_least_recently_used_copies_make_space(remote, cache):
    first, second, third = (remote({"a": b"x" * 4 * KB}) for _ in range(3))
    places = [cache.fetch(folder) for folder in (first, second)]
    for number, place in enumerate(places):
        os.utime(place.parent / "about.json", (number, number))
    cache.fetch(first)  # used again
    release()
    cache.fetch(third)
    assert [(place / "a").exists() for place in places] == [True, False]


def test_a_copy_in_use_is_not_deleted(remote, cache):
    first, second = remote({"a": b"x" * 6 * KB}), remote({"a": b"x" * 6 * KB})
    local = cache.fetch(first)
    with pytest.raises(StorageError, match=r"copies that other processes use take 6e-06 GB .*set_cache_gb\(1\)"):
        cache.fetch(second)
    assert (local / "a").exists()
    release()
    cache.fetch(second)
    assert not (local / "a").exists()


def test_a_set_beyond_the_limit_is_refused_before_anything_is_copied(remote, cache, fetched):
    folder = remote({"a": b"x" * 6 * KB, "b": b"x" * 6 * KB})
    with pytest.raises(StorageError, match=r"1.2e-05 GB are needed.*the limit of the cache, 1e-05 GB.*set_cache_gb"):
        cache.fetch(folder)
    assert not fetched


def test_a_disk_without_space_is_refused_before_anything_is_copied(remote, cache, fetched, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3})())
    with pytest.raises(
        StorageError, match=r"4e-09 GB are to be copied, but the disk .* has 3e-09 GB free.*set_cache_dir"
    ):
        cache.fetch(remote({"a": b"xxxx"}))
    assert not fetched


def test_a_cache_that_cannot_be_written_is_our_error(remote, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be copied to .*/file/cache: .*set_cache_dir"):
        Cache(tmp_path / "file" / "cache").fetch(remote({"a": b"x"}))


def test_a_name_that_leads_out_of_the_folder_is_refused(remote, cache, monkeypatch):
    folder = remote({"a": b"x"})
    files = folder.files()
    monkeypatch.setattr(folder, "files", lambda: {"../../../escaped": files["a"]})
    with pytest.raises(StorageError, match="lies outside the folder"):
        cache.fetch(folder)


FETCH = """
import os, sys
from plsc.remote.cache import Cache
from plsc.remote.folder import RemoteFolder
fetch = RemoteFolder.fetch
def note(self, name, to, size):
    os.write(1, f"{name}\\n".encode())  # in one piece: several threads do so
    fetch(self, name, to, size)
RemoteFolder.fetch = note
local = Cache(sys.argv[1]).fetch(RemoteFolder(sys.argv[2]))
assert len(list(local.iterdir())) == 50
"""


def test_of_several_processes_one_copies(remote, tmp_path):
    folder = remote({f"{number}": b"x" for number in range(50)})
    command = [sys.executable, "-c", FETCH, str(tmp_path / "cache"), folder.url]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sorted(map(len, outputs)) == [0, 0, 50]


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().folder == tmp_path / "plsc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Cache().folder == Path.home() / ".cache" / "plsc"
