"""Runs whose class centers and optimizer state are kept in few bytes: they resume, and their checkpoints are read."""

from __future__ import annotations

import numpy as np
import pytest

from plsc.checkpoint import Checkpoint
from tests._support.checkpoints import assert_equal, contents, names

MODES = {
    "bfloat16 centers": {"center_storage": "bfloat16"},
    "bfloat16 momentum": {"momentum_storage": "bfloat16"},
    "bfloat16 both": {"center_storage": "bfloat16", "momentum_storage": "bfloat16"},
    "adamw": {"center_storage": "bfloat16", "momentum_storage": "bfloat16", "optimizer": "adamw"},
    "lars": {"center_storage": "bfloat16", "momentum_storage": "bfloat16", "optimizer": "lars"},
    "sub-centers": {"center_storage": "bfloat16", "momentum_storage": "bfloat16", "subcenters": 3},
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
    assert len(states) == {"adamw": 2, "none": 0}.get(mode, 1)
    expected = np.uint16 if "momentum_storage" in MODES[mode] else np.float32
    assert all(whole[name].dtype == expected and whole[name].any() for name in states)
    Checkpoint(tmp_path / "whole").verify()
