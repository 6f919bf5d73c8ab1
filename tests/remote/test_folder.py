"""Remote folders, over a real S3 server and over fsspec's file systems of the memory and of local files."""

from __future__ import annotations

import logging
import uuid

import pytest

from plsc.errors import ConfigError, MissingDependencyError, StorageError
from plsc.remote import retrying
from plsc.remote.folder import RemoteFolder
from tests._support.s3 import fill, names


@pytest.fixture(params=["s3", "memory", "file"])
def url(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3").url + "/run"
    return f"memory://{uuid.uuid4().hex}/run" if request.param == "memory" else f"file://{tmp_path}/remote/run"


@pytest.fixture
def few_attempts(monkeypatch):
    monkeypatch.setattr(retrying, "ATTEMPTS", 2)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)


def test_what_is_uploaded_is_listed_read_fetched_and_deleted(url, tmp_path):
    folder, source = RemoteFolder(url), tmp_path / "source"
    assert folder.files() == {}
    source.write_bytes(b"x" * 1000)
    folder.upload(source, "7/a")
    folder.upload(source, "b")
    assert {name: file.size for name, file in folder.files().items()} == {"7/a": 1000, "b": 1000}
    assert folder.read("7/a") == b"x" * 1000
    folder.fetch("b", tmp_path / "copy", 1000)
    assert (tmp_path / "copy").read_bytes() == b"x" * 1000
    folder.delete(["b", "never there"])
    assert names(url) == ["7/a"]
    (folder / "7").delete_all(first="manifest.json")
    assert names(url) == []


def test_a_changed_file_has_another_tag(url, tmp_path):
    fill(url, {"a": b"one"})
    before = RemoteFolder(url).files()["a"]
    fill(url, {"a": b"two"})
    after = RemoteFolder(url).files()["a"]
    assert before.size == after.size
    assert before.tag != after.tag


@pytest.mark.slow
def test_a_large_file_is_uploaded_in_parts(s3, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 410_000)  # 105 MB; s3fs sends parts of 50 MiB
    folder = RemoteFolder(s3.url)
    s3.fail("busy", 1, methods=["PUT"], match="large")
    folder.upload(source, "large")
    assert s3.failed() == 1
    assert int(folder.files()["large"].tag.strip('"').rpartition("-")[2]) >= 2  # the service names the number of parts
    folder.fetch("large", tmp_path / "copy", source.stat().st_size)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["busy", "reset"])
@pytest.mark.parametrize("action", ["upload", "read", "fetch", "files", "delete"])
def test_an_operation_is_tried_again_while_the_service_fails(s3, tmp_path, kind, action):
    folder, source = RemoteFolder(s3.url), tmp_path / "source"
    source.write_bytes(b"content")
    folder.upload(source, "a")
    s3.fail(kind, 4)
    actions = {
        "upload": lambda: folder.upload(source, "b"),
        "read": lambda: folder.read("a"),
        "fetch": lambda: folder.fetch("a", tmp_path / "copy", 7),
        "files": folder.files,
        "delete": lambda: folder.delete(["a"]),
    }
    actions[action]()
    assert s3.failed() == 4


def test_a_request_without_an_answer_is_given_up_and_tried_again(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("plsc.remote.folder._S3_LIMITS", {"read_timeout": 1, "retries": {"total_max_attempts": 1}})
    folder, source = RemoteFolder(s3.url), tmp_path / "source"
    source.write_bytes(b"content")
    s3.fail("stall", 2, methods=["PUT"])
    folder.upload(source, "a")
    assert s3.failed() == 2
    assert folder.read("a") == b"content"


def test_attempts_are_bounded_and_the_error_says_so(s3, few_attempts, caplog):
    s3.fail("busy", 10**6)
    with pytest.raises(StorageError, match=r"reduce your request rate.*the last of 2 attempts.*check the network"):
        RemoteFolder(s3.url).files()
    assert [record.levelno for record in caplog.records if "attempt 2 of 2" in record.getMessage()] == [logging.WARNING]


def test_a_network_that_is_gone_is_our_error(few_attempts, monkeypatch, s3):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("plsc.remote.folder._S3_LIMITS", {"connect_timeout": 1, "retries": {"total_max_attempts": 1}})
    with pytest.raises(StorageError, match=r"cannot be listed.*127.0.0.1:9.*check the network"):
        RemoteFolder("s3://bucket/gone").files()


def test_a_bucket_that_does_not_exist_is_named(s3, tmp_path):
    assert RemoteFolder(f"{s3.url}/my-bucket/nothing").files() == {}
    folder = RemoteFolder("s3://plsc-there-is-no-such-bucket/run")
    with pytest.raises(StorageError, match="the bucket 'plsc-there-is-no-such-bucket' does not exist"):
        folder.files()
    with pytest.raises(StorageError, match="does not exist"):
        folder.check_writable()
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        folder.upload(tmp_path / "a", "a")


def test_denied_access_is_our_error_at_once(monkeypatch):
    folder = RemoteFolder("memory://denied")
    calls = []

    def refuse(*_, **__):
        calls.append(1)
        raise PermissionError("Access Denied")

    monkeypatch.setattr(folder._system, "find", refuse)
    with pytest.raises(StorageError, match=r"memory://denied cannot be listed: Access Denied; give credentials"):
        folder.files()
    assert len(calls) == 1


def test_a_copy_that_is_cut_short_is_tried_again(url, tmp_path, monkeypatch):
    fill(url, {"a": b"content"})
    folder = RemoteFolder(url)
    get_file, calls = folder._system.get_file, []

    def cut(path, target, **options):
        get_file(path, target, **options)
        calls.append(1)
        if len(calls) == 1:
            with open(target, "r+b") as file:
                file.truncate(3)

    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(folder._system, "get_file", cut)
    folder.fetch("a", tmp_path / "copy", 7)
    assert (tmp_path / "copy").read_bytes() == b"content"


def test_a_missing_package_is_named(monkeypatch):
    with pytest.raises(MissingDependencyError, match="oss:// needs .*pip install ossfs"):
        RemoteFolder("oss://bucket/run")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match=r"s3:// needs fsspec.*pip install '\.\[remote\]'"):
        RemoteFolder("s3://bucket/run")


@pytest.mark.parametrize("wrong", ["nowhere://bucket/run", "simplecache::s3://bucket/run"])
def test_an_unknown_protocol_is_refused(wrong):
    with pytest.raises(ConfigError, match="of a protocol that fsspec knows"):
        RemoteFolder(wrong)
