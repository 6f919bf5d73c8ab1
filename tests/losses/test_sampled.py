"""Partial FC: the sampled problem against the oracle, and the rows that must not change."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses import ops, shard, storage
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.row_optimizers import SGD, AdamW, Momentum
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from tests._support.head_oracle import oracle, relative_error
from tests._support.head_problems import ARCFACE, gathered, make_problem, run_sampled, train_step
from tests._support.workers.cases import NormMargin

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize(
    "classes, ranks, samples, ratio",
    [(90, 2, 8, 0.3), (90, 1, 8, 0.5), (7, 4, 3, 0.1), (3, 4, 6, 0.5), (60, 3, 30, 0.1)],
)
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), (ARCFACE, 128.0), (None, 1.0)])
def test_the_sampled_problem_matches_the_oracle(classes, ranks, samples, ratio, margins, scale):
    problem = make_problem(classes, samples, with_bias=margins is None)
    features, labels, weight, bias = problem
    margin = None if margins is None else CombinedMargin(*margins)
    state, d_x, shards, rows = run_sampled(problem, ranks, ratio, margin, scale)
    assert len(set(rows)) == len(rows) and set(labels) <= set(rows)
    loss, expected_x, expected_w, expected_b = oracle(*problem, margins=margins, scale=scale, rows=rows.tolist())
    assert relative_error(state.loss, loss) < 1e-10
    assert relative_error(d_x, expected_x) < 1e-10
    assert relative_error(weight - gathered(shards, "weight"), expected_w) < 1e-10
    others = np.setdiff1d(np.arange(classes), rows)
    np.testing.assert_array_equal(gathered(shards, "weight")[others], weight[others])
    if bias is not None:
        assert relative_error(bias - gathered(shards, "bias"), expected_b) < 1e-10
        np.testing.assert_array_equal(gathered(shards, "bias")[others], bias[others])


def test_a_margin_that_depends_on_the_norm_matches_the_oracle():
    problem = make_problem(60, 8)
    state, d_x, shards, rows = run_sampled(problem, 3, 0.4, NormMargin(), 64.0)
    loss, expected_x, expected_w, _ = oracle(*problem, margin=NormMargin.of_one, rows=rows.tolist())
    assert relative_error(state.loss, loss) < 1e-10
    assert relative_error(d_x, expected_x) < 1e-10
    assert relative_error(problem[2] - gathered(shards, "weight"), expected_w) < 1e-10


def test_a_ratio_of_one_is_the_whole_problem():
    problem = make_problem(50, 8)
    loss, d_x, d_w, _ = oracle(*problem, margins=ARCFACE)
    state, found, shards, _ = run_sampled(problem, 2, 1.0, CombinedMargin(*ARCFACE), 64.0)
    assert relative_error(state.loss, loss) < 1e-10
    assert relative_error(problem[2] - gathered(shards, "weight"), d_w) < 1e-10


@pytest.mark.parametrize("optimizer", [Momentum(0.9, 1e-2), AdamW()])
def test_sampled_rows_are_updated_with_their_state_and_the_others_stay(optimizer):
    """Three steps on copies of the weight, each updating only the rows that were drawn, give the same."""
    features, labels, weight, _ = make_problem(40, 4)
    full = Shard(paddle.to_tensor(weight), optimizer)
    sampled, softmax = SampledShard(full, ratio=0.3, samples=4), FusedSoftmax(CombinedMargin(*ARCFACE), 16.0)
    mirror = {"weight": weight.copy(), **{name: np.zeros_like(weight) for name in full.state}}
    features = paddle.to_tensor(features)
    for step, shift in enumerate((0, 3, 7)):
        shifted = paddle.to_tensor((labels + shift) % 40)
        sampled.draw(shifted, seed=11 + step)
        train_step(softmax, features, shifted, sampled, 0.1)
        rows = sampled.rows.numpy()
        alone = Shard(
            paddle.to_tensor(mirror["weight"][rows]),
            optimizer,
            step=step,
            state={name: paddle.to_tensor(mirror[name][rows]) for name in full.state},
        )
        positions = paddle.to_tensor(np.searchsorted(rows, shifted.numpy()))
        train_step(FusedSoftmax(CombinedMargin(*ARCFACE), 16.0), features, positions, alone, 0.1)
        mirror["weight"][rows] = alone.weight.numpy()
        for name in full.state:
            mirror[name][rows] = alone.state[name].numpy()
    assert full.step == 3
    for name, expected in mirror.items():
        found = full.weight if name == "weight" else full.state[name]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_the_draw_follows_its_seed_and_spreads_evenly():
    _, labels, weight, _ = make_problem(200, 4)
    full, labels = Shard(paddle.to_tensor(weight), SGD()), paddle.to_tensor(labels)
    sampled, counts = SampledShard(full, ratio=0.25, samples=4), np.zeros(200)
    drawn = []
    for seed in (1, 1, *range(2, 400)):
        sampled.draw(labels, seed=seed)
        drawn.append(sampled.rows.numpy())
        counts[drawn[-1]] += 1
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[1] != drawn[2]).any()
    negatives = np.setdiff1d(np.arange(200), labels.numpy())
    # 400 draws of about 47 of 197: 95 each, give or take 8.5.
    assert counts[negatives].min() > 55 and counts[negatives].max() < 140


def test_norms_of_all_rows_follow_updates_and_an_invalidation():
    features, labels, weight, _ = make_problem(40, 4)
    full, softmax = Shard(paddle.to_tensor(weight), SGD()), FusedSoftmax(CombinedMargin(*ARCFACE))
    sampled = SampledShard(full, ratio=0.5, samples=4)
    features, labels = paddle.to_tensor(features), paddle.to_tensor(labels)
    for seed in (1, 2, 3):
        if seed == 2:
            full.weight.set_value(weight * np.linspace(1.0, 9.0, 40)[:, None])
            full.invalidate_norms()
        sampled.draw(labels, seed=seed)
        before = full.weight.numpy().copy()
        state = train_step(softmax, features, labels, sampled, 0.1)
        expected = oracle(features.numpy(), labels.numpy(), before, margins=ARCFACE, rows=sampled.rows.tolist())[0]
        assert relative_error(state.loss, expected) < 1e-10
        norms = (full.weight.numpy() ** 2).sum(axis=1)
        np.testing.assert_allclose(full.squared_norms().numpy(), norms, rtol=1e-12)


@pytest.mark.parametrize(
    "classes, ranks, sizes",
    [(1, 1, [1]), (2, 1, [2]), (9, 1, [2]), (5, 2, [2, 2]), (3, 2, [2, 1]), (3, 4, [1, 1, 1, 0])],
)
def test_a_batch_of_one_has_a_negative_class_at_any_ratio(classes, ranks, sizes):
    problem = make_problem(classes, 1)
    margin = CombinedMargin(*ARCFACE)
    state, d_x, shards, rows = run_sampled(problem, ranks, 1e-9, margin, 64.0)
    assert [sum(1 for row in rows if 0 <= row - s.first_class < s.size) for s in shards] == sizes
    loss, expected_x, *_ = oracle(*problem, margins=ARCFACE, rows=rows.tolist())
    assert (state.loss.item() > 0.0) == (classes > 1) == bool(d_x.any())
    assert relative_error(state.loss, loss) < 1e-10 and relative_error(d_x, expected_x) < 1e-10


@pytest.mark.parametrize("ratio", [0.0, 1.5, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="sample ratio"):
        SampledShard(Shard(paddle.ones([4, 2]), SGD()), ratio=ratio, samples=2)


@pytest.mark.parametrize("optimizer", [SGD(), Momentum()])
def test_a_step_computes_the_norms_of_sampled_rows_only(monkeypatch, optimizer):
    """But for the first step, and the first one after others have written the weight."""
    monkeypatch.setattr(ops, "host_view", lambda tensor: None)
    monkeypatch.setattr(storage, "host_view", lambda tensor: None)
    normed = []
    real = shard.squared_norms

    def counting(rows, view, *, ones):
        normed[-1] += rows.shape[0]
        return real(rows, view, ones=ones)

    monkeypatch.setattr(shard, "squared_norms", counting)
    features, labels, weight, _ = make_problem(1000, 8)
    features, labels = paddle.to_tensor(features), paddle.to_tensor(labels)
    full = Shard(paddle.to_tensor(weight), optimizer)
    sampled, softmax = SampledShard(full, ratio=0.1, samples=8), FusedSoftmax(CombinedMargin(*ARCFACE))
    for step in range(5):
        normed.append(0)
        if step == 3:
            full.invalidate_norms()
        sampled.draw(labels, seed=step + 1)
        train_step(softmax, features, labels, sampled, 0.1)
    assert normed == [1100, 100, 100, 1100, 100]
    expected = (full.weight.numpy() ** 2).sum(axis=1)
    np.testing.assert_allclose(full.squared_norms().numpy(), expected, rtol=1e-12)


def test_a_draw_elsewhere_is_a_sample_without_replacement(monkeypatch):
    """As on a GPU: of the same size in each draw, without repeats, each class and each pair equally often."""
    monkeypatch.setattr(ops, "host_view", lambda tensor: None)
    full = Shard(paddle.zeros([40, 4]), SGD())
    sampled = SampledShard(full, ratio=0.3, samples=2)
    counts, pairs, draws = np.zeros(40), np.zeros((40, 40)), 3000
    for seed in range(1, draws + 1):
        sampled.draw(paddle.to_tensor([5, 5]), seed=seed)
        rows = sampled.rows.numpy()
        assert len(rows) == 12 and (np.diff(rows) > 0).all() and 5 in rows
        counts[rows] += 1
        pairs[np.ix_(rows, rows)] += 1
    others = np.delete(np.arange(40), 5)
    share = 11 / 39
    assert np.abs(counts[others] / draws - share).max() < 4.5 * np.sqrt(share * (1 - share) / draws)
    both = share * 10 / 38
    off_diagonal = pairs[np.ix_(others, others)][~np.eye(39, dtype=bool)]
    assert np.abs(off_diagonal / draws - both).max() < 5 * np.sqrt(both * (1 - both) / draws)
