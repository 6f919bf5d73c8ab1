"""URLs: which text is one, and what of it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from plsc.utils.locations import credentials_of, is_remote, join, keep_credentials, split, without_credentials


@pytest.mark.parametrize("text", ["s3://b/x", "memory://x", "file:///x", "hdfs://h:1/x"])
def test_a_url_is_remote(text):
    assert is_remote(text)


@pytest.mark.parametrize("path", ["/data/faces", "faces", "synthetic:10:200", "", "a/b://c", Path("x")])
def test_a_path_is_not(path):
    assert not is_remote(path)


@pytest.mark.parametrize(
    "given, shown, user, password",
    [
        ("s3://k:s@b/x", "s3://b/x", "k", "s"),
        ("s3://k:s/e+c@b/x", "s3://b/x", "k", "s/e+c"),
        ("s3://k:p%40ss@b/x", "s3://b/x", "k", "p@ss"),
        ("s3://k:1234@b/x", "s3://b/x", "k", "1234"),
        ("hdfs://me@host:9000/x", "hdfs://host:9000/x", "me", None),
        ("hdfs://me:word@host:9000/x", "hdfs://host:9000/x", "me", "word"),
    ],
)
def test_credentials_are_kept_apart(given, shown, user, password):
    assert without_credentials(f"found {given!r}, expected") == f"found {shown!r}, expected"
    assert keep_credentials(given) == shown
    assert credentials_of(shown) == (user, password)


@pytest.mark.parametrize(
    "location",
    ["hdfs://host:9000/folder@home", "/data/a@b", "s3://bucket/a@b", "file:///x/y@z", "user@example.com", ""],
)
def test_a_location_without_credentials_stays(location):
    assert keep_credentials(location) == location == without_credentials(location)


def test_each_of_several_locations_is_looked_at():
    assert keep_credentials("lfw,s3://k1:s1@one/a.bin,s3://k2:s2@two/b.bin") == "lfw,s3://one/a.bin,s3://two/b.bin"
    assert (credentials_of("s3://one/c"), credentials_of("s3://two/c")) == (("k1", "s1"), ("k2", "s2"))


def test_what_path_collapses_is_put_right():
    assert keep_credentials(str(Path("s3://bucket/x"))) == "s3://bucket/x"


def test_urls_are_joined_and_split():
    assert join("s3://bucket/run/", "/7") == "s3://bucket/run/7"
    assert join("memory://", "run") == "memory://run"
    assert split("s3://bucket/run/7") == ("s3://bucket/run", "7")
    assert split("s3://bucket") == ("s3://", "bucket")
