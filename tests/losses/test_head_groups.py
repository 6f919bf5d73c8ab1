"""Heads whose centers are sharded over groups of real ranks: as one group of all ranks, and as float64 has it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.config import Config
from plsc.losses.creation import create_weight, fill_weight
from plsc.losses.location import Location
from plsc.losses.margins import BinaryMargin, SteppedMargin, build_margin
from plsc.losses.reference import ReferenceBinary, ReferenceSoftmax
from plsc.utils.ranges import Range, shard_ranges
from plsc.utils.seeding import derive_seed
from tests._support.head_oracle import relative_error
from tests._support.ranks import launch
from tests._support.workers.cases import GROUP_CASES, GROUP_SAMPLES, GROUP_STEPS, RESUMED_GROUPS, group_batch

PLACES = [(2, 1), (3, 1), (4, 1), (4, 2)]  # (ranks, size of a group)
LEAN = [name for name in GROUP_CASES if "lean" in name]
# Random numbers and rounding depend on the shards, so these are compared with as many shards only.
BY_SHARD = [name for name in GROUP_CASES if "sampled" in name or "drawn" in name or "lean" in name]
ORACLES = [name for name in GROUP_CASES if name not in (*BY_SHARD, "AdamW", "unfused", "elasticface_cos_plus")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{ranks: what each rank found}."""
    found = {}
    for ranks in (1, 2, 3, 4):
        folder = tmp_path_factory.mktemp(f"groups{ranks}")
        launch(ranks, "groups_worker.py", folder, log_dir=folder / "log", timeout=600)
        found[ranks] = [dict(np.load(folder / f"{rank}.npz")) for rank in range(ranks)]
    return found


def whole(parts, key):
    return np.concatenate([part[key] for part in parts])


def tensors(part, key):
    """The names of the tensors of a head's state."""
    every = (name.removeprefix(f"{key}/") for name in part if name.startswith(f"{key}/"))
    return [name for name in every if name.partition(":")[0] in ("weight", "bias", "margin")]


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "size"), PLACES)
@pytest.mark.parametrize("name", GROUP_CASES)
def test_replicas_are_equal_to_the_bit(runs, name, ranks, size):
    key = f"{size}/{name}"
    for rank, part in enumerate(runs[ranks]):
        first = runs[ranks][rank % size]
        assert "weight" in tensors(part, key)
        for tensor in tensors(part, key):
            np.testing.assert_array_equal(part[f"{key}/{tensor}"], first[f"{key}/{tensor}"])


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "size"), PLACES)
@pytest.mark.parametrize("name", GROUP_CASES)
def test_groups_train_as_one_group_of_as_many_shards(runs, name, ranks, size):
    """The same shards hold the same random numbers, so what is sampled is compared, too."""
    found, expected, key = runs[ranks], runs[size], f"{size}/{name}"
    tolerance = 2e-2 if name in LEAN else 1e-4
    check(found, expected, key, key, tolerance)
    for part in found:
        for state in (tensor for tensor in tensors(part, key) if tensor.startswith("margin:")):
            np.testing.assert_allclose(part[f"{key}/{state}"], expected[0][f"{key}/{state}"], rtol=1e-5, atol=1e-8)
    for rank in range(size):
        for tensor in tensors(found[rank], key):
            if name not in LEAN and expected[rank][f"{key}/{tensor}"].size:
                error = relative_error(found[rank][f"{key}/{tensor}"], expected[rank][f"{key}/{tensor}"])
                assert error < tolerance, tensor


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "size"), PLACES)
def test_groups_compute_the_same_bits_with_their_centers_on_a_disk(runs, ranks, size):
    for part in runs[ranks]:
        there = {name: value for name, value in part.items() if f"{size}/lean sample on a disk/" in name}
        assert len(there) > 4 * GROUP_STEPS
        for name, value in there.items():
            np.testing.assert_array_equal(value, part[name.replace(" on a disk", "")], err_msg=name)


@pytest.mark.ranks
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", [name for name in GROUP_CASES if name not in BY_SHARD])
def test_groups_train_as_one_group_of_all_ranks(runs, name, size):
    check(runs[4], runs[4], f"{size}/{name}", f"4/{name}", 1e-4)
    for tensor in ("weight", "bias"):
        if f"4/{name}/{tensor}" in runs[4][0]:
            found, expected = whole(runs[4][:size], f"{size}/{name}/{tensor}"), whole(runs[4], f"4/{name}/{tensor}")
            assert relative_error(found, expected) < 1e-4


def check(found, expected, key, other, tolerance):
    """Losses, accuracies and feature gradients of all steps, and the nearest classes."""
    for step in range(GROUP_STEPS):
        for part in found:
            np.testing.assert_allclose(
                part[f"{key}/loss {step}"], expected[0][f"{other}/loss {step}"], rtol=tolerance, atol=1e-6
            )
            for accuracy in ("acc1", "acc5"):
                np.testing.assert_allclose(
                    part[f"{key}/{accuracy} {step}"], expected[0][f"{other}/{accuracy} {step}"], rtol=1e-6
                )
        gradients, others = whole(found, f"{key}/features {step}"), whole(expected, f"{other}/features {step}")
        assert np.abs(gradients - others).max() <= 3 * tolerance * np.abs(others).max()
    for part in found if tolerance < 1e-3 else ():
        np.testing.assert_array_equal(part[f"{key}/top"], expected[0][f"{other}/top"])


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "size"), PLACES)
@pytest.mark.parametrize("name", RESUMED_GROUPS)
def test_a_head_that_was_saved_and_loaded_continues_bit_for_bit(runs, name, ranks, size):
    key = f"{size}/{name}"
    for found in runs[ranks]:
        resumed = [tensor for tensor in found if tensor.startswith(f"resumed/{key}/")]
        assert len(resumed) > GROUP_STEPS
        for tensor in resumed:
            np.testing.assert_array_equal(found[tensor], found[tensor.removeprefix("resumed/")])


def in_float64(name):
    """{name: value} of the same training in float64 by the definition of the loss, of all classes in one place."""
    config = Config(**{"emb_dim": 16, "scale": 16.0, **GROUP_CASES[name]})
    margin = build_margin(config)
    loss = (ReferenceBinary if isinstance(margin, BinaryMargin) else ReferenceSoftmax)(
        margin, config.loss_scale, smoothing=config.label_smoothing
    )
    classes = Range(0, config.num_classes)
    weight = create_weight(config, classes, Location())
    fill_weight(config, weight, classes)
    values = {"weight": weight.numpy().astype("float64")}
    if margin is None:
        values["bias"] = np.zeros(config.num_classes)
    velocity, found = {key: np.zeros_like(value) for key, value in values.items()}, {}
    for step in range(GROUP_STEPS):
        features, labels = group_batch(config.num_classes, step)
        if isinstance(margin, SteppedMargin):
            margin.begin_step(step, seed=max(1, derive_seed(config.seed, step, 2**31)))
        given = GROUP_CASES[name].get("class_weights")
        weights = None if given is None else np.array(given, np.float64)[labels]
        state = loss.loss_and_feature_gradient(
            paddle.to_tensor(features.astype("float64")),
            paddle.to_tensor(labels),
            **{key: paddle.to_tensor(value) for key, value in values.items()},
            weights=None if weights is None else paddle.to_tensor(weights / weights.mean()),
        )
        found[f"loss {step}"], found[f"features {step}"] = state.loss.item(), state.feature_gradient.numpy()
        gradients = loss.row_gradients(state)._asdict()
        for key, value in values.items():
            velocity[key] = 0.9 * velocity[key] + gradients[key].numpy() + 5e-4 * value
            values[key] = value - 0.5 * velocity[key]
        if state.by_bias is not None:
            margin.move_bias(state.by_bias, 0.5)
    return {**found, **values}


@pytest.mark.ranks
@pytest.mark.parametrize("name", ORACLES)
def test_groups_train_as_float64(runs, name):
    expected = in_float64(name)
    for ranks, size in PLACES:
        key, found = f"{size}/{name}", runs[ranks]
        for step in range(GROUP_STEPS):
            np.testing.assert_allclose(found[0][f"{key}/loss {step}"], expected[f"loss {step}"], rtol=5e-5, atol=1e-6)
            gradients, others = whole(found, f"{key}/features {step}"), expected[f"features {step}"]
            assert np.abs(gradients - others).max() <= 2e-4 * np.abs(others).max()
        for tensor in {"weight", "bias"} & expected.keys():
            assert relative_error(whole(found[:size], f"{key}/{tensor}"), expected[tensor]) < 2e-4


@pytest.mark.ranks
def test_what_moves_between_groups_is_the_gradients_of_rows_and_little_else(runs):
    """docs/losses.md has the formula: S D numbers per rank and step, those of the drawn rows where sampled."""
    steps, share = GROUP_STEPS // 2, GROUP_SAMPLES // 4
    for name, part in (("several chunks", 1.0), ("sampled", 0.3)):
        for rank, found in enumerate(runs[4]):
            classes = shard_ranges(81, 2)[rank % 2].size
            drawn = classes if part == 1.0 else max(int(np.ceil(part * classes)), GROUP_SAMPLES)
            _, between = found[f"2/{name}/bytes"]
            rest = between - steps * 4 * drawn * 16
            assert 0 < rest <= steps * (8 * GROUP_SAMPLES // 2 + 3 * 4)  # labels of the sample, the loss, acc1 and acc5
            features, nothing = found[f"4/{name}/bytes"]
            assert nothing == 0
            # A rank gives its own features and the gradient by all of them, and a few numbers of each sample.
            rest = features - steps * 4 * 16 * (share + GROUP_SAMPLES)
            assert 0 < rest <= steps * (8 * share + (4 * 3 + 8) * GROUP_SAMPLES)
