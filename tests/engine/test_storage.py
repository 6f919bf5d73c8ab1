"""Runs whose class centers and optimizer state are kept in few bytes: they resume, and their checkpoints are read."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.checkpoint import Checkpoint
from plsc.engine.trainer import Trainer
from plsc.utils.row_types import decoded
from tests._support.checkpoints import assert_equal, contents, names


def clipped(**options):
    """Momentum that is not known row by row."""
    return paddle.optimizer.Momentum(
        momentum=0.9, weight_decay=5e-4, grad_clip=paddle.nn.ClipGradByValue(1e9), **options
    )


MODES = {
    "bfloat16 centers": {"center_storage": "bfloat16"},
    "bfloat16 momentum": {"momentum_storage": "bfloat16"},
    "bfloat16 both": {"center_storage": "bfloat16", "momentum_storage": "bfloat16"},
    "adamw": {"center_storage": "bfloat16", "momentum_storage": "bfloat16", "optimizer": "adamw"},
    "lars": {"center_storage": "bfloat16", "momentum_storage": "bfloat16", "optimizer": "lars"},
    "sub-centers": {"center_storage": "bfloat16", "momentum_storage": "bfloat16", "subcenters": 3},
    "int8 momentum": {"center_storage": "bfloat16", "momentum_storage": "int8"},
    "int8 adamw": {"momentum_storage": "int8", "optimizer": "adamw", "subcenters": 2},
    "none": {"center_storage": "bfloat16", "momentum_storage": "none"},
}


def run(entry, folder, *, epochs, **settings):
    entry.set_with_test(False)
    entry.set_model_save_dir(folder)
    entry.set_train_epochs(epochs)
    entry.set_max_last_checkpoint_num(10)
    for name, value in settings.items():
        setattr(entry, name, value)
    entry.train()
    return entry


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(entry, mode, ratio, tmp_path):
    settings = {"sample_ratio": ratio, **MODES[mode]}
    run(entry, tmp_path / "whole", epochs=2, **settings)
    run(entry, tmp_path / "broken", epochs=1, **settings)
    entry.set_checkpoint_dir(tmp_path / "broken")
    run(entry, tmp_path / "broken", epochs=2)
    assert names(tmp_path / "broken") == names(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert_equal(contents(tmp_path / "broken"), whole)
    assert whole["head.weight"].dtype == (np.uint16 if "center_storage" in MODES[mode] else np.float32)
    states = [name for name in whole if name.startswith("head.weight:")]
    assert len(states) == {"adamw": 2, "int8 adamw": 2, "none": 0}.get(mode, 1)
    types = {"bfloat16": np.uint16, "int8": np.int8}
    for name in states:
        kind = types.get(MODES[mode].get("momentum_storage"), np.float32)
        kind = np.uint16 if kind == np.int8 and name.endswith("moment2") else kind  # of means of squares
        assert whole[name].dtype == kind and whole[name].any()
    Checkpoint(tmp_path / "whole").verify()


STORAGES = {
    "float32": {},
    "bfloat16": {"center_storage": "bfloat16", "momentum_storage": "bfloat16"},
    "int8": {"center_storage": "bfloat16", "momentum_storage": "int8"},
    "unfused": {"loss_type": "dist_arcface", "optimizer": clipped},
}
# The most that a number may be off where it is rounded to the nearest of a type, by the greatest of its row.
OFF = {"float32": 0.0, "bfloat16": 1 / 256, "int8": 0.502 / 127}


@pytest.mark.parametrize("subcenters", [1, 2])
@pytest.mark.parametrize("after", STORAGES)
@pytest.mark.parametrize("before", ["float32", "bfloat16", "int8"])
def test_a_checkpoint_of_any_storage_goes_on_in_any_other(entry, before, after, subcenters, tmp_path):
    run(entry, tmp_path / "before", epochs=1, subcenters=subcenters, **STORAGES[before])
    saved = Checkpoint(tmp_path / "before")
    if after == "unfused" and subcenters > 1:
        pytest.skip("the unfused head has one center a class")
    for name in ("center_storage", "momentum_storage"):
        setattr(entry, name, STORAGES[after].get(name, "float32"))
    if after == "unfused":
        entry.optimizer = clipped
    entry.set_checkpoint_dir(tmp_path / "before")
    entry.set_model_save_dir(tmp_path / "after")
    state = Trainer(entry.config).head.state()
    for name in ("weight", "weight:velocity"):
        held = state[name].numpy()
        found, expected = (decoded(values, 16).astype(np.float64) for values in (held, saved.read(f"head.{name}")))
        kept = "float32" if held.dtype == np.float32 else "bfloat16" if held.dtype == np.uint16 else "int8"
        greatest = np.abs(expected).max(axis=-1, keepdims=True)
        assert np.abs(expected).max() > 0
        assert (np.abs(found - expected) <= OFF[kept] * greatest).all(), name
        if held.dtype == saved.dtype(f"head.{name}"):
            np.testing.assert_array_equal(held, saved.read(f"head.{name}"))
    run(entry, tmp_path / "after", epochs=2)
