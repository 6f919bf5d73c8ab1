"""Tar shards: which files are samples; damage and links are refused."""

from __future__ import annotations

import contextlib
import gzip
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.data.images import IMAGE_SUFFIXES
from plsc.data.sources import open_records
from plsc.data.sources.base64_text import Base64Records
from plsc.data.sources.tar_shards import TarRecords, expand_range
from plsc.errors import DataError, PLSCError
from tests._support.sources import (
    IMAGES,
    add,
    fuzz,
    make_base64,
    make_tar,
    pack_tar,
)


def test_tar_samples_with_dots_in_their_names(tmp_path):
    names = ["0", "img.001", "img.002", "v1.0/a.b"]
    pack_tar(
        tmp_path / "a.tar",
        [
            file
            for number, name in enumerate(names)
            for file in (
                (f"{name}.png", IMAGES[number]),
                (f"{name}.cls", str(number).encode()),
                (f"{name}.seg.txt", b""),
            )
        ],
    )
    records = open_records(tmp_path / "a.tar")
    assert [(record.image, record.label) for record in records] == [(IMAGES[n], n) for n in range(4)]


def test_further_files_of_a_tar_sample_are_no_samples(tmp_path):
    pack_tar(
        tmp_path / "a.tar", [("x.cls", b"3"), ("x.jpg", IMAGES[0]), ("x.seg.png", IMAGES[1]), ("x.depth.png", b"")]
    )
    assert list(open_records(tmp_path / "a.tar")) == [(IMAGES[0], 3)]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_tar_shards_are_refused(tmp_path, kind):
    pack_tar(tmp_path / "a.tar", [("0.png", IMAGES[0]), ("0.cls", b"0")], [("1.png", kind)])
    with pytest.raises(DataError, match="1.png is a link; pack the files themselves"):
        open_records(tmp_path / "a.tar")


def test_two_classes_of_one_tar_sample_are_refused(tmp_path):
    pack_tar(tmp_path / "a.tar", [("0.png", IMAGES[0]), ("0.cls", b"0"), ("0.cls", b"1")])
    with pytest.raises(DataError, match="sample '0' has two classes"):
        open_records(tmp_path / "a.tar")


def test_a_second_archive_behind_the_end_of_a_tar_is_refused(tmp_path):
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            add(tar, f"{name}.png", IMAGES[0])
            add(tar, f"{name}.cls", b"0")
    (tmp_path / "all.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    with pytest.raises(DataError, match="more comes after its end; were several joined by cat"):
        open_records(tmp_path / "all.tar")


def test_a_preview_in_a_tar_is_no_second_image(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for suffix, data in (("png", IMAGES[0]), ("gif", b"GIF89a"), ("cls", b"3")):
            add(tar, f"a.{suffix}", data)
    assert open_records(tmp_path / "a.tar")[0] == (IMAGES[0], 3)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_kind_of_image_is_the_image_of_a_sample(tmp_path, suffix):
    pack_tar(
        tmp_path / "a.tar", [(f"0{suffix}", IMAGES[0]), ("0.cls", b"3"), ("1.cls", b"4"), (f"1{suffix.upper()}", b"x")]
    )
    assert list(open_records(tmp_path / "a.tar")) == [(IMAGES[0], 3), (b"x", 4)]


@pytest.mark.parametrize("beside", [".gif", ".pgm", ".jp2", ".avif"])
@pytest.mark.parametrize("first", [True, False])
def test_beside_a_jpeg_a_preview_or_mask_is_no_image_in_any_order(tmp_path, beside, first):
    files = [("a.jpeg", IMAGES[0]), (f"a{beside}", IMAGES[1])]
    pack_tar(tmp_path / "a.tar", [*(files if first else files[::-1]), ("a.cls", b"3")])
    assert list(open_records(tmp_path / "a.tar")) == [(IMAGES[0], 3)]
    pack_tar(tmp_path / "b.tar", [("a.gif", IMAGES[0]), ("a.pgm", IMAGES[1]), ("a.cls", b"3")])
    with pytest.raises(DataError, match="sample 'a' has two images, 'a.gif' and 'a.pgm'"):
        open_records(tmp_path / "b.tar")


def test_what_macos_packs_beside_the_files_is_no_sample(tmp_path, caplog):
    files = [("./0.png", IMAGES[0]), ("./._0.png", b"x"), ("./._0.cls", b"x"), ("./0.cls", b"3")]
    pack_tar(tmp_path / "a.tar", [*files, ("__MACOSX/0.png", IMAGES[1]), ("#recycle/1.png", IMAGES[2])])
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7")
    assert list(open_records(tmp_path)) == [(IMAGES[0], 3)]
    assert "ignored 4 paths, hidden or left behind by other programs: #recycle (1)" in caplog.text


@pytest.mark.parametrize("fields", [{"label": "3"}, {"label": 3.0}, {"label": None, "cls": 3}, {"cls": 3}])
def test_classes_of_tar_as_json_has_them(tmp_path, fields):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.png", IMAGES[0])
        add(tar, "a.json", json.dumps(fields).encode())
    assert open_records(tmp_path / "a.tar").labels.tolist() == [3]


def test_a_damaged_tar_raises_data_error(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "n" * 200 + ".png", IMAGES[0])
        add(tar, "n" * 200 + ".cls", b"0")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[124:136] = b"\x80" + (1 << 70).to_bytes(11, "big")  # the size of the long name
    checksum = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    data[148:156] = b"%06o\0 " % checksum
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match="damaged, cut off or no tar"):
        open_records(tmp_path / "a.tar")


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
