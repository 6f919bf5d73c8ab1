"""Mapping, appending to and flushing files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plsc.errors import DataError
from plsc.utils.files import map_file, open_output, sync, sync_path, utf8_folder


def test_a_new_file_is_never_opened_over_an_old_one(tmp_path):
    with open_output(tmp_path / "a") as file:
        file.write(b"abcdef")
        sync(file)
        assert (tmp_path / "a").read_bytes() == b"abcdef"
    with pytest.raises(DataError, match="a exists already; nothing is overwritten"):
        open_output(tmp_path / "a")
    with pytest.raises(DataError, match="cannot be written: No such file or directory"):
        open_output(tmp_path / "none" / "a")


def test_an_old_file_is_cut_to_the_length_and_continued(tmp_path):
    (tmp_path / "a").write_bytes(b"abcdef")
    with open_output(tmp_path / "a", 4) as file:
        file.write(b"!")
    assert (tmp_path / "a").read_bytes() == b"abcd!"
    with pytest.raises(DataError, match="has 5 bytes, expected at least 6 to continue from"):
        open_output(tmp_path / "a", 6)
    with open_output(tmp_path / "a", 0):
        pass
    assert (tmp_path / "a").read_bytes() == b""


def test_missing_and_empty_files_cannot_be_mapped(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert map_file(tmp_path / "a")[1:] == b"bc"
    with pytest.raises(DataError, match="none: the file cannot be read: No such file or directory"):
        map_file(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match=r"empty: the file is empty \(0 bytes\)"):
        map_file(tmp_path / "empty")


def test_files_and_folders_are_flushed_by_path(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    sync_path(tmp_path / "a")
    sync_path(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_path(tmp_path / "none")


def test_a_folder_whose_name_is_no_utf8_has_a_path_that_is():
    with utf8_folder(Path("a") / "中") as folder:
        assert folder == Path("a") / "中"


def test_files_are_read_and_written_under_a_name_that_is_no_utf8(tmp_path):
    named = tmp_path / os.fsdecode("模型".encode("gbk"))
    named.mkdir()
    (named / "a").write_bytes(b"abc")
    before = os.listdir("/proc/self/fd")
    with utf8_folder(named) as folder:
        assert str(folder).encode() and (folder / "a").read_bytes() == b"abc"
        (folder / "b").write_bytes(b"new")
    assert (named / "b").read_bytes() == b"new" and os.listdir("/proc/self/fd") == before
    with pytest.raises(FileNotFoundError), utf8_folder(named / "none"):
        pass
