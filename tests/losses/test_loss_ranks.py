"""Losses that are more than one formula, on 1 to 4 real ranks: several ranks train as one, resumed as unbroken."""

from __future__ import annotations

import numpy as np
import pytest

from tests._support.head_oracle import relative_error
from tests._support.ranks import launch
from tests._support.workers.cases import LOSS_SETTINGS

STEPS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{ranks: what each rank found}."""
    found = {}
    for ranks in (1, 2, 3, 4):
        folder = tmp_path_factory.mktemp(f"losses{ranks}")
        launch(ranks, "loss_worker.py", folder, log_dir=folder / "log")
        found[ranks] = [dict(np.load(folder / f"{rank}.npz")) for rank in range(ranks)]
    return found


def whole(found, key, name, sharded):
    """A tensor of all classes, or of the whole batch."""
    parts = [part[f"{key}/{name}"] for part in found]
    return np.concatenate(parts) if sharded or name.startswith("features") else parts[-1]


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["sharded", "replicated"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", LOSS_SETTINGS)
def test_several_ranks_train_as_one(runs, name, ranks, kind):
    found, (expected,) = runs[ranks], runs[1]
    one, key, sharded = f"{name}/sharded", f"{name}/{kind}", kind == "sharded"
    for step in range(STEPS):
        losses = [part[f"{key}/loss {step}"] for part in found]
        np.testing.assert_allclose(losses, expected[f"{one}/loss {step}"], rtol=2e-5)
        features = f"features {step}"
        assert relative_error(whole(found, key, features, sharded), expected[f"{one}/{features}"]) < 1e-4
    for part in ("weight", "bias"):
        if f"{one}/{part}" in expected:
            assert relative_error(whole(found, key, part, sharded), expected[f"{one}/{part}"]) < 1e-4
    states = [tensor.removeprefix(key) for tensor in found[0] if tensor.startswith(f"{key}/margin:")]
    assert bool(states) == any(loss in name for loss in ("adaface", "curricularface", "sphereface2", "uniface"))
    for state in states:
        for part in found:
            np.testing.assert_array_equal(part[key + state], found[0][key + state])
            np.testing.assert_allclose(part[key + state], expected[one + state], rtol=1e-5)


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["sharded", "replicated"])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", LOSS_SETTINGS)
def test_a_head_that_was_saved_and_loaded_continues_bit_for_bit(runs, name, ranks, kind):
    key = f"{name}/{kind}"
    for found in runs[ranks]:
        resumed = [tensor for tensor in found if tensor.startswith(f"resumed/{key}/")]
        assert len(resumed) > STEPS
        for tensor in resumed:
            np.testing.assert_array_equal(found[tensor], found[tensor.removeprefix("resumed/")])
