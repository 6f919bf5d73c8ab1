"""Class folders: links, leftovers, other files."""

from __future__ import annotations

import logging
import os

import pytest

from plsc.data.sources import open_records
from plsc.data.sources.folders import FolderRecords
from plsc.errors import DataError
from tests._support.sources import (
    IMAGES,
    LABELS,
    make_folders,
)


def test_class_folders_through_links_and_what_lies_outside(tmp_path, caplog):
    real, root = tmp_path / "elsewhere", tmp_path / "set"
    for folder in (real, root / "a", root / "b" / "deep", root / "empty"):
        folder.mkdir(parents=True)
    for number, folder in enumerate((real, root / "a", root / "b" / "deep", root)):
        (folder / f"{number}.PNG").write_bytes(IMAGES[number])
    (root / "a" / "linked").symlink_to(real)
    (root / "b" / "up").symlink_to(root / "b")
    (root / "c").symlink_to(real)
    with caplog.at_level(logging.WARNING, "plsc"):
        records = open_records(root)
    assert records.class_names == ["a", "b", "c"] and records.labels.tolist() == [0, 0, 1, 2]
    assert "1 images that lie in no class folder, 3.PNG the first" in caplog.text
    assert "1 folders hold no image and are no classes: ['empty']" in caplog.text


def test_a_class_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def scandir(folder):
        if str(folder).endswith("a"):
            raise PermissionError(13, "Permission denied")  # as nobody's rights are to root
        return scan(folder)

    scan = os.scandir
    monkeypatch.setattr("plsc.data.sources.folders.os.scandir", scandir)
    with pytest.raises(DataError, match="a: the folder cannot be read: Permission denied"):
        open_records(tmp_path)


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_links_to_a_parent_folder_yield_no_image_twice(tmp_path, target):
    root = make_folders(tmp_path / "deep" / "set")
    (root / "a" / "all").symlink_to(target)
    records = open_records(root)
    assert (len(records), records.class_names, records.labels.tolist()) == (6, ["a", "b", "c"], LABELS)


def test_a_link_to_the_set_itself_is_no_class(tmp_path):
    root = make_folders(tmp_path / "set")
    (root / "again").symlink_to(root)
    assert open_records(root).class_names == ["a", "b", "c"]


def test_what_other_programs_leave_behind_is_neither_class_nor_image(tmp_path, caplog):
    root = make_folders(tmp_path / "set")
    for path in (".ipynb_checkpoints/0.png", "a/.ipynb_checkpoints/0.png", "__MACOSX/a/0.png", "a/._0.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(IMAGES[0])
    records = open_records(root)
    assert (len(records), records.class_names) == (6, ["a", "b", "c"])
    assert f"ignored 4 files and folders that other programs left behind, {root / '.ipynb_che'}" in caplog.text


def test_folders_below_class_folders_count_and_other_files_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    make_folders(tmp_path)
    (tmp_path / "b" / "deeper").mkdir()
    (tmp_path / "b" / "deeper" / "9.JPG").write_bytes(b"x")
    (tmp_path / "b" / "notes.txt").write_text("x")
    records = FolderRecords(tmp_path)
    assert records.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert records.class_names == ["a", "b", "c"]
    assert "ignored 1 files" in caplog.text
