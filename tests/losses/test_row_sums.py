"""Sums of the samples of a class, which no order of accumulation may change."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.losses import ops
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.precision import HalfPrecision, Precision
from plsc.losses.row_optimizers import SGD
from plsc.losses.row_sums import RowSums
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from tests._support.head_oracle import oracle, relative_error
from tests._support.head_problems import ARCFACE, collect, make_problem, run_fused


@pytest.fixture
def any_order(monkeypatch):
    """The operators that write by index do so in an order that differs at each call, as those of a GPU."""
    rng = np.random.default_rng(0)

    def shuffled(operator, axis_of_values):
        def run(target, index, values, *options):
            order = paddle.to_tensor(rng.permutation(index.shape[0]))
            return operator(
                target,
                paddle.index_select(index, order),
                paddle.index_select(values, order, axis=axis_of_values),
                *options,
            )

        return run

    monkeypatch.setattr(ops, "_scatter_", shuffled(ops._scatter_, 0))
    monkeypatch.setattr(ops, "_index_add_", shuffled(paddle._C_ops.index_add_, 0), raising=False)


@pytest.mark.parametrize("shape", [[], [3]])
@pytest.mark.parametrize("rows", [[4], [4, 4], [5, 1, 5, 0, 5, 5, 1, 9, 5], list(range(9)), [7] * 17])
def test_totals_are_added_to_each_row_once(rows, shape):
    rng = np.random.default_rng(1)
    values, target = rng.standard_normal([len(rows), *shape]), rng.standard_normal([10, *shape])
    expected = target.copy()
    np.add.at(expected, rows, values)
    sums, found = RowSums(paddle.to_tensor(rows)), paddle.to_tensor(target)
    totals = sums.totals(paddle.to_tensor(values))
    for first, last in ((0, 3), (3, 4), (4, 10)):  # parts with and without any of the rows
        sums.add_(found[first:last], totals, first=first)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_device_that_is_not_asked_gets_the_same(monkeypatch):
    """As on a GPU, where no one looks which parts hold a row."""
    sums = RowSums(paddle.to_tensor([5, 1, 5]))
    monkeypatch.setattr(sums, "_on_host", None)
    found, totals = paddle.zeros([10]), sums.totals(paddle.to_tensor([1.0, 2.0, 4.0]))
    for first in range(0, 10, 2):
        sums.add_(found[first : first + 2], totals, first=first)
    np.testing.assert_array_equal(found, [0, 2, 0, 0, 0, 5, 0, 0, 0, 0])


def test_samples_in_pairs_may_change_places():
    """Two numbers have one sum; of more, the order of the batch decides, and nothing else."""
    rng = np.random.default_rng(2)
    rows, values = np.repeat(np.arange(8), 2), rng.standard_normal([16, 4]).astype("float32")
    found = []
    for _ in range(5):
        order = rng.permutation(16)
        sums, target = RowSums(paddle.to_tensor(rows[order])), paddle.zeros([8, 4])
        sums.add_(target, sums.totals(paddle.to_tensor(values[order])))
        found.append(target.numpy())
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


@pytest.mark.parametrize("margins", [ARCFACE, None])
@pytest.mark.parametrize("precision", [Precision(), HalfPrecision("float16"), HalfPrecision("bfloat16")])
@pytest.mark.parametrize("by_rows", [True, False])
def test_a_step_has_the_same_bits_in_any_order(small_chunks, any_order, by_rows, precision, margins):
    features, _, weight, bias = make_problem(50, 24, dtype="float32", with_bias=margins is None)
    labels = np.random.default_rng(3).integers(0, 5, 24)  # each class about five times
    margin = CombinedMargin(*margins) if margins else None
    found = []
    for _ in range(4):
        shard = Shard(paddle.to_tensor(weight), SGD(), bias=None if bias is None else paddle.to_tensor(bias))
        softmax = FusedSoftmax(margin, 16.0, precision=precision, by_rows=by_rows)
        state = softmax.loss_and_feature_gradient(paddle.to_tensor(features), paddle.to_tensor(labels), shard=shard)
        parts = collect(softmax.row_gradients(state), shard)
        found.append([state.feature_gradient.numpy(), *(part.numpy() for part in parts if part is not None)])
    for each in found[1:]:
        for one, other in zip(each, found[0]):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("margins", [ARCFACE, None])
def test_classes_that_occur_many_times_match_the_oracle(small_chunks, any_order, margins, by_rows, ranks):
    problem = list(make_problem(50, 24, with_bias=margins is None))
    problem[1] = np.random.default_rng(3).integers(20, 25, 24)
    loss, d_x, d_w, d_b = oracle(*problem, margins=margins, scale=16.0)
    margin = CombinedMargin(*margins) if margins else None
    states, found_x, found_w, found_b = run_fused(problem, ranks, margin, 16.0, by_rows=by_rows)
    assert relative_error(states[0].loss, loss) < 1e-10
    assert relative_error(found_x, d_x) < 1e-10 and relative_error(found_w, d_w) < 1e-10
    assert d_b is None or margins or relative_error(found_b, d_b) < 1e-10


def test_the_draw_has_the_same_rows_in_any_order(any_order):
    labels = paddle.to_tensor([7, 7, 3, 99, 7, 150, 3, 0])  # with classes of other shards
    found = []
    for _ in range(4):
        full = Shard(paddle.zeros([100, 4]), SGD())
        sampled = SampledShard(full, ratio=0.2, samples=8)
        sampled.draw(labels, seed=5)
        found.append(sampled.rows.tolist())
    assert {0, 3, 7, 99} <= set(found[0]) and all(rows == found[0] for rows in found)


def test_a_draw_without_an_own_class_marks_none():
    full = Shard(paddle.zeros([1000, 4]), SGD(), first_class=5000)
    sampled, found = SampledShard(full, ratio=0.1, samples=8), []
    for seed in range(1, 41):
        sampled.draw(paddle.arange(8), seed=seed)
        found.append(sampled.rows.numpy())
    # The labels lie before the shard: its first row, which stands for them, is drawn no more often than others.
    assert sum(0 in rows for rows in found) < 20
