"""Checkpoints: whole or not at all, readable on any sharding, never in the way of what is there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc import CheckpointError
from plsc.distributed.collectives import Collectives
from plsc.engine import checkpoint
from plsc.engine.checkpoint import Checkpoint, Part, list_checkpoints, prune_checkpoints, save_checkpoint
from plsc.utils.ranges import Range, shard_ranges

WEIGHT = np.arange(35, dtype=np.float32).reshape(7, 5)


def parts(ranks=3):
    shards = [Part("head.weight", WEIGHT[r.start : r.stop], r.start, 7) for r in shard_ranges(7, ranks)]
    return [Part("backbone.w", np.eye(2)), Part("optimizer.step", np.float32(3).reshape([])), *shards]


def save(root, name="0", **options):
    return save_checkpoint(root, name, parts(**options), {"epoch": 1}, Collectives())


@given(st.integers(1, 9), st.integers(0, 7), st.integers(0, 7))
def test_any_range_is_read_from_any_sharding(tmp_path_factory, ranks, one, other):
    rows = Range(min(one, other), max(one, other))
    saved = Checkpoint(save(tmp_path_factory.mktemp("any"), ranks=ranks))
    assert np.array_equal(saved.read("head.weight", rows), WEIGHT[rows.start : rows.stop])


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
    with pytest.raises(CheckpointError, match="was not written: rank 0: .*No space left"):
        save(tmp_path)
    assert list_checkpoints(tmp_path) == []
    monkeypatch.undo()
    assert Checkpoint(save(tmp_path)).path.name == "0"


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
