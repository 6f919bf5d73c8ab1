"""Many images in one file: base64 text, tar shards, the index kept beside them; each fault by its message."""

from __future__ import annotations

import contextlib
import gzip
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plsc.data.sources import offset_index, open_records
from plsc.data.sources.base64_text import Base64Records
from plsc.data.sources.tar_shards import TarRecords, expand_range
from plsc.errors import DataError, PLSCError
from tests._support.sources import IMAGES, add, line, make_base64, make_tar

fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Base64


def test_columns_are_told_per_file(tmp_path):
    records = Base64Records(make_base64(tmp_path / "set"))
    assert records.label_first == [True, False]
    assert records.describe(4).endswith("part-1, line 2")
    assert len(open_records(tmp_path / "set" / "part-1")) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the file is empty"),
        ("\n\n", "the file has no lines"),
        ("hello world\n", r"line 1: got b'hello world'..., expected 'base64-image<TAB>label'"),
        (line(0, True) + "0\n", "line 2: got b'0'"),
        (
            line(0, True) + line(1, False),
            "line 2: got b'iVBOR.*expected 'label<TAB>base64-image' as in the file's first",
        ),
        (line(0, False) + "iVBORw0KGgo=\n", "line 2: got"),
        (line(0, False) + line(1, False).strip() + " " * 99 + "\n", "line 2: got"),
        (line(0, True) + " " * 300 + line(1, True), "line 2: got"),
        (line(0, False) + "iVBORw0KGgo=\t-3\n", "line 2: got"),
    ],
)
def test_malformed_base64_files_are_named_by_line(tmp_path, text, message):
    (tmp_path / "part").write_text(text)
    (tmp_path / "file_list.txt").write_text("part\n")
    with pytest.raises(DataError, match=message):
        Base64Records(tmp_path)


def test_base64_that_is_not_is_named_when_it_is_read(tmp_path):
    (tmp_path / "part").write_text(line(0, True) + "1\tnot*base64\n" + "1\tabc\n")
    records = Base64Records(tmp_path / "part")
    assert records[0] == (IMAGES[0], 0)
    for n in (1, 2):
        with pytest.raises(DataError, match=rf"part, line {n + 1}: the image column is no base64"):
            records[n]


def test_a_list_of_part_files_names_what_is_missing(tmp_path):
    make_base64(tmp_path / "set")
    (tmp_path / "set" / "file_list.txt").write_text("part-0\npart-7\n")
    with pytest.raises(DataError, match="file_list.txt, line 2: there is no part file .*part-7"):
        open_records(tmp_path / "set")
    (tmp_path / "set" / "file_list.txt").write_text("x" * 5000)
    with pytest.raises(DataError, match="there is no part file"):
        open_records(tmp_path / "set")
    (tmp_path / "set" / "file_list.txt").write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        open_records(tmp_path / "set")


# Tar shards


def test_shards_by_range_notation(tmp_path):
    make_tar(tmp_path / "set")
    assert len(open_records(tmp_path / "set" / "train-{000..001}.tar")) == 6
    assert expand_range("a-{08..11}") == ["a-08", "a-09", "a-10", "a-11"]
    with pytest.raises(DataError, match="train-002.tar: there is no such shard"):
        open_records(tmp_path / "set" / "train-{000..002}.tar")


@pytest.mark.parametrize(
    "members, message",
    [
        ([("0.png", IMAGES[0])], r"sample '0' has no class \(.cls"),
        ([("0.cls", b"1")], r"sample '0' has no image"),
        ([("0.png", IMAGES[0]), ("1.png", IMAGES[1]), ("0.cls", b"1")], "sample '0' has no class"),
        ([("0.png", IMAGES[0]), ("0.jpg", IMAGES[0]), ("0.cls", b"1")], "two images, '0.png' and '0.jpg'"),
        ([("0.png", IMAGES[0]), ("0.cls", b"cat")], "'0.cls' holds b'cat', expected a class number"),
        ([("0.png", IMAGES[0]), ("0.json", b'{"label": "cat"}')], "sample '0' has no class"),
        ([], "the shards hold no samples"),
    ],
)
def test_samples_that_are_not_whole_are_named(tmp_path, members, message):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members:
            add(tar, name, data)
    with pytest.raises(DataError, match=message):
        TarRecords(tmp_path)


def test_damaged_shards_are_not_read_as_shorter_ones(tmp_path, caplog):
    path = tmp_path / "train-000.tar"
    with tarfile.open(path, "w") as tar:
        for n in range(3):
            add(tar, f"{n}.png", IMAGES[n])
            add(tar, f"{n}.cls", b"0")
    data = path.read_bytes()
    second = data.index(b"1.png")
    assert second % 512 == 0
    path.write_bytes(data[:second] + b"x" * 512 + data[second + 512 :])
    with pytest.raises(DataError, match=f"train-000.tar, offset {second}: found no tar header"):
        TarRecords(path)
    path.write_bytes(data[: data.index(b"2.png") + 520])
    with pytest.raises(DataError, match="damaged, cut off or no tar"):
        TarRecords(path)
    assert "may have been cut off" not in caplog.text
    path.write_bytes(data[: data.index(b"2.png")])
    assert len(TarRecords(path)) == 2
    assert "train-000.tar: the shard ends without the mark of an archive's end, so it may have been cut" in caplog.text
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match="unpack a .tar.gz first"):
        open_records(tmp_path / "b.tar.gz")


@given(
    flips=st.lists(st.tuples(st.integers(0, 10000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 6000),
)
@fuzz
def test_fuzz_damaged_tar_and_base64(flips, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for path, reader in (
        (make_tar(folder / "tar") / "train-001.tar", TarRecords),
        (make_base64(folder / "text") / "part-0", Base64Records),
    ):
        data = bytearray(path.read_bytes())
        for position, value in flips:
            data[position % len(data)] = value
        path.write_bytes(data[: max(0, len(data) - cut)])
        with contextlib.suppress(PLSCError):
            records = reader(path)
            for n in range(len(records)):
                with contextlib.suppress(PLSCError):
                    assert len(records[n].image) < len(data)


# The index that is kept


@pytest.mark.parametrize("make", [make_tar, make_base64])
def test_a_saved_index_serves_until_the_file_changes(tmp_path, make, monkeypatch, caplog):
    folder = make(tmp_path / "set")
    before = list(open_records(folder))
    written = open_records(folder).save_index()
    assert [path.name.endswith(".index.npz") for path in written] == [True, True]
    used, load = [], offset_index._load
    monkeypatch.setattr(offset_index, "_load", lambda *args: used.append(load(*args)) or used[-1])
    assert list(open_records(folder)) == before
    assert [arrays is not None for arrays in used] == [True, True]
    path = Path(str(written[0])[: -len(".index.npz")])
    path.write_bytes(path.read_bytes() + bytes(512) if path.suffix == ".tar" else path.read_bytes() + b"\n")
    written[1].write_bytes(b"no index")
    assert list(open_records(folder)) == before
    assert used[2:] == [None, None]
    assert "the file has changed since" in caplog.text
    assert "the index cannot be used" in caplog.text
