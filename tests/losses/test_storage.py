"""Class centers and optimizer state in few bytes: what is rounded, how, and that nothing else decides it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.losses import rounding, storage
from plsc.losses import shard as shards
from plsc.losses.noise import Noise
from plsc.losses.row_optimizers import SGD, AdamW, Lars, Lion, Momentum, RowOptimizer
from plsc.losses.shard import Shard
from plsc.losses.storage import BFloat16Rows, Buffer, Int8Rows, PlainRows, Rounding
from plsc.utils.loops import compiled_loops
from plsc.utils.ranges import Range
from plsc.utils.row_types import decoded, int8_width, narrow, packed, widen
from tests._support.storage_problems import as_numbers, neighbors, play, update

WIDTH = 8


def weight_of(classes, width=WIDTH):
    return np.random.default_rng(0).standard_normal((classes, width)).astype(np.float32)


def kept_of(shards_, name="weight"):
    return np.concatenate([(shard.weight if name == "weight" else shard.state[name]).numpy() for shard in shards_])


def store_for(kind, rows, width):
    if kind == "int8":
        return Int8Rows(paddle.zeros([rows, int8_width(width)], "int8"), width=width)
    return BFloat16Rows(paddle.zeros([rows, width], "bfloat16"), keeps_rounded=True)


def rounded(values, kind="bfloat16", *, seed=0, step=1, first=0, tensor=0, order=None):
    """What a store keeps of values [S, D]; with an order, written by chosen rows."""
    store = store_for(kind, *values.shape)
    noise = Noise(seed, step, width=values.shape[1], rows=Range(first, first + len(values)))
    buffer = Buffer.of(paddle.to_tensor(values.copy() if order is None else values[order]))
    rows = Range(0, len(values)) if order is None else paddle.to_tensor(order)
    store.write(rows, buffer, rounding=Rounding(noise, tensor, first))
    found = Buffer.of(paddle.empty(values.shape))
    store.read(Range(0, len(values)), out=found)
    if kind == "bfloat16":  # what norms are made of
        np.testing.assert_array_equal(buffer.tensor, found.tensor.numpy()[slice(None) if order is None else order])
    if order is not None:
        chosen = Buffer.of(paddle.empty([len(order), values.shape[1]]))
        store.read(rows, out=chosen)
        np.testing.assert_array_equal(chosen.tensor, found.tensor.numpy()[order])
    return found.tensor.numpy()


@pytest.fixture(params=["compiled", "NumPy", "operators"])
def arithmetic(request, monkeypatch):
    """The ways in which a store works: on a CPU's memory, with Numba and without, and as on a GPU."""
    work_as(request.param, monkeypatch)


def work_as(way, monkeypatch):
    if way == "compiled" and compiled_loops() is None:
        pytest.skip("Numba is not installed")
    if way == "NumPy":
        monkeypatch.setattr(rounding, "compiled_loops", lambda: None)
    if way == "operators":
        monkeypatch.setattr(storage, "_host_view", lambda tensor: None)


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


KINDS = ("bfloat16", "int8")


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_becomes_one_of_its_neighbors_and_is_kept_on_average(kind):
    values = weight_of(200, 16).astype(np.float64)
    low, high = neighbors(values, kind)
    draws = np.array([rounded(values.astype(np.float32), kind, step=step) for step in range(1, 401)], np.float64)
    spacing, share = np.abs(high - low), (values - low) / (high - low)
    assert np.minimum(np.abs(draws - low), np.abs(draws - high)).max() < 1e-5 * spacing.max()
    draws = np.where(np.abs(draws - high) < np.abs(draws - low), high, low)
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
def test_numbers_of_int8_stay():
    values = np.random.default_rng(0).integers(-127, 128, (50, 7)).astype(np.float32)
    values[:, 0], values[3], values[4] = 127.0, 0.0, np.float32(1e-35)
    expected = values.copy()
    expected[4] = 0.0  # as little as nothing
    np.testing.assert_array_equal(rounded(values, "int8"), expected)
    values[1, 3], values[2, 3] = np.nan, np.inf
    assert np.isnan(rounded(values, "int8")[1:3]).any(axis=1).all()


@pytest.mark.usefixtures("arithmetic")
def test_numbers_of_bfloat16_stay():
    values = widen(narrow(weight_of(50)))
    values[0, :3] = [np.inf, -np.inf, 0.0]
    np.testing.assert_array_equal(rounded(values), values)
    values[1] = np.nan
    assert np.isnan(rounded(values)[1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_noise_depends_on_seed_step_tensor_row_and_column_alone(kind):
    values, every = weight_of(700), rounded(weight_of(700), kind)
    for other in ({"seed": 1}, {"step": 2}, {"tensor": 1}):
        assert (rounded(values, kind, **other) != every).mean() > 0.2
    for start, stop in ((0, 700), (5, 12), (127, 400), (690, 700)):
        np.testing.assert_array_equal(rounded(values[start:stop], kind, first=start), every[start:stop])
    order = np.random.default_rng(1).permutation(700)
    np.testing.assert_array_equal(rounded(values, kind, order=order), every)


@pytest.mark.parametrize("way", ["compiled", "operators"])
@pytest.mark.parametrize("width", [8, 30, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_each_way_rounds_as_numpy_does(kind, width, way, monkeypatch):
    values = weight_of(300, width) * np.logspace(-35, 20, 300, dtype=np.float32)[:, None]
    values[:3] = np.float32([0.0, -0.0, 1e-31])[:, None]
    order = np.arange(300)[::-1].copy()
    with monkeypatch.context() as patch:
        work_as("NumPy", patch)
        expected = rounded(values, kind, first=77)
    work_as(way, monkeypatch)
    np.testing.assert_array_equal(rounded(values, kind, first=77), expected)
    np.testing.assert_array_equal(rounded(values, kind, first=77, order=order), expected)


@pytest.mark.parametrize("from_kind", ["float32", *KINDS])
@pytest.mark.parametrize("to_kind", ["float32", *KINDS])
def test_rows_of_any_type_are_put_into_a_store_of_any_type(from_kind, to_kind):
    values = weight_of(60, 6)
    held = {"float32": values, "bfloat16": narrow(values), "int8": packed(values)}[from_kind]
    exact = decoded(held, 6).astype(np.float64)
    for places in (slice(0, 60), np.random.default_rng(2).permutation(60)):
        store = PlainRows(paddle.zeros([60, 6])) if to_kind == "float32" else store_for(to_kind, 60, 6)
        store.put(places, held)
        if to_kind == from_kind:
            expected = paddle.to_tensor(held).view("bfloat16") if to_kind == "bfloat16" else held
            np.testing.assert_array_equal(store.kept.numpy()[places], np.array(expected))
        found = Buffer.of(paddle.empty([60, 6]))
        store.read(Range(0, 60), out=found)
        found = found.tensor.numpy()[places]
        spacing = {"float32": 0.0, "bfloat16": np.abs(exact) / 128, "int8": np.abs(exact).max(axis=1)[:, None] / 127}
        assert (np.abs(found - exact) <= 0.502 * spacing[to_kind]).all(), "the nearest"


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
@pytest.mark.parametrize(
    "centers, state",
    [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "int8")],
)
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
    assert np.abs(whole[0].weight.astype("float32").numpy() - weight).max() > 1e-3


@pytest.mark.usefixtures("small_chunks", "arithmetic")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("ratio", [1.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_that_of_float32_rounded_to_a_neighbor(kind, name, ratio):
    weight, optimizer = widen(narrow(weight_of(40))), OPTIMIZERS[name]
    options = {"optimizer": optimizer, "steps": 1, "ratio": ratio, "rate": RATES[name]}
    lean = play(weight, 1, **options, state=kind)[0]
    full = play(weight, 1, **options, centers="float32", state="float32")[0]
    for kept in ("weight", *full.state):
        exact, found = (
            as_numbers(shard.weight if kept == "weight" else shard.state[kept], WIDTH) for shard in (full, lean)
        )
        own = "int8" if kind == "int8" and kept not in ("weight", "weight:moment2") else "bfloat16"
        low, high = neighbors(exact, own)
        off = np.minimum(np.abs(found - low), np.abs(found - high))
        assert (off <= 1e-5 * np.abs(high - low)).all(), kept
    assert not np.array_equal(as_numbers(full.weight, WIDTH), weight)


def test_norms_after_an_update_are_those_of_what_is_kept():
    shard = play(weight_of(300), 1, steps=0)[0]
    shard.squared_norms()
    update(shard, Range(0, 300), 0, 1.0, 0.1)
    assert shard.has_norms
    found = shard.squared_norms().numpy()
    shard.invalidate_norms()
    np.testing.assert_array_equal(found, shard.squared_norms().numpy())


class Reach(RowOptimizer):
    """Adds the gradient to the state, and nothing to the rows."""

    state_names, uses_step = ("sum",), False

    def apply(self, rows, gradient, *, state, prepared):
        paddle.assign(state[0] + gradient, state[0])


@pytest.mark.parametrize("kind", ["bfloat16", "bfloat16 state", "int8 state"])
def test_ten_thousand_tiny_updates_move_the_mean_as_they_should(kind):
    """Each update is a thousandth of the distance of two neighbors: rounding to the nearest would undo every one."""
    start, steps = np.full((64, 16), 1.0, np.float32), 10_000
    spacing = 1.0 / 128
    if kind == "bfloat16":
        shard = Shard(paddle.to_tensor(start).astype("bfloat16"), SGD(0.0), seed=5)
        held, sign = shard.weight, -1.0
    else:
        shard = Shard(paddle.zeros(start.shape), Reach(), state_storage=kind.split()[0], seed=5)
        held, sign = shard.state["weight:sum"], 1.0
        if kind == "int8 state":
            start[:, 0], spacing = 127.0 / 128, 1.0 / 128
            start[:, 1:] = 64.0 / 128
        shard.stores["weight:sum"].put(slice(0, 64), start)
    block, change = shard.chunks[0].blocks[0], paddle.full(start.shape, sign * spacing / 1000)
    if kind == "int8 state":
        change[:, 0] = 0.0  # the greatest, which the distance depends on
    for _ in range(steps):
        shard.load_chunk(0)
        shard.update([(block, change.clone())], learning_rate=1.0)
    moved = (as_numbers(held, 16) - start)[:, 1:] / spacing
    # A walk of steps of one spacing, each with probability 1/1000: mean 10 and variance near 10 for each element.
    expected = steps / 1000
    assert abs(moved.mean() - expected) < 5 * np.sqrt(expected / moved.size) + 0.1
    assert 0.8 < moved.var() / expected < 1.2
    changed = start + np.float32(spacing / 1000)
    changed[:, 0] = start[:, 0]
    nearest = decoded(packed(changed), 16) if kind == "int8 state" else widen(narrow(changed))
    np.testing.assert_allclose(nearest[:, 1:], start[:, 1:], rtol=1e-6)
