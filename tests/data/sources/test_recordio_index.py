"""A `.rec` and what lies beside it: an index that does not fit, other spellings, fewer classes than labels."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from plsc.cli.data import app
from plsc.data.convert.conversion import convert
from plsc.data.recordio import RecordIOWriter
from plsc.data.records import open_records
from plsc.data.subset import SelectedRecords, without_classes_of
from plsc.errors import DataError
from tests._support.sources import IMAGES, make_list, make_rec


@pytest.fixture
def rec(tmp_path):
    return make_rec(tmp_path / "rec")


def test_an_index_that_ends_before_the_file_is_refused(rec):
    lines = (rec / "train.idx").read_text().splitlines(keepends=True)
    (rec / "train.idx").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="the index is cut off or of an older state of the file"):
        open_records(rec)
    (rec / "train.idx").unlink()
    assert len(open_records(rec)) == len(IMAGES)


@pytest.mark.parametrize("left_out", [[0], [2], [1, 3]])
def test_an_index_that_leaves_out_records_is_told(rec, left_out, caplog):
    lines = (rec / "train.idx").read_text().splitlines(keepends=True)
    offsets = [int(line.split("\t")[1]) for line in lines]
    open_records(rec)
    assert "leaves out" not in caplog.text
    (rec / "train.idx").write_text("".join(line for number, line in enumerate(lines) if number not in left_out))
    assert len(open_records(rec)) == len(IMAGES) - len(left_out)
    first = left_out[0]
    assert f"the index leaves out what lies from offset {offsets[first]} to {offsets[first + 1]}" in caplog.text
    assert (", and in 1 more places" in caplog.text) == (len(left_out) > 1)
    assert caplog.text.count("leaves out") == 1


def test_of_a_long_index_the_gaps_are_told_when_labels_are_read(tmp_path, caplog):
    with RecordIOWriter(tmp_path / "train.rec") as writer:
        for n in range(3000):
            writer.write(n, n % 7, IMAGES[n % len(IMAGES)])
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


def test_labels_beyond_the_classes_of_the_set_are_named(rec, tmp_path):
    (rec / "property").write_text("2,8,8\n")
    (rec / "classes.txt").write_text("a\nb\n")
    make_list(tmp_path / "list")
    records = open_records(rec)
    for attempt in (
        lambda: convert(records, tmp_path / "out", to="folders"),
        lambda: SelectedRecords(records, [5, 0], [0, 1, 2]),
        lambda: without_classes_of(records, open_records(tmp_path / "list")),
        lambda: without_classes_of(open_records(tmp_path / "list"), records),
    ):
        with pytest.raises(DataError, match="record [45] at .*label 2 is out of range, expected 0 to 1: the set"):
            attempt()


def test_inspect_tells_of_a_damaged_frame_and_of_another_sets_index(rec):
    whole, index = (rec / "train.rec").read_bytes(), (rec / "train.idx").read_text().splitlines()
    offset = int(index[3].split("\t")[1])
    (rec / "train.rec").write_bytes(whole[:offset] + b"x" + whole[offset + 1 :])
    found = CliRunner().invoke(app, ["inspect", str(rec)])
    assert found.exit_code == 1 and "images            3" in found.stdout and f"offset {offset}" in found.stdout
    (rec / "train.rec").write_bytes(whole)
    (rec / "train.idx").write_text("\n".join(index[:-1]) + "\n")
    found = CliRunner().invoke(app, ["inspect", str(rec)])
    assert found.exit_code == 1 and "images            6" in found.stdout
