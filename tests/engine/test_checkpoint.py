"""Checkpoints: whole or not at all, readable on any sharding, never in the way of what is there."""

from __future__ import annotations

import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from plsc import CheckpointError
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine import checkpoint
from plsc.engine.checkpoint import Checkpoint, Part, list_checkpoints, prune_checkpoints, save_checkpoint
from plsc.utils.ranges import Range, shard_ranges

WEIGHT = np.arange(35, dtype=np.float32).reshape(7, 5)


def parts(ranks=3):
    shards = [Part("head.weight", WEIGHT[r.start : r.stop], offset=r.start, rows=7) for r in shard_ranges(7, ranks)]
    return [Part("backbone.w", np.eye(2)), Part("optimizer.step", np.float32(3).reshape([])), *shards]


def save(root, name="0", **options):
    return save_checkpoint(root, name, parts=parts(**options), about={"epoch": 1}, collectives=Collectives())


class ThreadRanks:
    """Collectives of several ranks that are threads of this process; index it for those of one rank."""

    def __init__(self, size):
        self.size, self.values, self.barrier = size, {}, threading.Barrier(size)

    def __getitem__(self, rank):
        topology = Topology(rank, self.size)

        def gather_objects(value):
            self.values[rank] = value
            self.barrier.wait(10)
            gathered = [self.values[other] for other in range(self.size)]
            self.barrier.wait(10)
            return gathered

        return SimpleNamespace(topology=topology, gather_objects=gather_objects)


def edit_manifest(folder, edit):
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@given(st.integers(1, 9), st.integers(0, 7), st.integers(0, 7))
def test_any_range_is_read_from_any_sharding(tmp_path_factory, ranks, one, other):
    rows = Range(min(one, other), max(one, other))
    saved = Checkpoint(save(tmp_path_factory.mktemp("any"), ranks=ranks))
    assert np.array_equal(saved.read("head.weight", rows), WEIGHT[rows.start : rows.stop])


@settings(max_examples=30)
@given(st.integers(1, 9), st.lists(st.integers(0, 6), max_size=12), st.integers(1, 8))
def test_any_rows_are_read_from_any_sharding_block_by_block(ranks, rows, block):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_BLOCK_ROWS", block)
        saved = Checkpoint(save(folder, ranks=ranks))
        assert np.array_equal(saved.read_rows("head.weight", np.asarray(rows, np.int64)), WEIGHT[rows])


def test_whole_tensors_scalars_and_progress_come_back(tmp_path):
    saved = Checkpoint(save(tmp_path))
    assert np.array_equal(saved.read("backbone.w"), np.eye(2))
    assert saved.read("optimizer.step") == 3
    assert (saved.shape("head.weight"), saved.about) == ([7, 5], {"epoch": 1})


def test_file_names_hold_no_rank_and_no_world_size(tmp_path):
    names = {path.name for path in save(tmp_path).iterdir()}
    assert names == {
        "manifest.json",
        "model.safetensors",
        "classes-000000000.safetensors",
        "classes-000000003.safetensors",
        "classes-000000005.safetensors",
    }


def test_the_newest_of_a_folder_is_opened_and_old_ones_are_pruned(tmp_path):
    for name in ("2", "9", "10", "11.40"):
        save(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "3").mkdir()
    assert Checkpoint(tmp_path).path.name == "11.40"
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["10", "11.40"]
    assert {path.name for path in tmp_path.iterdir()} == {"10", "11.40", "notes", "3"}


def test_an_existing_checkpoint_is_never_overwritten(tmp_path):
    save(tmp_path)
    with pytest.raises(CheckpointError, match="exists and is never overwritten"):
        save(tmp_path)


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.safetensors.numpy, "save_file", full)
    with pytest.raises(CheckpointError, match="was not written: .*No space left"):
        save(tmp_path)
    assert list_checkpoints(tmp_path) == []
    monkeypatch.undo()
    assert Checkpoint(save(tmp_path)).path.name == "0"


def save_on_three_ranks(root):
    ranks, shards = ThreadRanks(3), [parts()[:3], parts()[3:4], parts()[4:]]
    with ThreadPoolExecutor(3) as pool:
        return [
            pool.submit(save_checkpoint, root, "0", parts=shards[rank], about={}, collectives=ranks[rank])
            for rank in range(3)
        ]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("IoError: No space left")])
def test_a_failure_on_one_rank_is_raised_on_all_and_leaves_nothing(tmp_path, monkeypatch, error):
    real = checkpoint.safetensors.numpy.save_file

    def full_on_rank_2(tensors, path):
        if path.endswith("5.safetensors"):
            raise error
        real(tensors, path)

    monkeypatch.setattr(checkpoint.safetensors.numpy, "save_file", full_on_rank_2)
    for written in save_on_three_ranks(tmp_path / "out"):
        with pytest.raises(CheckpointError, match="was not written: rank 2: .*No space left"):
            written.result()
    assert list((tmp_path / "out").iterdir()) == []


def test_all_ranks_write_one_checkpoint(tmp_path):
    for written in save_on_three_ranks(tmp_path):
        assert written.result() == tmp_path / "0"
    assert np.array_equal(Checkpoint(tmp_path).read("head.weight"), WEIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_file_cut_short_is_named(tmp_path):
    file = save(tmp_path) / "classes-000000003.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"classes-000000003.safetensors: found \d+ bytes, expected \d+"):
        Checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="found no such file"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", json.dumps({"format": "plsc-checkpoint", "version": 99})])
def test_a_manifest_of_another_kind_is_named(tmp_path, text):
    (save(tmp_path) / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest"):
        Checkpoint(tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no tensor 'head.bias'"):
        Checkpoint(save(tmp_path)).read("head.bias")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "", "..", "a/b"])
def test_a_file_outside_of_the_folder_is_refused(tmp_path, name):
    edit_manifest(save(tmp_path), lambda manifest: manifest["files"].update({name: 1}))
    with pytest.raises(CheckpointError, match="expected the name of a file in the checkpoint's folder"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            lambda m: m["tensors"]["head.weight"].pop("shape"),
            "manifest is damaged: tensors.head.weight.shape: Field req",
        ),
        (lambda m: m["tensors"]["head.weight"]["parts"][0].pop("rows"), r"head.weight.parts.0.rows: Field required"),
        (lambda m: m["tensors"]["head.weight"]["parts"][0].update(file="other"), "'other', which is not among the"),
        (lambda m: m.pop("about"), "about: Field required"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, edit, message):
    edit_manifest(save(tmp_path), edit)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path)


def test_rows_that_no_file_holds_are_named(tmp_path):
    edit_manifest(save(tmp_path), lambda manifest: manifest["tensors"]["head.weight"]["parts"].pop(1))
    saved = Checkpoint(tmp_path)
    assert np.array_equal(saved.read("head.weight", Range(0, 3)), WEIGHT[:3])
    with pytest.raises(CheckpointError, match="row 3 of tensor 'head.weight' is in no file"):
        saved.read("head.weight", Range(1, 7))


def test_a_file_with_damaged_content_is_named(tmp_path):
    file = save(tmp_path) / "classes-000000003.safetensors"
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(CheckpointError, match="classes-000000003.safetensors: tensor 'head.weight' cannot be read"):
        Checkpoint(tmp_path).read("head.weight")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_not_finite_is_not_written(tmp_path, bad, ranks):
    """All ranks fail with the tensor and its row; nothing is left behind."""
    threads = ThreadRanks(ranks)
    shards = [
        Part("head.weight", WEIGHT[r.start : r.stop].copy(), offset=r.start, rows=7) for r in shard_ranges(7, ranks)
    ]
    shards[-1].data[-1, 2] = bad

    def write(rank):
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(tmp_path, "0", parts=[shards[rank]], about={}, collectives=threads[rank])
        return str(caught.value)

    with ThreadPoolExecutor(ranks) as pool:
        messages = set(pool.map(write, range(ranks)))
    (message,) = messages
    where = f"rank {ranks - 1}: " if ranks > 1 else ""
    assert f"was not written: {where}head.weight holds {bad:g} in row 6, expected finite numbers" in message
    assert not list(tmp_path.iterdir())


def test_a_constant_may_hold_infinity(tmp_path):
    mask = np.array([0, -np.inf], np.float32)
    part = Part("backbone.mask", mask, is_finite=False)
    path = save_checkpoint(tmp_path, "0", parts=[part], about={}, collectives=Collectives())
    np.testing.assert_array_equal(Checkpoint(path).read("backbone.mask"), mask)
