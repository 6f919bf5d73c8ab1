"""The fused step against the per-sample oracle, the unfused path and Paddle's own optimizers."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses import shard as shard_module
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import Margin
from plsc.losses.reference import ShardedSoftmax
from plsc.losses.row_optimizers import SGD, AdamW, Momentum
from plsc.losses.shard import Shard
from plsc.utils.ranges import shard_ranges
from tests._support.head_oracle import LockstepReducer, oracle, relative_error
from tests.losses.test_reference import SHARDINGS, TOLERANCE, make_problem

ARCFACE = (1.0, 0.5, 0.0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks of several blocks, neither dividing the classes."""
    monkeypatch.setitem(shard_module.CHUNK_ROWS, "cpu", 16)
    monkeypatch.setitem(shard_module.BLOCK_ROWS, "cpu", 5)


def run_fused(problem, ranks, margins, scale, mode="store", rule=None, steps=1, rate=1.0, products=None, **options):
    """(states of the last step, feature gradients summed over ranks, shards in rank order)."""
    features, labels, weight, bias = problem
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(weight), ranks)

    def play(rank):
        start, stop = ranges[rank]
        shard = Shard(
            paddle.to_tensor(weight[start:stop]),
            None if bias is None else paddle.to_tensor(bias[start:stop]),
            rule or SGD(),
            start,
        )
        head = FusedSoftmax(Margin(*margins) if margins else None, scale, reducer, mode, products)
        for _ in range(steps):
            state = head.forward(paddle.to_tensor(features), paddle.to_tensor(labels), shard, **options)
            gradient = head.backward(state, shard, rate)
        return state, gradient.numpy(), shard

    states, gradients, shards = zip(*reducer.run(play))
    return states, np.sum(gradients, axis=0), shards


def gathered(shards, name):
    return np.concatenate([getattr(shard, name).numpy() for shard in shards])


@pytest.mark.parametrize("mode", ["store", "recompute"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", SHARDINGS)
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), (ARCFACE, 128.0), ((0.9, 0.4, 0.15), 30.0), (None, 1.0)])
def test_loss_and_gradients_match_the_oracle(classes, ranks, samples, margins, scale, dtype, mode):
    problem = make_problem(classes, samples, dtype=dtype, with_bias=margins is None)
    features, labels, weight, bias = problem
    loss, d_x, d_w, d_b = oracle(*problem, margins=margins, scale=scale)
    states, found_x, shards = run_fused(problem, ranks, margins, scale, mode)
    assert len({state.loss.item() for state in states}) == 1
    assert relative_error(states[0].loss, loss) < TOLERANCE[dtype]
    assert relative_error(found_x, d_x) < TOLERANCE[dtype]
    # With plain SGD at a rate of 1 the update is the gradient, rounded at the size of the weight.
    rounding = 0.0 if dtype == "float64" else 2e-7 * np.abs(weight).max()
    assert np.abs(weight - gathered(shards, "weight") - d_w).max() < TOLERANCE[dtype] * np.abs(d_w).max() + rounding
    if bias is not None:
        assert np.abs(bias - gathered(shards, "bias") - d_b).max() < TOLERANCE[dtype] * np.abs(d_b).max() + 5e-7


@pytest.mark.parametrize("margins", [ARCFACE, None])
@pytest.mark.parametrize(
    "rule, optimizer",
    [
        (SGD(), lambda p: paddle.optimizer.SGD(0.05, p)),
        (SGD(1e-2), lambda p: paddle.optimizer.SGD(0.05, p, weight_decay=1e-2)),
        (Momentum(0.9, 1e-2), lambda p: paddle.optimizer.Momentum(0.05, 0.9, p, weight_decay=1e-2)),
        (AdamW(decay=0.1), lambda p: paddle.optimizer.AdamW(0.05, parameters=p, weight_decay=0.1)),
    ],
    ids=["sgd", "sgd-l2", "momentum", "adamw"],
)
def test_fused_and_unfused_give_the_same_weights(rule, optimizer, margins):
    problem = make_problem(50, 8, dtype="float64", with_bias=margins is None)
    features, labels, weight, bias = problem
    _, _, shards = run_fused(problem, 2, margins, 16.0, rule=rule, steps=8, rate=0.05)
    parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for name, value in parameters.items():
        parameters[name] = paddle.create_parameter(value.shape, "float64")
        parameters[name].set_value(value)
    plain, head = optimizer(list(parameters.values())), ShardedSoftmax(Margin(*margins) if margins else None, 16.0)
    for _ in range(8):
        gradients = head.backward(head.forward(paddle.to_tensor(features), paddle.to_tensor(labels), **parameters))
        for name, parameter in parameters.items():
            parameter.grad = getattr(gradients, name)
        plain.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(gathered(shards, name), parameter.numpy(), rtol=0, atol=1e-9)


def test_both_modes_give_the_same_bits():
    problem = make_problem(50, 8, dtype="float32")
    weights = [
        gathered(run_fused(problem, 2, ARCFACE, 64.0, mode, Momentum(), steps=5, rate=0.1)[2], "weight")
        for mode in ("store", "recompute")
    ]
    np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize("scale", [64.0, 128.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_cosine_at_its_limit_stays_in_range(scale, sign):
    """All classes on one line: every exponential is e^s, or every one e^-s. The loss is known exactly."""
    classes = 1000
    weight = np.zeros((classes, 4), np.float32)
    weight[:, 0] = np.geomspace(1e-2, 1e3, classes)
    features, labels = np.array([[sign, 0, 0, 0]] * 2, np.float32), np.array([3, 700])
    states, gradient, shards = run_fused((features, labels, weight, None), 2, (1.0, 0.0, 0.35), scale)
    assert states[0].loss.item() == pytest.approx(math.log1p((classes - 1) * math.exp(scale * 0.35)), rel=1e-5)
    assert np.isfinite(gradient).all() and np.isfinite(gathered(shards, "weight")).all()
    # Nothing but the direction along the feature exists here, and that is removed.
    np.testing.assert_allclose(gradient, 0.0, atol=1e-3)


@pytest.mark.parametrize("margins", [ARCFACE, (1.0, 0.0, 0.05)])
def test_a_sure_network_still_has_an_exact_gradient(margins):
    """p - 1 is some -1e-7 to -1e-17 here, which float32 cannot hold as a difference."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((20, 16)).astype("float32")
    features, labels = (weight[:6] + 0.1 * rng.standard_normal((6, 16))).astype("float32"), np.arange(6)
    loss, d_x, d_w, _ = oracle(features, labels, weight, margins=margins)
    assert 0 < loss < 1e-4
    states, found, _ = run_fused((features, labels, weight, None), 2, margins, 64.0)
    assert relative_error(states[0].loss, loss) < 1e-4
    assert relative_error(found, d_x) < 1e-4


def test_vectors_of_zeros_give_finite_updates():
    problem = (np.zeros((2, 4), np.float32), np.array([0, 1]), np.zeros((3, 4), np.float32), None)
    states, gradient, shards = run_fused(problem, 1, ARCFACE, 64.0, rate=1e-6)
    assert math.isfinite(states[0].loss.item()) and np.isfinite(gradient).all()
    assert np.isfinite(gathered(shards, "weight")).all()


def test_one_class_is_no_loss():
    for margins, scale in ((ARCFACE, 64.0), (ARCFACE, 128.0), (None, 1.0)):
        problem = make_problem(1, 3, dtype="float32")
        states, gradient, shards = run_fused(problem, 2, margins, scale)
        assert states[0].loss.item() == 0.0
        np.testing.assert_array_equal(gradient, 0.0)
        np.testing.assert_array_equal(gathered(shards, "weight"), problem[2])


@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), (None, 1.0)])
@pytest.mark.parametrize("ranks", [1, 3])
def test_counts_above_the_target_as_the_unfused_does(margins, scale, ranks):
    problem = make_problem(47, 12, seed=3, with_bias=margins is None)
    features, labels, weight, bias = (None if a is None else paddle.to_tensor(a) for a in problem)
    plain = ShardedSoftmax(Margin(*margins) if margins else None, scale).forward(features, labels, weight, bias, True)
    assert plain.above.max().item() > 0
    states, _, _ = run_fused(problem, ranks, margins, scale, count_above=True)
    for state in states:
        np.testing.assert_array_equal(state.above.numpy(), plain.above.numpy())


def test_a_weight_that_was_set_from_outside_is_noticed():
    """The norms kept from the last update do not outlive it."""
    problem = make_problem(50, 8)
    features, labels, weight, _ = problem
    shard, head = Shard(paddle.to_tensor(weight), None, SGD()), FusedSoftmax(Margin(*ARCFACE), 64.0)
    features, labels = paddle.to_tensor(features), paddle.to_tensor(labels)
    head.backward(head.forward(features, labels, shard), shard, 0.1)
    shard.weight.set_value(weight * np.linspace(1.0, 9.0, 50)[:, None])
    fresh = FusedSoftmax(Margin(*ARCFACE), 64.0).forward(features, labels, Shard(shard.weight, None, SGD()))
    assert head.forward(features, labels, shard).loss.item() == fresh.loss.item()


def test_forward_leaves_the_shard_as_it_is():
    features, labels, weight, _ = make_problem(50, 8)
    shard, head = Shard(paddle.to_tensor(weight), None, Momentum()), FusedSoftmax(Margin(*ARCFACE), 64.0)
    head.forward(paddle.to_tensor(features), paddle.to_tensor(labels), shard)
    np.testing.assert_array_equal(shard.weight.numpy(), weight)
    assert shard.step == 0


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="expected 'store' or 'recompute'"):
        FusedSoftmax(Margin(), mode="both")
