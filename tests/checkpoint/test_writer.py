"""The steps of writing a checkpoint: what each refuses, how other readers see the files, and kills at any point."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from plsc import CheckpointError
from plsc.checkpoint import (
    Checkpoint,
    Part,
    abandon,
    begin,
    complete,
    delete_checkpoint,
    list_checkpoints,
    reader,
    remove_leftovers,
    save_checkpoint,
    write_parts,
    writer,
)
from plsc.distributed.collectives import Collectives
from plsc.utils.ranges import Range, shard_ranges
from plsc.utils.safetensors_file import DTYPES
from tests._support.killing import kill_at_each_step

CENTERS = np.arange(35, dtype=np.float32).reshape(7, 5)


def shard(start, stop, rows=7, values=CENTERS):
    return Part("head.weight", values[start:stop], offset=start, rows=rows)


def save(root, name="0", ranks=3):
    parts = [Part("backbone.w", np.eye(3)), *(shard(r.start, r.stop) for r in shard_ranges(7, ranks))]
    return save_checkpoint(root, name, parts=parts, about={"name": name}, collectives=Collectives())


class Numbers:
    """Rows that are made when they are read."""

    def __init__(self, rows, dtype="float32"):
        self.shape, self.dtype, self.asked = (rows, 8), np.dtype(dtype), []

    def read(self, start, stop):
        self.asked.append((start, stop))
        return np.arange(start * 8, stop * 8, dtype=self.dtype).reshape(-1, 8)


def test_rows_are_asked_for_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 4 * 32)
    numbers = Numbers(10)
    save_checkpoint(tmp_path, "0", parts=[Part("n", numbers)], about={}, collectives=Collectives())
    assert numbers.asked == [(0, 4), (4, 8), (8, 10)]
    np.testing.assert_array_equal(Checkpoint(tmp_path).read("n"), np.arange(80, dtype=np.float32).reshape(10, 8))


def test_four_steps_write_what_one_call_writes(tmp_path):
    whole = save(tmp_path / "whole")
    folder = tmp_path / "steps" / "0"
    begin(folder)
    for rank, rows in enumerate(shard_ranges(7, 3)):
        parts = [shard(rows.start, rows.stop)]
        write_parts(folder, parts if rank else [Part("backbone.w", np.eye(3)), *parts], rank=rank)
        assert list_checkpoints(folder.parent) == []
    complete(folder, {"name": "0"}, ranks=3)
    for file in whole.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == ["0"]


@pytest.mark.parametrize(
    "parts, message",
    [
        ([[shard(0, 3)], [shard(4, 7)]], "head.weight: the ranks do not hold every row once: found rows 4 to 7"),
        ([[shard(0, 3)], [shard(2, 7)]], "head.weight: the ranks do not hold every row once: found rows 2 to 7"),
        ([[shard(0, 3)], [shard(3, 6)]], "head.weight: the ranks do not hold every row once: row 6 is in no file"),
        ([[shard(0, 3)], []], "row 3 is in no file"),
        ([[shard(0, 3)], [shard(3, 7, rows=8)]], r"head.weight is \[7, 5\] of float32 on one rank, \[8, 5\] of"),
        ([[shard(0, 3)], [shard(3, 7, values=CENTERS.astype("f8"))]], "of float32 on one rank, .* of float64"),
    ],
)
def test_parts_that_do_not_fit_together_make_no_checkpoint(tmp_path, parts, message):
    folder = tmp_path / "0"
    begin(folder)
    for rank, held in enumerate(parts):
        write_parts(folder, held, rank=rank)
    with pytest.raises(CheckpointError, match=message):
        complete(folder, {}, ranks=2)
    abandon(folder)
    abandon(folder)
    assert list(tmp_path.iterdir()) == []


def test_two_parts_of_one_file_or_a_rank_that_is_not_seen_make_no_checkpoint(tmp_path):
    folder = tmp_path / "0"
    begin(folder)
    write_parts(folder, [shard(0, 3)], rank=0)
    with pytest.raises(CheckpointError, match="classes-000000000.safetensors: cannot be written: .*File exists"):
        write_parts(folder, [shard(0, 7)], rank=1)
    with pytest.raises(CheckpointError, match="rank-00001.json was written by another rank but is not seen by rank 0"):
        complete(folder, {}, ranks=2)
    abandon(folder)
    with pytest.raises(CheckpointError, match="was made by rank 0 but is not seen by this rank"):
        write_parts(folder, [], rank=1)


def test_two_writers_of_one_checkpoint_are_kept_apart(tmp_path):
    begin(tmp_path / "0")
    with pytest.raises(CheckpointError, match="another process is writing it"):
        begin(tmp_path / "0")
    write_parts(tmp_path / "0", [shard(0, 7)], rank=0)
    complete(tmp_path / "0", {}, ranks=1)
    with pytest.raises(CheckpointError, match="exists and is never overwritten"):
        begin(tmp_path / "0")


@pytest.mark.parametrize("ranks", [1, 3])
def test_other_readers_find_every_tensor_by_the_index(tmp_path, ranks):
    folder = save(tmp_path, ranks=ranks)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": CENTERS.nbytes + 9 * 8}
    found = {}
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(folder / file, "numpy") as opened:
            found[name] = opened.get_tensor(name)
    np.testing.assert_array_equal(found.pop("backbone.w"), np.eye(3))
    assert list(found) == (
        ["head.weight"] if ranks == 1 else ["head.weight.rows-0-3", "head.weight.rows-3-5", "head.weight.rows-5-7"]
    )
    np.testing.assert_array_equal(np.concatenate(list(found.values())), CENTERS)


ARRAYS = st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=5))
def test_safetensors_reads_what_is_written_of_any_type_and_shape(tmp_path_factory, kinds):
    arrays = {}
    for number, (dtype, shape, is_swapped) in enumerate(kinds):
        values = np.random.default_rng(number).integers(0, 100, shape).astype(dtype)
        arrays[f"t{number}é"] = values.astype(values.dtype.newbyteorder(">")) if is_swapped else values.T
    parts = [Part(name, value) for name, value in arrays.items()]
    folder = save_checkpoint(tmp_path_factory.mktemp("c"), "0", parts=parts, about={}, collectives=Collectives())
    saved, file = Checkpoint(folder), folder / "model.safetensors"
    saved.verify()
    found = load_file(file) if file.exists() else {}
    for name, value in arrays.items():
        read = saved.read(name)
        assert read.dtype.name == value.dtype.name and read.shape == value.shape
        np.testing.assert_array_equal(read, value)
        if value.shape[:1] != (0,):
            np.testing.assert_array_equal(found[name], value)


def test_a_type_that_files_do_not_have_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"backbone.w is of complex128, expected one of bool, "):
        save_checkpoint(tmp_path, "0", parts=[Part("backbone.w", np.eye(2) * 1j)], about={}, collectives=Collectives())


# Kills


def check_after_kill(root, expected):
    """Every checkpoint is sound; leftovers go; the same save can be made again."""
    for path in list_checkpoints(root):
        Checkpoint(path).verify()
    remove_leftovers(root)
    assert [path.name for path in list_checkpoints(root)] == sorted(path.name for path in root.iterdir())
    names = {path.name for path in list_checkpoints(root)}
    assert names in expected


def test_a_kill_at_any_point_of_a_save_leaves_no_half_checkpoint(tmp_path):
    def prepare(root):
        save(root, "0", ranks=2)

    killed = kill_at_each_step(prepare, lambda root: save(root, "1", ranks=2), tmp_path)
    assert len(killed) > 10
    for root in killed:
        check_after_kill(root, [{"0"}, {"0", "1"}])
        if not (root / "1").exists():
            save(root, "1")


def test_a_kill_at_any_point_of_a_deletion_leaves_no_half_checkpoint(tmp_path):
    def prepare(root):
        for name in ("0", "1", "2"):
            save(root, name, ranks=1)

    def delete(root):
        for name in ("0", "1"):
            delete_checkpoint(root / name)

    killed = kill_at_each_step(prepare, delete, tmp_path)
    assert len(killed) > 6
    for root in killed:
        check_after_kill(root, [{"0", "1", "2"}, {"1", "2"}, {"2"}])


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    save(tmp_path, "3")
    others = [".3.plsc-partial.old", "3.plsc-partial", ".model.plsc-partial", ".3.plsc-old", ".partial", "notes"]
    for name in (".3.plsc-partial", ".12.400.plsc-partial", *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x")
    (tmp_path / ".4.plsc-partial").write_text("a file of the user's")
    (tmp_path / ".5.plsc-partial").symlink_to(tmp_path / "notes")
    removed = remove_leftovers(tmp_path)
    assert [path.name for path in removed] == [".12.400.plsc-partial", ".3.plsc-partial"]
    assert {path.name for path in tmp_path.iterdir()} == {"3", ".4.plsc-partial", ".5.plsc-partial", *others}
    assert remove_leftovers(tmp_path / "none") == []


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_no_file_of_classes_is_larger_than_the_limit(tmp_path, monkeypatch, ranks):
    """All tensors of a class lie in one file, and what is read is the same, on any ranks."""
    monkeypatch.setattr(writer, "LARGEST_FILE", 2 * (20 + 10) + 5)  # two rows of both tensors
    momentum = np.arange(35, dtype=np.uint16).reshape(7, 5)
    parts = [Part("backbone.w", np.eye(30))]
    for own in shard_ranges(7, ranks):
        parts.append(shard(own.start, own.stop))
        parts.append(Part("head.weight:velocity", momentum[own.start : own.stop], offset=own.start, rows=7))
    saved = Checkpoint(save_checkpoint(tmp_path, "0", parts=parts, about={}, collectives=Collectives()))
    saved.verify()
    np.testing.assert_array_equal(saved.read("head.weight"), CENTERS)
    np.testing.assert_array_equal(saved.read("head.weight:velocity"), momentum)
    np.testing.assert_array_equal(saved.read("head.weight", Range(1, 6)), CENTERS[1:6])
    assert saved.parts("head.weight") == saved.parts("head.weight:velocity")
    files = sorted(tmp_path.glob("0/classes-*.safetensors"))
    assert len(files) == {1: 4, 2: 4, 3: 4}[ranks]
    assert all(sum(array.nbytes for array in load_file(path).values()) <= 60 for path in files)
