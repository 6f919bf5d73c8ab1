"""RecordIO files as records: both layouts, with and without index; damage is reported."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.data.recordio import MAGIC, RecordIOWriter, frames, pack
from plsc.data.sources import open_records
from plsc.data.sources.recordio import RecordIORecords
from plsc.errors import DataError, PLSCError
from tests._support.sources import IMAGES, LABELS, OMNIGLOT, fuzz, make_rec, write_rec

MAGIC_BYTES = struct.pack("<I", MAGIC)


def write_faces(path: Path, images_per_class: int = 3, classes: int = 4) -> Path:
    """The face-set layout by its description: images 1 ... n - 1, class ranges, header last under key 0."""
    with RecordIOWriter(path) as writer:
        count = images_per_class * classes
        for key in range(1, count + 1):
            writer.write(key, (key - 1) // images_per_class, image=b"image%d" % key)
        for number in range(classes):
            begin = 1 + number * images_per_class
            writer.write(count + 1 + number, [begin, begin + images_per_class], image=b"")
        writer.write(0, [count + 1, count + 1 + classes], image=b"")
    return path


def make_face_set(folder, stated, images=6):
    folder.mkdir()
    with RecordIOWriter(folder / "train.rec") as writer:
        writer.write(0, [stated, stated + 3], image=b"")
        for n in range(images):
            writer.write(n + 1, LABELS[n], image=IMAGES[n])
        for n in range(3):
            writer.write(images + 1 + n, [1 + 2 * n, 3 + 2 * n], image=b"")
    return folder


def all_read(path: Path, **options) -> None:
    records = RecordIORecords(path, **options)
    for index in range(len(records)):
        records[index]


@pytest.fixture
def rec(tmp_path):
    return make_rec(tmp_path / "rec")


@given(
    images=st.lists(
        st.lists(st.sampled_from([MAGIC_BYTES, b"a", b"bcd", b"\x00" * 5]), max_size=6), min_size=1, max_size=8
    ),
    indexed=st.booleans(),
)
@fuzz
def test_any_bytes_return_as_written_even_those_that_hold_the_magic(images, indexed, tmp_path_factory):
    path = tmp_path_factory.mktemp("rec") / "train.rec"
    images = [b"".join(pieces) or b"x" for pieces in images]
    write_rec(path, images)
    if not indexed:
        path.with_suffix(".idx").unlink()
    records = RecordIORecords(path)
    assert [record.image for record in records] == images
    assert [record.label for record in records] == records.labels.tolist() == [n % 3 for n in range(len(images))]
    assert path.stat().st_size % 4 == 0


def test_a_magic_inside_the_header_is_read_with_the_labels(tmp_path):
    path = tmp_path / "train.rec"
    with RecordIOWriter(path) as writer:
        writer.write(MAGIC, 7, image=b"image")
    records = RecordIORecords(path)
    assert records.labels.tolist() == [7]
    assert records[0] == (b"image", 7)
    assert records.read(0).key == MAGIC


def test_label_vectors_give_the_class_first_and_stay_whole(tmp_path):
    records = RecordIORecords(write_rec(tmp_path / "train.rec", [b"a", b"b"], [[5, 0.25, 3], [2, 1]]))
    assert [record.label for record in records] == records.labels.tolist() == [5, 2]
    assert records.read(0).labels.tolist() == [5, 0.25, 3]
    assert records.num_classes == 6


@pytest.mark.parametrize("indexed", [True, False])
def test_face_set_layout_yields_images_only(tmp_path, indexed):
    path = write_faces(tmp_path / "train.rec")
    if not indexed:
        path.with_suffix(".idx").unlink()
    records = RecordIORecords(path)
    assert [record.image for record in records] == [b"image%d" % key for key in range(1, 13)]
    assert records.num_classes == 4
    assert records.without_image == 5
    assert records.format == f"RecordIO, face-set layout, {'with' if indexed else 'without'} index"


def test_property_gives_the_class_count(tmp_path):
    path = write_faces(tmp_path / "train.rec")
    (tmp_path / "property").write_text("85742,112,112\n")
    assert RecordIORecords(path).num_classes == 85742
    (tmp_path / "property").write_text("many")
    with pytest.raises(DataError, match=r"property: got b'many', expected the class count first"):
        RecordIORecords(path)


def test_records_survive_pickling_and_are_read_by_offset_in_any_order(tmp_path):
    records = RecordIORecords(write_rec(tmp_path / "train.rec", [b"%d" % n for n in range(50)]))
    records[0]
    copy = pickle.loads(pickle.dumps(records))
    for index in random.Random(0).sample(range(50), 50):
        assert copy[index] == records[index] == (b"%d" % index, index % 3)


@pytest.mark.parametrize(
    "layout, images, classes, label_sum",
    [("faces_layout", 16, 4, 4 * (0 + 1 + 2 + 3)), ("im2rec_layout", 16, 38, 343)],
)
def test_files_of_mxnet_read_the_same_with_and_without_index(layout, images, classes, label_sum, tmp_path):
    folder = OMNIGLOT / layout
    start = time.perf_counter()
    records = RecordIORecords(folder / "train.rec")
    opened = time.perf_counter() - start
    assert (len(records), records.num_classes) == (images, classes)
    assert opened < 0.05
    (tmp_path / "train.rec").symlink_to((folder / "train.rec").resolve())
    walked = RecordIORecords(tmp_path / "train.rec")
    assert list(walked) == list(records)
    assert walked.labels.tolist() == records.labels.tolist() == [record.label for record in records]
    assert all(record.image[:2] == b"\xff\xd8" for record in records)
    assert records.labels.sum() == label_sum


def test_a_cut_file_names_the_offset_and_yields_what_lies_before(tmp_path):
    path = write_rec(tmp_path / "train.rec", [b"x" * 100] * 10)
    path.write_bytes(path.read_bytes()[: 132 * 7 + 50])
    with pytest.raises(DataError, match=r"train\.idx: line 10 points at offset 1188, expected 0 to 973"):
        RecordIORecords(path)
    path.with_suffix(".idx").unlink()
    expected = r"train\.rec, offset 924: the file ends 82 bytes too early, at 974, expected a record of 124 bytes"
    with pytest.raises(DataError, match=expected):
        RecordIORecords(path)
    records = RecordIORecords(path, recover=True)
    assert len(records) == 7
    assert "offset 924" in records.damage
    all_read(path, recover=True)


def test_a_file_cut_inside_its_last_record_fails_at_opening(tmp_path):
    path = write_rec(tmp_path / "train.rec", [b"x" * 100] * 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="offset 264: the file ends 1 byte too early"):
        RecordIORecords(path)
    assert len(RecordIORecords(path, recover=True)) == 2


def test_a_wrong_magic_is_named_at_the_record(tmp_path):
    path = write_rec(tmp_path / "train.rec", [b"x" * 100] * 3)
    data = bytearray(path.read_bytes())
    data[132:136] = b"abcd"
    path.write_bytes(data)
    records = RecordIORecords(path)
    assert records[0].label == 0
    with pytest.raises(DataError, match="offset 132: found 0x64636261, expected the magic 0xced7230a"):
        records[1]
    assert len(RecordIORecords(path, recover=True)) == 1


def test_a_part_out_of_place_is_damage(tmp_path):
    first = frames(pack(0, 0, image=b"a" * 8 + MAGIC_BYTES + b"b" * 8))
    lone = bytearray(frames(pack(0, 1, image=b"whole")))
    path = tmp_path / "train.rec"
    path.write_bytes(first[:40] + lone)
    with pytest.raises(DataError, match="expected a further"):
        RecordIORecords(path)
    lone[7] |= 3 << 5
    path.write_bytes(lone)
    with pytest.raises(DataError, match="found part 3, expected the start of one"):
        RecordIORecords(path)


@pytest.mark.parametrize(
    "index, message",
    [
        ("0\t0\n1\t4000000\n", "line 2 points at offset 4000000, expected 0 to 395"),
        ("0\t0\n1\t4\n", "offset 4: found 0x"),
        ("0\t0\nzwei\n", r"line 2: got b'zwei', expected 'key<TAB>offset'"),
        ("0\t0\n0\t132\n", "key 0 stands there twice"),
        ("0 0 0\n", r"line 1: got b'0 0 0'"),
        ("0\t0.5\n", r"line 1: got b'0\\t0.5'"),
        ("", "the index is empty"),
    ],
)
def test_an_index_that_does_not_fit_is_named(tmp_path, index, message):
    path = write_rec(tmp_path / "train.rec", [b"x" * 100] * 3)
    path.with_suffix(".idx").write_text(index)
    with pytest.raises(DataError, match=message):
        all_read(path)


def test_a_face_set_that_lacks_images_is_not_read_as_whole(tmp_path):
    path = write_faces(tmp_path / "train.rec")
    index = path.with_suffix(".idx")
    index.write_text("".join(line for line in index.read_text().splitlines(True) if not line.startswith("5\t")))
    with pytest.raises(DataError, match="keys 1 to 12 are images, but key 5 is not in the index"):
        RecordIORecords(path)
    index.unlink()
    data = path.read_bytes()
    path.write_bytes(data[40:])  # the first image's record is 24 + 6 bytes in a frame of 8
    with pytest.raises(DataError, match="the header record says 12 images, found 11"):
        RecordIORecords(path)
    assert "says 12 images, found 11" in RecordIORecords(path, recover=True).damage


@pytest.mark.parametrize(
    "payload, message",
    [
        (b"short", "the record has 5 bytes, expected at least 24"),
        (struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0) + b"img", "says 4294967295 labels and has 27 bytes"),
        (struct.pack("<IfQQ", 0, 0.5, 0, 0) + b"img", r"label \[0.5\] is no class"),
        (struct.pack("<IfQQ", 0, -1, 0, 0) + b"img", r"label \[-1.0\] is no class"),
        (struct.pack("<IfQQ", 0, float("nan"), 0, 0) + b"img", r"label \[nan\] is no class"),
        (struct.pack("<IfQQ", 0, float("inf"), 0, 0) + b"img", r"label \[inf\] is no class"),
    ],
)
def test_a_record_that_is_no_image_record_is_named(tmp_path, payload, message):
    path = tmp_path / "train.rec"
    path.write_bytes(frames(pack(1, 0, image=b"good")) + frames(payload))
    records = RecordIORecords(path)
    assert records[0] == (b"good", 1)
    with pytest.raises(DataError, match=message):
        records[1]
    with pytest.raises(DataError, match=message):
        records.labels  # noqa: B018


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(DataError, match="train.rec: the file cannot be read"):
        RecordIORecords(tmp_path / "train.rec")
    (tmp_path / "train.rec").write_bytes(b"")
    with pytest.raises(DataError, match="train.rec: the file is empty"):
        RecordIORecords(tmp_path / "train.rec")


payloads = st.binary(max_size=60) | st.builds(pack, st.integers(0, 9), st.integers(0, 9), image=st.binary(max_size=9))


@given(
    payloads=st.lists(payloads, max_size=5),
    noise=st.none() | st.binary(max_size=200),
    cut=st.integers(0, 60),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    index=st.none() | st.binary(max_size=40) | st.from_regex(rb"([0-9]{1,2}\t[0-9]{1,3}\n){0,4}", fullmatch=True),
)
@fuzz
def test_fuzz_raises_data_error_only(payloads, noise, cut, flips, index, tmp_path_factory):
    data = b"".join(map(frames, payloads)) if noise is None else noise
    data = bytearray(data[: max(0, len(data) - cut)])
    for position, value in flips:
        if data:
            data[position % len(data)] = value
    path = tmp_path_factory.mktemp("fuzz") / "train.rec"
    path.write_bytes(data)
    if index is not None:
        path.with_suffix(".idx").write_bytes(index)
    for recover in (False, True):
        with contextlib.suppress(PLSCError):
            records = RecordIORecords(path, recover=recover)
            for number in range(len(records)):
                with contextlib.suppress(PLSCError):
                    assert len(records[number].image) <= len(data)
            assert len(records.labels) == len(records)


@pytest.mark.parametrize(
    "stated, message",
    [
        (5, "keys 1 to 4 are the images, but key 5 is an image"),
        (8, "keys 1 to 7 are the images, but key 7 is no image"),
    ],
)
def test_a_face_set_with_another_number_of_images_than_its_header_says(tmp_path, stated, message):
    with pytest.raises(DataError, match=message):
        open_records(make_face_set(tmp_path / "set", stated))
    assert len(open_records(make_face_set(tmp_path / "whole", 7))) == 6


def test_a_rec_cut_between_two_records_is_damaged_by_its_index(tmp_path):
    folder = make_rec(tmp_path / "set")
    offsets = [int(text.split()[1]) for text in (folder / "train.idx").read_text().splitlines()]
    os.truncate(folder / "train.rec", offsets[4])
    records = open_records(folder, recover=True)
    assert len(records) == 4
    assert "names 6 records, 2 of them not found" in records.damage
    (folder / "train.idx").unlink()
    assert open_records(folder, recover=True).damage is None


def test_an_index_that_ends_before_the_file_is_refused(rec):
    lines = (rec / "train.idx").read_text().splitlines(keepends=True)
    (rec / "train.idx").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="the index is cut off or of an older state of the file"):
        open_records(rec)
    (rec / "train.idx").unlink()
    assert len(open_records(rec)) == len(IMAGES)


@pytest.mark.parametrize("left_out", [[0], [2], [1, 3]])
def test_an_index_that_leaves_out_records_is_warned_of(rec, left_out, caplog):
    lines = (rec / "train.idx").read_text().splitlines(keepends=True)
    offsets = [int(line.split("\t")[1]) for line in lines]
    open_records(rec)
    assert "leaves out" not in caplog.text
    (rec / "train.idx").write_text("".join(line for number, line in enumerate(lines) if number not in left_out))
    assert len(open_records(rec)) == len(IMAGES) - len(left_out)
    first = left_out[0]
    assert f"the index leaves out what lies from offset {offsets[first]} to {offsets[first + 1]}" in caplog.text
    assert (", and in 1 more place" in caplog.text) == (len(left_out) > 1)
    assert caplog.text.count("leaves out") == 1


def test_gaps_of_a_long_index_are_warned_of_when_labels_are_read(tmp_path, caplog):
    with RecordIOWriter(tmp_path / "train.rec") as writer:
        for n in range(3000):
            writer.write(n, n % 7, image=IMAGES[n % len(IMAGES)])
    lines = (tmp_path / "train.idx").read_text().splitlines(keepends=True)
    (tmp_path / "train.idx").write_text("".join(lines[:1001] + lines[1002:]))
    records = open_records(tmp_path)
    assert len(records) == 2999 and records.num_classes == 7
    assert caplog.text.count("leaves out") == 1


def test_two_keys_at_one_offset_are_refused(rec):
    lines = (rec / "train.idx").read_text().splitlines()
    offset = lines[2].split("\t")[1]
    lines[1] = lines[1].split("\t")[0] + "\t" + offset
    (rec / "train.idx").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=f"two keys point at offset {offset}"):
        open_records(rec)


def test_suffixes_in_capitals(rec):
    for name in ("train.rec", "train.idx"):
        (rec / name).rename(rec / name.upper().replace("IDX", "idx"))
    assert len(open_records(rec / "TRAIN.REC")) == len(IMAGES)
