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
    make_list,
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
        (b"\xff\xfe\x00", "not UTF-8 text; it begins as UTF-16 does: convert it with iconv -f UTF-16 -t UTF-8"),
        ("a.png\0 0\n", r"line 1: got 'a.png\\x00 0', .*the line holds a zero byte"),
        ("a.png 0\nb\0.png 1\n", r"line 2: got 'b\\x00.png 1'"),
        ("a.png,0\n", "line 1: got 'a.png,0', .*a space or a tab separates the label from the path, not ','"),
        ("a.png;0\n", "not ';'"),
        ("a.png 0\n'b.png 1'\n", "line 2: .*leave the quotes out"),
        ("0 images/a.png\n", "line 1: got '0 images/a.png', .*the label comes after the path"),
        ("0,images/a.png\n", "the label comes after the path"),
        ("a.png cat\n", "a label is a number: names of classes are read from a table"),
        (f"{'x' * 500}.png\n", f"line 1: got '{'x' * 120}', expected"),
        (
            "数据/0.png 0\n数据/1.png 1\n".encode("gbk"),
            "line 1: found .* not UTF-8 text; in GBK .*'数据/0.png 0': .*iconv",
        ),
        (b"a.png 0\n" * 5000 + "数据/2.png 1\n".encode("gbk"), "label.txt, line 5001: found .*'数据/2.png 1'"),
        (b"a.png 0\n\xff.png 1\n", "line 2: found .* not UTF-8 text; convert it to UTF-8 with iconv"),
    ],
)
def test_a_malformed_list_is_named_by_line(tmp_path, text, message):
    (tmp_path / "label.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        open_records(tmp_path / "label.txt")


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x1d", "\x85", "\u2028", "\u2029", "\xa0", "\u3000"])
def test_only_line_ends_end_a_line_of_a_list(tmp_path, odd):
    name = f"a{odd}b.png"
    (tmp_path / name).write_bytes(IMAGES[3])
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "label.txt").write_bytes(f"{name} 0{end}{end}\ufeff{name} 1{end}".encode())
        records = ListRecords(tmp_path / "label.txt")
        assert [(record.image, record.label) for record in records] == [(IMAGES[3], 0), (IMAGES[3], 1)]
        assert records.describe(1).endswith("line 3)")


@pytest.mark.parametrize(
    "line, hint",
    [
        ('"images/0.png" 0', "the quotes are read as a part of the path"),
        ("'images/0.png' 0", "the quotes are read as a part of the path"),
        (r"images\0.png 0", "the path has backslashes: write / between folders"),
        (r"C:\faces\0.png 0", "the path has backslashes"),
        ("images/0.png, 0", "the path ends in ',': a space or a tab separates it from the label"),
        ("~/faces/0.png 0", "~ is not replaced by a home folder"),
        ("images/9.png 0", "directory$"),
    ],
)
def test_a_usual_mistake_in_a_path_is_named_with_the_missing_image(tmp_path, line, hint):
    folder = make_list(tmp_path / "set")
    (folder / "label.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=f"the image cannot be read: No such file.*{hint}"):
        open_records(folder)[0]


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
        with contextlib.suppress(PLSCError):
            open_records(path)
