"""Class centers and optimizer state in few bytes: what is rounded, how, and that nothing else decides it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.losses import shard as shards
from plsc.losses import storage
from plsc.losses.noise import Noise
from plsc.losses.row_optimizers import SGD, AdamW, Lars, Lion, Momentum
from plsc.losses.shard import Shard
from plsc.losses.storage import BFloat16Rows, Buffer, Rounding
from plsc.utils.bfloat16 import narrow, widen
from plsc.utils.ranges import Range
from tests._support.storage_problems import as_numbers, neighbors, play, update

WIDTH = 8


def weight_of(classes, width=WIDTH):
    return np.random.default_rng(0).standard_normal((classes, width)).astype(np.float32)


def kept_of(shards_, name="weight"):
    found = [shard.weight if name == "weight" else shard.state[name] for shard in shards_]
    return np.concatenate([tensor.astype("float32").numpy() for tensor in found])


def rounded(values, *, seed=0, step=1, first=0, tensor=0, order=None):
    """What a store keeps of values [S, D]; with an order, written by chosen rows."""
    store = BFloat16Rows(paddle.zeros(values.shape, "bfloat16"), keeps_rounded=True)
    noise = Noise(seed, step, width=values.shape[1], rows=Range(first, first + len(values)))
    buffer = Buffer.of(paddle.to_tensor(values.copy() if order is None else values[order]))
    rows = Range(0, len(values)) if order is None else paddle.to_tensor(order)
    store.write(rows, buffer, rounding=Rounding(noise, tensor, first))
    found = store.kept.astype("float32").numpy()
    np.testing.assert_array_equal(buffer.tensor.numpy(), found if order is None else found[order])
    return found


@pytest.fixture(params=["NumPy", "operators"])
def arithmetic(request, monkeypatch):
    """The two ways in which a store works: on a CPU's memory, and as on a GPU."""
    if request.param == "operators":
        monkeypatch.setattr(storage, "_host_bits", lambda tensor: None)


def test_bfloat16_in_numpy_is_that_of_paddle():
    values = np.concatenate(
        [
            np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-30, 30).repeat(17)[:1000],
            [0.0, -0.0, np.inf, -np.inf, 1.00390625, 1.01171875],
        ]
    ).astype(np.float32)
    expected = paddle.to_tensor(values).astype("bfloat16")
    np.testing.assert_array_equal(narrow(values), expected.view("int16").numpy().view(np.uint16))
    np.testing.assert_array_equal(widen(narrow(values)), expected.astype("float32").numpy())
    assert np.isnan(widen(narrow(np.float32([np.nan])))).all()


@pytest.mark.usefixtures("arithmetic")
def test_a_number_becomes_one_of_its_neighbors_and_is_kept_on_average():
    values = weight_of(200, 16)
    low, high = neighbors(values)
    draws = np.array([rounded(values, step=step) for step in range(1, 401)], np.float64)
    assert ((draws == low) | (draws == high)).all()
    spacing, share = np.abs(high - low), (values - low) / (high - low)
    # The share of the upper neighbor is binomial; 5 standard deviations of each of 3200 elements.
    found = (draws == high).mean(axis=0)
    deviation = np.sqrt(share * (1 - share) / len(draws))
    assert (np.abs(found - share) <= 5.5 * deviation + 1e-4).all()
    # Mean and variance over all elements: the errors of an element have mean 0 and variance f (1 - f).
    error = (draws - values) / spacing
    assert abs(error.mean()) < 5 * np.sqrt((share * (1 - share)).mean() / draws.size)
    np.testing.assert_allclose(error.var(axis=0).mean(), (share * (1 - share)).mean(), rtol=0.02)
    # Elements are rounded independently: neither rows nor columns go together.
    for first, second in ((error[:, :-1], error[:, 1:]), (error[:, :, :-1], error[:, :, 1:])):
        together = (first * second).mean() / error.var()
        assert abs(together) < 5 / np.sqrt(first.size)


@pytest.mark.usefixtures("arithmetic")
def test_numbers_of_bfloat16_stay():
    values = widen(narrow(weight_of(50)))
    values[0, :3] = [np.inf, -np.inf, 0.0]
    np.testing.assert_array_equal(rounded(values), values)
    values[1] = np.nan
    assert np.isnan(rounded(values)[1]).all()


def test_noise_depends_on_seed_step_tensor_row_and_column_alone():
    values, every = weight_of(700), rounded(weight_of(700))
    for other in ({"seed": 1}, {"step": 2}, {"tensor": 1}):
        assert (rounded(values, **other) != every).mean() > 0.2
    for start, stop in ((0, 700), (5, 12), (127, 400), (690, 700)):
        np.testing.assert_array_equal(rounded(values[start:stop], first=start), every[start:stop])
    order = np.random.default_rng(1).permutation(700)
    np.testing.assert_array_equal(rounded(values, order=order), every)


def test_operators_round_as_numpy_does(monkeypatch):
    values, order = weight_of(300), np.arange(0, 300, 7)
    expected = [rounded(values, first=77), rounded(values[order])]
    monkeypatch.setattr(storage, "_host_bits", lambda tensor: None)
    np.testing.assert_array_equal(rounded(values, first=77), expected[0])
    np.testing.assert_array_equal(rounded(values[order]), expected[1])


RATES = {"sgd": 0.1, "momentum": 0.1, "adamw": 0.01, "lars": 30.0, "lion": 0.01}
OPTIMIZERS = {
    "sgd": SGD(1e-2),
    "momentum": Momentum(0.8, 1e-2),
    "adamw": AdamW(decay=1e-2),
    "lars": Lars(0.8, 1e-2),
    "lion": Lion(decay=1e-2),
}


@pytest.mark.usefixtures("small_chunks", "arithmetic")
@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"lars"}))  # the last digit of its lengths is the block's
@pytest.mark.parametrize("ratio", [1.0, 0.4])
@pytest.mark.parametrize("centers, state", [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_any_number_of_ranks_chunks_and_blocks_rounds_alike(name, ratio, centers, state, monkeypatch):
    """To the bit: the gradients are given, so that nothing but the rounding could differ."""
    weight, options = weight_of(53), {"optimizer": OPTIMIZERS[name], "centers": centers, "state": state}
    options["rate"] = RATES[name]
    if ratio < 1.0:
        whole = play(weight, 1, ratio=ratio, **options)
        monkeypatch.setitem(shards.CHUNK_ROWS, "cpu", 7)
        monkeypatch.setitem(shards.BLOCK_ROWS, "cpu", 3)
        others = [play(weight, 1, ratio=ratio, **options)]
    else:
        whole = play(weight, 1, **options)
        others = [play(weight, ranks, **options) for ranks in (2, 3)]
        monkeypatch.setitem(shards.CHUNK_ROWS, "cpu", 40)
        monkeypatch.setitem(shards.BLOCK_ROWS, "cpu", 40)
        others.append(play(weight, 1, **options))
    for other in others:
        for kept in ("weight", *whole[0].state):
            np.testing.assert_array_equal(kept_of(other, kept), kept_of(whole, kept), err_msg=kept)
    assert np.abs(kept_of(whole) - weight).max() > 1e-3


@pytest.mark.usefixtures("small_chunks", "arithmetic")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_an_update_is_that_of_float32_rounded_to_a_neighbor(name, ratio):
    weight, optimizer = widen(narrow(weight_of(40))), OPTIMIZERS[name]
    options = {"optimizer": optimizer, "steps": 1, "ratio": ratio, "rate": RATES[name]}
    lean = play(weight, 1, **options)[0]
    full = play(weight, 1, **options, centers="float32", state="float32")[0]
    for kept in ("weight", *full.state):
        exact, found = ((shard.weight if kept == "weight" else shard.state[kept]) for shard in (full, lean))
        low, high = neighbors(as_numbers(exact))
        found = as_numbers(found)
        assert ((found == low) | (found == high)).all(), kept
    assert not np.array_equal(as_numbers(full.weight), weight)


def test_norms_after_an_update_are_those_of_what_is_kept():
    shard = play(weight_of(300), 1, steps=0)[0]
    shard.squared_norms()
    update(shard, Range(0, 300), 0, 1.0, 0.1)
    assert shard.has_norms
    found = shard.squared_norms().numpy()
    shard.invalidate_norms()
    np.testing.assert_array_equal(found, shard.squared_norms().numpy())


def test_ten_thousand_tiny_updates_move_the_mean_as_they_should():
    """Each update is a thousandth of the distance of two neighbors: rounding to the nearest would undo every one."""
    start, steps = np.full((64, 16), 1.0, np.float32), 10_000
    spacing = 1.0 / 128
    shard = Shard(paddle.to_tensor(start).astype("bfloat16"), SGD(0.0), seed=5)
    block, change = shard.chunks[0].blocks[0], paddle.full(start.shape, -spacing / 1000)
    for _ in range(steps):
        shard.load_chunk(0)
        shard.update([(block, change.clone())], learning_rate=1.0)
    moved = (as_numbers(shard.weight) - start) / spacing
    # A walk of steps of one spacing, each with probability 1/1000: mean 10 and variance near 10 for each element.
    deviation = np.sqrt(steps / 1000 / moved.size)
    assert abs(moved.mean() - steps / 1000) < 5 * deviation
    assert 0.8 < moved.var() / (steps / 1000) < 1.2
    nearest = widen(narrow(start + np.float32(spacing / 1000)))
    np.testing.assert_array_equal(nearest, start)
