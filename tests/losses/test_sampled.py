"""Partial FC: the sampled problem against the oracle, and what must not move."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses import shard as shard_module
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import Margin
from plsc.losses.ops import highest
from plsc.losses.row_optimizers import SGD, AdamW, Momentum
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.utils.ranges import shard_ranges
from tests._support.head_oracle import LockstepReducer, oracle, relative_error
from tests.losses.test_reference import make_problem

ARCFACE = (1.0, 0.5, 0.0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(shard_module.CHUNK_ROWS, "cpu", 16)
    monkeypatch.setitem(shard_module.BLOCK_ROWS, "cpu", 5)


def run_sampled(problem, ranks, ratio, margins, scale, rule, rate=1.0, steps=1, seed=5):
    """(last state, summed feature gradient, whole shards, sampled global classes of the last step)."""
    features, labels, weight, bias = problem
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(weight), ranks)

    def play(rank):
        start, stop = ranges[rank]
        whole = Shard(
            paddle.to_tensor(weight[start:stop]),
            None if bias is None else paddle.to_tensor(bias[start:stop]),
            rule,
            start,
        )
        sampled = SampledShard(whole, ratio, len(labels))
        head = FusedSoftmax(Margin(*margins) if margins else None, scale, reducer)
        for step in range(steps):
            sampled.draw(paddle.to_tensor(labels), seed + 100 * step + rank)
            state = head.forward(paddle.to_tensor(features), paddle.to_tensor(labels), sampled)
            gradient = head.backward(state, sampled, rate)
            sampled.put_back()
        return state, gradient.numpy(), whole, sampled.rows.numpy() + start

    states, gradients, shards, rows = zip(*reducer.run(play))
    return states[0], np.sum(gradients, axis=0), shards, np.concatenate(rows)


def gathered(shards, name):
    return np.concatenate([shard.weight.numpy() if name == "weight" else shard.state[name].numpy() for shard in shards])


@pytest.mark.parametrize(
    "classes, ranks, samples, ratio",
    [(90, 2, 8, 0.3), (90, 1, 8, 0.5), (7, 4, 3, 0.1), (3, 4, 6, 0.5), (60, 3, 30, 0.1)],
)
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), (ARCFACE, 128.0), (None, 1.0)])
def test_the_sampled_problem_matches_the_oracle(classes, ranks, samples, ratio, margins, scale):
    problem = make_problem(classes, samples, with_bias=margins is None)
    features, labels, weight, bias = problem
    state, d_x, shards, rows = run_sampled(problem, ranks, ratio, margins, scale, SGD())
    assert len(set(rows)) == len(rows) and set(labels) <= set(rows)
    loss, expected_x, expected_w, _ = oracle(*problem, margins=margins, scale=scale, rows=rows.tolist())
    assert relative_error(state.loss, loss) < 1e-10
    assert relative_error(d_x, expected_x) < 1e-10
    assert relative_error(weight - gathered(shards, "weight"), expected_w) < 1e-10
    others = np.setdiff1d(np.arange(classes), rows)
    np.testing.assert_array_equal(gathered(shards, "weight")[others], weight[others])


def test_a_ratio_of_one_is_the_whole_problem():
    problem = make_problem(50, 8)
    loss, d_x, d_w, _ = oracle(*problem, margins=ARCFACE)
    state, found, shards, _ = run_sampled(problem, 2, 1.0, ARCFACE, 64.0, SGD())
    assert relative_error(state.loss, loss) < 1e-10
    assert relative_error(problem[2] - gathered(shards, "weight"), d_w) < 1e-10


@pytest.mark.parametrize("rule", [Momentum(0.9, 1e-2), AdamW()])
def test_rows_travel_with_their_state_and_the_rest_stays(rule):
    """Three steps on whole copies, each updating only the rows that were drawn, give the same."""
    features, labels, weight, _ = make_problem(40, 4)
    whole = Shard(paddle.to_tensor(weight), None, rule)
    sampled, head = SampledShard(whole, 0.3, 4), FusedSoftmax(Margin(*ARCFACE), 16.0)
    mirror = {"weight": weight.copy(), **{name: np.zeros_like(weight) for name in whole.state}}
    features = paddle.to_tensor(features)
    for step, shift in enumerate((0, 3, 7)):
        shifted = paddle.to_tensor((labels + shift) % 40)
        sampled.draw(shifted, 11 + step)
        head.backward(head.forward(features, shifted, sampled), sampled, 0.1)
        sampled.put_back()
        rows = sampled.rows.numpy()
        alone = Shard(
            paddle.to_tensor(mirror["weight"][rows]),
            None,
            rule,
            step=step,
            state={name: paddle.to_tensor(mirror[name][rows]) for name in whole.state},
        )
        places = paddle.to_tensor(np.searchsorted(rows, shifted.numpy()))
        other = FusedSoftmax(Margin(*ARCFACE), 16.0)
        other.backward(other.forward(features, places, alone), alone, 0.1)
        mirror["weight"][rows] = alone.weight.numpy()
        for name in whole.state:
            mirror[name][rows] = alone.state[name].numpy()
    assert whole.step == 3
    for name, expected in mirror.items():
        found = whole.weight if name == "weight" else whole.state[name]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_the_draw_follows_its_seed_and_spreads_evenly():
    _, labels, weight, _ = make_problem(200, 4)
    whole, labels = Shard(paddle.to_tensor(weight), None, SGD()), paddle.to_tensor(labels)
    sampled, counts = SampledShard(whole, 0.25, 4), np.zeros(200)
    drawn = []
    for seed in (1, 1, *range(2, 400)):
        sampled.draw(labels, seed)
        drawn.append(sampled.rows.numpy())
        counts[drawn[-1]] += 1
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[1] != drawn[2]).any()
    negatives = np.setdiff1d(np.arange(200), labels.numpy())
    # 400 draws of about 47 of 197: 95 each, give or take 8.5.
    assert counts[negatives].min() > 55 and counts[negatives].max() < 140


def test_a_weight_set_from_outside_is_noticed_in_every_row():
    features, labels, weight, _ = make_problem(40, 4)
    whole, head = Shard(paddle.to_tensor(weight), None, SGD()), FusedSoftmax(Margin(*ARCFACE), 64.0)
    sampled = SampledShard(whole, 0.5, 4)
    features, labels = paddle.to_tensor(features), paddle.to_tensor(labels)
    for seed in (1, 2, 3):
        if seed == 2:
            whole.weight.set_value(weight * np.linspace(1.0, 9.0, 40)[:, None])
        sampled.draw(labels, seed)
        state = head.forward(features, labels, sampled)
        expected = oracle(
            features.numpy(), labels.numpy(), whole.weight.numpy(), margins=ARCFACE, rows=sampled.rows.tolist()
        )[0]
        assert relative_error(state.loss, expected) < 1e-10
        head.backward(state, sampled, 0.1)
        sampled.put_back()


@pytest.mark.parametrize("count", [1, 4, 9, 10])
def test_of_equal_scores_no_more_are_taken_than_asked_for(count):
    scores = np.array([0.5, 0.5, 2.5, 0.1, 0.5, 0.7, 0.5, 0.2, 0.5, 2.0], np.float32)
    places = highest(paddle.to_tensor(scores), count).numpy()
    assert places.tolist() == sorted(set(places.tolist())) and len(places) == count
    np.testing.assert_array_equal(np.sort(scores[places]), np.sort(scores)[-count:])


@pytest.mark.parametrize("ratio", [0.0, 1.5, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="sample ratio"):
        SampledShard(Shard(paddle.ones([4, 2]), None, SGD()), ratio, 2)
