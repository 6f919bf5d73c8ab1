"""Base64 part files: the order of columns, malformed lines, lists of parts."""

from __future__ import annotations

import base64

import pytest

from plsc.data.sources import open_records
from plsc.data.sources.base64_text import Base64Records
from plsc.errors import DataError
from tests._support.sources import (
    IMAGES,
    line,
    make_base64,
)


def test_a_third_column_of_base64_is_no_label(tmp_path):
    text = base64.b64encode(IMAGES[0]).decode()
    for wrong in (f"{text}\t1\t99", f"{text} 1 99"):
        (tmp_path / "part").write_text(f"{text}\t1\n{wrong}\n")
        with pytest.raises(DataError, match="line 2: got .* expected 'base64-image<TAB>label'"):
            open_records(tmp_path / "part")


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b"\n", b"\xef\xbb\xbf\n  \n"])
def test_base64_behind_a_mark_or_a_blank_line(tmp_path, head):
    (tmp_path / "part").write_bytes(head + b"".join(base64.b64encode(image) + b"\t7\n" for image in IMAGES[:2]))
    records = open_records(tmp_path / "part")
    assert [(record.image, record.label) for record in records] == [(image, 7) for image in IMAGES[:2]]


@pytest.mark.parametrize("name", ["part.tsv", "part.csv"])
def test_base64_parts_are_known_whatever_their_suffix(tmp_path, name):
    (tmp_path / name).write_text(line(0, label_first=False) + line(2, label_first=False))
    assert open_records(tmp_path / name).labels.tolist() == [0, 1]


def test_a_base64_line_is_read_by_the_columns_it_has(tmp_path):
    first = line(0, label_first=True)
    image = first.split()[1]
    (tmp_path / "part").write_text(f"{first}0\x0b{image}\t\n0\t{image}\t{image}\n")
    records = open_records(tmp_path / "part")
    assert [records[n].image for n in (0, 1)] == [IMAGES[0]] * 2
    with pytest.raises(DataError, match="line 3: got 3 columns, expected a label and an image"):
        records[2]


def test_the_order_of_columns_is_decided_per_file(tmp_path):
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


def test_damaged_base64_is_named_when_it_is_read(tmp_path):
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


@pytest.mark.parametrize("odd", ["\x0b", "\x85", "\u2028"])
def test_only_line_ends_end_a_line_of_a_list_of_parts(tmp_path, odd):
    make_base64(tmp_path / "set")
    (tmp_path / "set" / "part-0").rename(tmp_path / "set" / f"a{odd}b")
    (tmp_path / "set" / "file_list.txt").write_bytes(f"a{odd}b\r\n\r\n\ufeffpart-1".encode())
    assert len(open_records(tmp_path / "set")) == 6
    (tmp_path / "set" / "part-1").unlink()
    with pytest.raises(DataError, match="file_list.txt, line 3: there is no part file"):
        open_records(tmp_path / "set")


def test_a_part_that_does_not_begin_with_an_image_is_named_by_its_line(tmp_path):
    (tmp_path / "part").write_text("\n\nnothing here\n")
    (tmp_path / "file_list.txt").write_text("part\n")
    with pytest.raises(DataError, match="part, line 3: got b'nothing here'.* an image of the kinds JPEG, PNG, "):
        Base64Records(tmp_path)
