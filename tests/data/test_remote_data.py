"""Data sets behind URLs: which files of a remote folder are copied, and that they read as local ones do."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from plsc.data.remote_data import fetch_data, fetch_set, fetch_sets
from plsc.data.sources import open_records
from plsc.errors import DataError
from plsc.remote.cache import Cache
from tests._support.s3 import fill


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/faces"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Cache()


def held(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_a_folder_is_copied_without_the_sets_that_are_not_asked_for(url, cache):
    fill(url, {"label.txt": b"", "images/0.jpg": b"", "lfw.bin": b"", "agedb.bin": b""})
    assert held(fetch_data(url, cache)) == ["images/0.jpg", "label.txt"]
    assert held(fetch_data(url, cache, sets=["lfw", "not.there"])) == ["images/0.jpg", "label.txt", "lfw.bin"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("train.rec", ["classes.txt", "property", "train.idx", "train.rec"]),
        ("train.idx", ["classes.txt", "property", "train.idx", "train.rec"]),
        ("s-{0..2}.tar", ["classes.txt", "property", "s-0.tar", "s-0.tar.index.npz", "s-1.tar"]),
        ("s-1.tar", ["classes.txt", "property", "s-1.tar"]),
        ("all.npz", ["all.npz", "classes.txt", "property"]),
    ],
)
def test_a_file_is_copied_with_what_belongs_to_it(url, cache, name, expected):
    others = ["classes.txt", "property", "train.rec", "train.idx", "val.rec", "all.npz", "lfw.bin"]
    shards = ["s-0.tar", "s-0.tar.index.npz", "s-1.tar", "s-x.tar"]
    fill(url, dict.fromkeys(others + shards, b""))
    path = fetch_data(f"{url}/{name}", cache)
    assert path.name == name
    assert held(path.parent) == expected


def test_a_list_is_copied_with_its_folder(url, cache):
    fill(url, {"label.txt": b"", "part.txt": b"", "images/0.jpg": b""})
    path = fetch_data(f"{url}/part.txt", cache)
    assert held(path.parent) == ["images/0.jpg", "label.txt", "part.txt"]


def test_sets_are_copied_without_the_training_data(url, cache):
    fill(url, {"train.rec": b"", "lfw.bin": b"", "agedb.bin": b""})
    assert held(fetch_sets(url, cache, sets=["lfw"])) == ["lfw.bin"]
    path = fetch_sets(f"{url}/train.rec", cache, sets=["agedb.bin"])
    assert (path.name, held(path.parent)) == ("train.rec", ["agedb.bin", "lfw.bin"])
    assert fetch_set(f"{url}/lfw", cache).name == "lfw.bin"


def test_what_is_not_there_is_named(url, cache):
    with pytest.raises(DataError, match=r"faces: there is no such folder or file"):
        fetch_data(url, cache)
    fill(url, {"lfw.bin": b""})
    with pytest.raises(DataError, match="holds no training data, only verification sets"):
        fetch_data(url, cache)
    with pytest.raises(DataError, match=r"faces/train.rec: there is no such folder or file"):
        fetch_data(f"{url}/train.rec", cache)
    with pytest.raises(DataError, match="faces/cfp.bin does not exist; .*/faces holds lfw.bin"):
        fetch_set(f"{url}/cfp", cache)


def test_records_behind_a_url_equal_those_of_the_folder(url, cache, data_dir):
    fill(url, {str(path.relative_to(data_dir)): path.read_bytes() for path in data_dir.rglob("*") if path.is_file()})
    local, remote = open_records(data_dir), open_records(url)
    assert np.array_equal(local.labels, remote.labels)
    assert [local[i].image for i in range(len(local))] == [remote[i].image for i in range(len(local))]
