"""Lists of images: their text, and images that are missing."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.data.sources import open_records
from plsc.data.sources.base64_text import Base64Records
from plsc.data.sources.lists import ListRecords
from plsc.data.sources.tables import CsvRecords
from plsc.errors import DataError, PLSCError
from tests._support.sources import (
    IMAGES,
    fuzz,
)


@pytest.mark.parametrize(
    "line, path, label",
    [
        ("images/1.png 1 # duplicate of 70", "images/1.png", 1),
        ("a 7 b.png 3", "a 7 b.png", 3),
        ("a b.png\t12  #", "a b.png", 12),
        ("#1/a#2.png 4", None, None),
        ("x/a#2.png 4", "x/a#2.png", 4),
    ],
)
def test_comments_of_a_list_are_no_part_of_it(tmp_path, line, path, label):
    (tmp_path / "label.txt").write_text(f"first.png 0\n{line}\n")
    records = open_records(tmp_path / "label.txt")
    if path is None:
        assert len(records) == 1
    else:
        assert (records.labels[1], records.path_of(1)) == (label, str(tmp_path / path))


def test_a_list_without_labels_is_no_list_of_parts(tmp_path):
    (tmp_path / "1.jpg").write_bytes(IMAGES[0])
    (tmp_path / "both.txt").write_text("1.jpg\n")
    with pytest.raises(DataError, match="line 1: got '1.jpg', expected an image path and a label"):
        open_records(tmp_path / "both.txt")


def test_a_list_takes_any_white_space_comments_absolute_and_unicode_paths(tmp_path):
    for name in ("a.png", "with blanks 7.png", "名前.png", "x#y.png"):
        (tmp_path / name).write_bytes(name.encode())
    text = (
        f"# a comment\n\n{tmp_path / 'a.png'}\t \t3\r\n  with blanks 7.png 0   # trailing\n名前.png 12\n"
        f"x#y.png 1\n./a.png\u30003"
    )
    (tmp_path / "list.txt").write_text("\ufeff" + text, encoding="utf-8")
    records = ListRecords(tmp_path / "list.txt")
    assert records.labels.tolist() == [3, 0, 12, 1, 3]
    names = [record.image.decode() for record in records]
    assert names == ["a.png", "with blanks 7.png", "名前.png", "x#y.png", "a.png"]
    assert records.describe(2).endswith("list.txt, line 5)")
    assert records.num_classes == 13


@pytest.mark.parametrize(
    "text, message",
    [
        ("a.png 0\nb.png\n", r"label.txt, line 2: got 'b.png', expected an image path and a label"),
        ("a.png -1\n", "line 1: got 'a.png -1'"),
        ("a.png 0.5\n", "line 1"),
        ("a.png 99999999999999999999\n", "line 1"),
        ("\n# only a comment\n", "the list is empty"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_a_malformed_list_is_named_by_line(tmp_path, text, message):
    (tmp_path / "label.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        open_records(tmp_path / "label.txt")


def test_an_image_that_is_missing_is_named_when_it_is_read(tmp_path):
    (tmp_path / "label.txt").write_text("images/gone.jpg 0\n")
    with pytest.raises(DataError, match="gone.jpg: the image cannot be read: No such file"):
        open_records(tmp_path)[0]


@given(data=st.binary(max_size=120) | st.text(max_size=60).map(str.encode))
@fuzz
def test_fuzz_lists_and_tables(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name, reader in (("label.txt", ListRecords), ("t.csv", CsvRecords), ("b64", Base64Records)):
        path = folder / name
        path.write_bytes(b"image,label\n" + data if name == "t.csv" else data)
        with contextlib.suppress(PLSCError):
            records = reader(path)
            for n in range(len(records)):
                with contextlib.suppress(PLSCError):
                    records[n]
