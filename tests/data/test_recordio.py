"""The RecordIO format: the bytes that the writer writes."""

from __future__ import annotations

import struct

import pytest

from plsc.data.recordio import MAGIC, MAX_LABEL, RecordIOWriter, frames
from plsc.data.sources.recordio import RecordIORecords
from plsc.errors import DataError
from tests._support.sources import OMNIGLOT, write_rec

MAGIC_BYTES = struct.pack("<I", MAGIC)


def test_a_payload_with_the_magic_on_a_boundary_is_cut_in_three_parts():
    payload = b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES + b"i"
    expected = b""
    for continuation, part in ((1, b"abcd"), (2, b"efgh"), (3, b"i")):
        expected += MAGIC_BYTES + struct.pack("<I", continuation << 29 | len(part)) + part
    assert frames(payload) == expected + bytes(3)


def test_writing_goes_on_where_it_stopped(tmp_path):
    whole = write_rec(tmp_path / "whole.rec", [b"%d" % n for n in range(6)])
    writer = RecordIOWriter(tmp_path / "cut.rec")
    for key in range(3):
        writer.write(key, key % 3, image=b"%d" % key)
    position = writer.position()
    writer.write(99, 0, image=b"lost when the process died")
    writer.close()
    with RecordIOWriter(tmp_path / "cut.rec", resume_at=position) as writer:
        for key in range(3, 6):
            writer.write(key, key % 3, image=b"%d" % key)
    for suffix in (".rec", ".idx"):
        assert (tmp_path / "cut.rec").with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()


def test_the_writer_overwrites_nothing_and_rounds_no_label(tmp_path):
    path = write_rec(tmp_path / "train.rec", [b"a"])
    with pytest.raises(DataError, match="train.rec exists already; nothing is overwritten"):
        RecordIOWriter(path)
    with RecordIOWriter(tmp_path / "big.rec") as writer:
        writer.write(0, MAX_LABEL, image=b"a")
        with pytest.raises(DataError, match="label 16777217 does not fit RecordIO"):
            writer.write(1, MAX_LABEL + 1, image=b"a")
    assert RecordIORecords(tmp_path / "big.rec")[0].label == MAX_LABEL


def test_our_writer_writes_the_bytes_that_mxnet_wrote(tmp_path):
    folder = OMNIGLOT / "im2rec_layout"
    records = RecordIORecords(folder / "train.rec")
    with RecordIOWriter(tmp_path / "train.rec") as writer:
        for index in range(len(records)):
            record = records.read(index)
            writer.write(record.key, float(record.labels[0]), image=record.image)
    for name in ("train.rec", "train.idx"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
