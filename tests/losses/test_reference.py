"""The sharded loss and its gradients against a per-sample float64 oracle, ranks played by threads."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from plsc.losses.margins.combined import Margin
from plsc.losses.reference import ShardedSoftmax
from plsc.utils.ranges import shard_ranges
from tests._support.head_oracle import LockstepReducer, oracle, relative_error

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
# (classes, ranks, samples): uneven shards, an empty shard, one sample, one rank.
SHARDINGS = [(6, 4, 5), (5, 4, 8), (3, 4, 6), (7, 1, 4), (40, 3, 1), (50, 2, 16)]


def make_problem(classes, samples, size=16, dtype="float64", seed=0, with_bias=False):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, size)).astype(dtype) * 0.1
    labels = rng.integers(0, classes, samples)
    labels[-1] = labels[0]
    # Leaning to their centers, as in training that has got somewhere, with losses well over the
    # rounding of a float32 logit.
    features = (3.0 * weight[labels] + rng.standard_normal((samples, size))).astype(dtype)
    bias = rng.standard_normal(classes).astype(dtype) if with_bias else None
    return features, labels, weight, bias


def run_sharded(problem, ranks, margin, scale, **options):
    """(loss per rank, dX summed over ranks, dW and dbias concatenated, states)."""
    features, labels, weight, bias = problem
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(weight), ranks)

    def play(rank):
        start, stop = ranges[rank]
        head = ShardedSoftmax(margin, scale, start, reducer)
        shard_bias = None if bias is None else paddle.to_tensor(bias[start:stop])
        state = head.forward(
            paddle.to_tensor(features),
            paddle.to_tensor(labels),
            paddle.to_tensor(weight[start:stop]),
            shard_bias,
            **options,
        )
        return state, head.backward(state)

    played = reducer.run(play)
    gradients = [gradient for _, gradient in played]
    return (
        [state.loss.item() for state, _ in played],
        np.sum([g.features.numpy() for g in gradients], axis=0),
        np.concatenate([g.weight.numpy() for g in gradients]),
        None if bias is None else np.concatenate([g.bias.numpy() for g in gradients]),
        [state for state, _ in played],
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", SHARDINGS)
@pytest.mark.parametrize(
    "margins, scale",
    [
        ((1.0, 0.5, 0.0), 64.0),
        ((1.0, 0.5, 0.0), 128.0),
        ((1.0, 0.0, 0.35), 64.0),
        ((1.35, 0.0, 0.0), 64.0),
        ((0.9, 0.4, 0.15), 30.0),
    ],
)
def test_margin_kinds_match_the_oracle(classes, ranks, samples, margins, scale, dtype):
    problem = make_problem(classes, samples, dtype=dtype)
    loss, d_x, d_w, d_b = oracle(*problem[:3], margins=margins, scale=scale)
    found, found_x, found_w, _, _ = run_sharded(problem, ranks, Margin(*margins), scale)
    assert len(set(found)) == 1
    assert relative_error(found[0], loss) < TOLERANCE[dtype]
    assert relative_error(found_x, d_x) < TOLERANCE[dtype]
    assert relative_error(found_w, d_w) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", SHARDINGS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_softmax_kind_matches_the_oracle(classes, ranks, samples, with_bias, dtype):
    problem = make_problem(classes, samples, dtype=dtype, with_bias=with_bias)
    loss, d_x, d_w, d_b = oracle(*problem)
    found, found_x, found_w, found_b, _ = run_sharded(problem, ranks, None, 64.0)
    assert relative_error(found[0], loss) < TOLERANCE[dtype]
    assert relative_error(found_x, d_x) < TOLERANCE[dtype]
    assert relative_error(found_w, d_w) < TOLERANCE[dtype]
    if with_bias:
        assert relative_error(found_b, d_b) < TOLERANCE[dtype]


@pytest.mark.parametrize("margins", [(1.0, 0.5, 0.0), None])
def test_logits_scaled_by_a_thousand_stay_exact(margins):
    features, labels, weight, _ = make_problem(9, 6)
    if margins is None:
        features *= 1000
    scale = 64000.0
    loss, d_x, d_w, _ = oracle(features, labels, weight, margins=margins, scale=scale)
    found, found_x, found_w, _, _ = run_sharded(
        (features, labels, weight, None), 2, Margin(*margins) if margins else None, scale
    )
    assert relative_error(found[0], loss) < 1e-10
    assert relative_error(found_x, d_x) < 1e-10
    assert relative_error(found_w, d_w) < 1e-10


def test_the_loss_is_not_floored_where_the_softmax_kernels_are():
    centers = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    problem = (np.array([[1.0, 0.0]], np.float32), np.array([1]), centers, None)
    found, _, _, _, _ = run_sharded(problem, 2, Margin(), 64.0)
    assert found[0] == pytest.approx(128.0, abs=1e-4)


@pytest.mark.parametrize("scale", [64.0, 128.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_features_on_and_opposite_their_center_give_finite_gradients(scale, sign):
    centers = np.eye(4, dtype=np.float32) * 3
    problem = (sign * centers[[0, 2]], np.array([0, 2]), centers, None)
    found, d_x, d_w, _, _ = run_sharded(problem, 2, Margin(1.0, 0.5, 0.0), scale)
    assert math.isfinite(found[0]) and np.isfinite(d_x).all() and np.isfinite(d_w).all()


def test_vectors_of_zeros_give_finite_gradients():
    problem = (np.zeros((2, 4), np.float32), np.array([0, 1]), np.zeros((3, 4), np.float32), None)
    found, d_x, d_w, _, _ = run_sharded(problem, 1, Margin(1.0, 0.5, 0.0), 64.0)
    assert math.isfinite(found[0]) and np.isfinite(d_x).all() and np.isfinite(d_w).all()


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_counts_above_the_target_over_all_shards(ranks):
    features, labels, weight, _ = make_problem(11, 12, seed=3)
    features += np.random.default_rng(1).standard_normal(features.shape) * 3
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    cosines = features @ unit.T
    expected = (cosines > cosines[np.arange(12), labels][:, None]).sum(axis=1)
    assert expected.max() > 0
    *_, states = run_sharded((features, labels, weight, None), ranks, Margin(1.0, 0.5, 0.0), 64.0, count_above=True)
    for state in states:
        np.testing.assert_array_equal(state.above.numpy(), expected)


def test_nothing_of_the_caller_is_changed():
    features, labels, weight, bias = (paddle.to_tensor(a) for a in make_problem(7, 5, with_bias=True))
    before = [t.clone().numpy() for t in (features, labels, weight, bias)]
    head = ShardedSoftmax(None)
    head.backward(head.forward(features, labels, weight, bias))
    for tensor, copy in zip((features, labels, weight, bias), before):
        np.testing.assert_array_equal(tensor.numpy(), copy)
