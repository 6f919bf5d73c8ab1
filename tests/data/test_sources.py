"""The registry: every kind of data is recognized, and further kinds can be registered."""

from __future__ import annotations

import logging
import os
import pickle
import random
from pathlib import Path

import pytest

from plsc.data import sources
from plsc.data.recordio import RecordIOWriter
from plsc.data.records import Record, Records
from plsc.data.sources import open_records, register_source
from plsc.data.sources.lists import ListRecords
from plsc.errors import DataError
from tests._support.sources import (
    IMAGES,
    LABELS,
    line,
    make_base64,
    make_csv,
    make_folders,
    make_list,
    make_rec,
    make_table,
    make_tar,
)

MAKERS = {
    "list of images": make_list,
    "class folders": make_folders,
    "RecordIO, plain layout, with index": make_rec,
    "base64 text, 2 part files, image first or label first": make_base64,
    "tar, WebDataset layout, 2 shards": make_tar,
    "table of image paths, CSV": make_csv,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_is_recognized_and_read_whole_in_any_order_from_a_pickle(kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    records = open_records(MAKERS[kind](tmp_path / "set"))
    assert records.format == kind
    assert f"{tmp_path / 'set'}: {kind}, 6 images" in caplog.text
    assert records.num_classes == 3
    assert records.labels.tolist() == LABELS
    for copy in (records, pickle.loads(pickle.dumps(records))):
        for n in random.Random(0).sample(range(6), 6):
            assert copy[n] == (IMAGES[n], LABELS[n])
    assert copy[-1] == copy[5]
    with pytest.raises(IndexError, match="6"):
        records[6]
    assert len({records.describe(n) for n in range(6)}) == 6


def test_the_first_choice_of_several_is_read_and_the_others_are_named(tmp_path, caplog):
    make_list(tmp_path / "set")
    with RecordIOWriter(tmp_path / "set" / "train.rec") as writer:
        writer.write(0, 0, image=IMAGES[0])
    assert isinstance(open_records(tmp_path / "set"), ListRecords)
    assert "reading label.txt; the folder also has train.rec" in caplog.text
    assert len(open_records(tmp_path / "set" / "train.rec")) == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "'.*nothing' does not exist; expected a folder"),
        ("lfw.bin", "a .bin is a verification set"),
        ("empty", "found no images in class folders"),
        ("synthetic:5", "expected 'synthetic:CLASSES:IMAGES'"),
        ("synthetic:0:5", "got 0 classes"),
        ("two", r"holds a.rec, b.rec; expected one of them to be train.rec"),
    ],
)
def test_what_is_no_training_data_is_named(tmp_path, name, message):
    (tmp_path / "lfw.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.rec").write_bytes(b"x")
    (tmp_path / "two" / "b.rec").write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        open_records(name if ":" in name else tmp_path / name)


def test_class_names_may_hold_a_byte_order_mark_and_line_separators(tmp_path):
    folder = make_list(tmp_path / "set")
    (folder / "classes.txt").write_bytes("\ufeffb\r\nx\u2028y\r\nc\r\n".encode())
    assert open_records(folder).class_names == ["b", "x\u2028y", "c"]


def test_class_folders_that_are_ignored_are_warned_of(tmp_path, caplog):
    make_table(make_folders(tmp_path / "set") / "notes.csv", ["0"])
    assert len(open_records(tmp_path / "set")) == 1
    assert "folders of images, " in caplog.text
    caplog.clear()
    listed = make_folders(tmp_path / "listed")
    for first in ("a/0.png", "./a/0.png", listed / "a" / "0.png", "../listed/a/0.png"):
        (listed / "label.txt").write_text(f"{first} 0\nb/2.png 1\n")
        open_records(listed)
    assert "folders of images" not in caplog.text


def test_a_folder_that_cannot_be_listed_can_still_hold_a_list(tmp_path, monkeypatch):
    source = make_list(tmp_path / "set")

    def shut(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", shut)
    assert len(open_records(source)) == 6


def test_byte_order_marks_are_ignored(tmp_path):
    folder = make_rec(tmp_path / "set")
    (folder / "train.idx").write_text((folder / "train.idx").read_text(), encoding="utf-8-sig")
    (folder / "property").write_text("3,4,5", encoding="utf-8-sig")
    assert (len(open_records(folder)), open_records(folder).num_classes) == (6, 3)
    (tmp_path / "part").write_text(line(0, label_first=False))
    (tmp_path / "file_list.txt").write_text("part\n", encoding="utf-8-sig")
    assert len(open_records(tmp_path / "file_list.txt")) == 1


def test_a_file_without_permission_to_read_is_named(tmp_path, monkeypatch):
    def shut(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", shut)
    with pytest.raises(DataError, match="label.txt cannot be read: Permission denied"):
        open_records(tmp_path / "shut" / "label.txt")


def test_classes_txt_names_the_classes_of_sets_that_do_not(tmp_path, caplog):
    folder = make_rec(tmp_path / "set")
    (folder / "classes.txt").write_text("zoë\nada\nbo\n", encoding="utf-8")
    for path in (folder, folder / "train.rec"):
        assert open_records(path).class_names == ["zoë", "ada", "bo"]
    (folder / "classes.txt").write_text("ada\n")
    assert getattr(open_records(folder), "class_names", None) is None
    assert "classes.txt: 1 name for 3 classes, ignored" in caplog.text
    (folder / "classes.txt").write_bytes(b"\xff\n\n\n")
    assert getattr(open_records(folder), "class_names", None) is None
    assert "the names of the classes cannot be read" in caplog.text


class Packed(Records):
    """The last bytes of a file, one record each, of class 0 and 1 in turn."""

    num_classes = 2

    def __init__(self, path, recover=False):
        self.path, self.data = Path(path), b"" if Path(path).is_dir() else Path(path).read_bytes()
        self.damage = "cut off" if recover else None

    def __len__(self):
        return max(1, len(self.data))

    def __getitem__(self, index):
        return Record(self.data[index : index + 1], index % 2)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(sources, "_SOURCES", list(sources._SOURCES))


def test_a_registered_class_opens_files_by_suffix_and_by_the_folder_that_holds_them(registry, tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    assert (
        register_source(suffixes=[".mine"], in_folder="*.mine", preferred="train.mine", recovers=True)(Packed) is Packed
    )
    (tmp_path / "a.mine").write_bytes(b"abc")
    for path in (tmp_path / "a.mine", tmp_path):
        records = open_records(path)
        assert type(records) is Packed and list(records) == [(b"a", 0), (b"b", 1), (b"c", 0)]
        assert records.damage is None and open_records(path, recover=True).damage == "cut off"
    assert f"{tmp_path}: records, 3 images" in caplog.text
    (tmp_path / "b.mine").write_bytes(b"x")
    with pytest.raises(DataError, match="holds a.mine, b.mine; expected one of them to be train.mine"):
        open_records(tmp_path)
    (tmp_path / "train.mine").write_bytes(b"xy")
    (tmp_path / "label.txt").write_text("x.png 0\n")
    (tmp_path / "classes.txt").write_text("ann\nbob\n")
    assert len(open_records(tmp_path)) == 2, "a kind registered later is asked first"
    assert "reading train.mine; the folder also has label.txt" in caplog.text
    assert open_records(tmp_path).class_names == ["ann", "bob"]


def test_a_registered_function_opens_names_folders_and_files_by_content(registry, tmp_path):
    opened = []

    def open_it(path):
        opened.append(path)
        return Packed(tmp_path)

    register_source(prefix="db:")(open_it)
    register_source(in_folder="*.slab")(open_it)
    register_source(accepts=lambda path: path.read_bytes().startswith(b"SLAB"))(open_it)
    (tmp_path / "1.slab").write_bytes(b"x")
    (tmp_path / "anything").write_bytes(b"SLAB1")
    (tmp_path / "list.txt").write_text("a.png 0\n")
    for path in ("db:faces/7", tmp_path, tmp_path / "anything"):
        open_records(path)
    assert opened == ["db:faces/7", tmp_path, tmp_path / "anything"]
    assert isinstance(open_records(tmp_path / "list.txt"), ListRecords)
