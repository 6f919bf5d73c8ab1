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
    make_rec,
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
    assert "1 image in no class folder, 3.PNG the first" in caplog.text
    assert "no class of 1 folder without an image: ['empty']" in caplog.text


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
    assert (
        f"{root}: ignored 4 paths, hidden or left behind by other programs: "
        f".ipynb_checkpoints (2), __MACOSX (1), ._0.png (1); the first is .ipynb_checkpoints. If one is a class, list"
    ) in caplog.text


@pytest.mark.parametrize(
    "name",
    [".Trash-1000", "#recycle", "#snapshot", ".thumbnails", ".cache", "lost+found", "$RECYCLE.BIN", ".AppleDouble"]
    + ["System Volume Information", ".Spotlight-V100", "@eaDir", "@Recycle", ".snapshot", ".dvc", ".git", "__MACOSX"],
)
@pytest.mark.parametrize("parent", ["", "a", "a/deep"])
def test_a_folder_of_another_program_is_no_class_at_any_depth(tmp_path, caplog, name, parent):
    root = make_folders(tmp_path / "set")
    rubbish = root / parent / name / "files"
    rubbish.mkdir(parents=True)
    (rubbish / "old.png").write_bytes(IMAGES[0])
    records = open_records(root)
    assert (records.class_names, records.labels.tolist()) == (["a", "b", "c"], LABELS)
    assert f"ignored 1 path, hidden or left behind by other programs: {name} (1)" in caplog.text


def test_a_hidden_image_is_ignored_and_other_hidden_files_are_not_worth_a_warning(tmp_path, caplog):
    root = make_folders(tmp_path / "set")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".0.png.Xy12"):
        (root / "a" / name).write_bytes(b"x")
    assert len(open_records(root)) == 6 and not [r for r in caplog.records if r.levelno >= logging.WARNING]
    (root / "a" / ".hidden.png").write_bytes(IMAGES[0])
    assert len(open_records(root)) == 6 and ".hidden.png (1)" in caplog.text


def test_a_class_whose_name_begins_with_a_dot_is_read_from_a_list_and_one_with_a_hash_from_folders(tmp_path):
    root = make_folders(tmp_path / "set")
    (root / "a").rename(root / "#a")
    (root / "b").rename(root / ".net")
    assert open_records(root).class_names == ["#a", "c"]
    folders = ["./#a", ".net", "c"]  # a line that begins with # is a comment
    lines = [f"{folders[label]}/{number}.png {label}\n" for number, label in enumerate(LABELS)]
    (root / "label.txt").write_text("".join(lines))
    assert [record.image for record in open_records(root)] == IMAGES


def test_more_kinds_of_leftovers_than_the_warning_names_are_counted(tmp_path, caplog):
    root = make_folders(tmp_path / "set")
    for number in range(9):
        (root / f".x{number}").mkdir()
    open_records(root)
    assert "ignored 9 paths, hidden" in caplog.text and ".x5 (1) and 3 other names" in caplog.text


def test_a_root_of_nothing_but_leftovers_has_no_class(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "0.png").write_bytes(IMAGES[0])
    with pytest.raises(DataError, match="found no images in class folders"):
        open_records(tmp_path)


@pytest.mark.parametrize(
    "parts", [["train", "val"], ["Train", "Test", "val"], ["training", "validation"], ["images"], ["held_out", "train"]]
)
def test_the_parts_of_a_set_are_no_classes(tmp_path, parts):
    for part in parts:
        make_folders(tmp_path / part)
    (tmp_path / "annotations").mkdir()
    which = "is a part" if len(parts) == 1 else "are parts"
    # The error names the folder to train on, which sorts after test and held_out.
    best = next((part for part in sorted(parts) if part.lower().startswith("train")), parts[0])
    with pytest.raises(DataError, match=rf"holds {', '.join(sorted(parts))}, which {which} .* as \S*/{best}\. Where"):
        open_records(tmp_path)
    assert len(open_records(tmp_path / parts[0])) == 6


def test_parts_without_class_folders_need_a_list(tmp_path):
    for part in ("test", "train"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.png").write_bytes(IMAGES[0])
    with pytest.raises(DataError, match="and test holds images without class folders; expected a folder per class"):
        open_records(tmp_path)
    (tmp_path / "label.txt").write_text("test/0.png 0\ntrain/0.png 1\n")
    assert open_records(tmp_path).labels.tolist() == [0, 1]


def test_names_of_parts_among_others_are_classes_and_so_is_a_single_folder_of_images(tmp_path):
    for name in ("bus", "train"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.png").write_bytes(IMAGES[0])
    assert open_records(tmp_path / "set").class_names == ["bus", "train"]
    (tmp_path / "one" / "test").mkdir(parents=True)
    (tmp_path / "one" / "test" / "0.png").write_bytes(IMAGES[0])
    assert open_records(tmp_path / "one").class_names == ["test"]


def test_parts_of_another_kind_are_named_where_there_are_no_class_folders(tmp_path):
    make_rec(tmp_path / "train")
    make_rec(tmp_path / "held_out")
    with pytest.raises(DataError, match="found no images .* it holds held_out, train: name one .* as .*/held_out"):
        open_records(tmp_path)


def test_folders_below_class_folders_count_and_other_files_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    make_folders(tmp_path)
    (tmp_path / "b" / "deeper").mkdir()
    (tmp_path / "b" / "deeper" / "9.JPG").write_bytes(b"x")
    (tmp_path / "b" / "notes.txt").write_text("x")
    records = FolderRecords(tmp_path)
    assert records.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert records.class_names == ["a", "b", "c"]
    assert "ignored 1 file without the suffix of an image" in caplog.text
