"""Half-precision products in the head, as under mixed precision on a GPU. Here a CPU rounds what a GPU would round."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import Margin
from plsc.losses.precision import HalfProducts
from plsc.losses.row_optimizers import SGD
from plsc.losses.shard import Shard
from tests._support.head_oracle import oracle, relative_error
from tests.losses.test_fused import ARCFACE, gathered, run_fused, small_chunks  # noqa: F401
from tests.losses.test_reference import make_problem

# Of 11 and 8 bits: what the products of some tens of rounded numbers are off by.
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes, ranks", [(50, 2), (50, 1), (5, 4)])
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 16.0), ((1.0, 0.0, 0.35), 64.0), (None, 1.0)])
def test_loss_and_gradients_are_near_the_oracle(dtype, classes, ranks, margins, scale):
    problem = make_problem(classes, 8, dtype="float32", with_bias=margins is None)
    loss, d_x, d_w, _ = oracle(*problem, margins=margins, scale=scale)
    states, found_x, shards = run_fused(problem, ranks, margins, scale, products=HalfProducts(dtype))
    # A logit is off by scale / 2^11, and the loss by no more.
    assert abs(states[0].loss.item() - loss) < scale / 2048 + 1e-3
    exponential = 1.0 + scale / 16
    assert relative_error(found_x, d_x) < TOLERANCE[dtype] * exponential
    assert relative_error(problem[2] - gathered(shards, "weight"), d_w) < TOLERANCE[dtype] * exponential


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_many_classes_at_even_odds_stay_in_range(dtype):
    """A probability is 5e-5 / 512, under float16's least number; the sum of exponentials is over its largest."""
    rng = np.random.default_rng(0)
    classes, samples = 20_000, 512
    weight = rng.standard_normal((classes, 8)).astype("float32") * 1e-2
    features = rng.standard_normal((samples, 8)).astype("float32")
    labels = np.full(samples, 7)
    found = []
    for products in (None, HalfProducts(dtype)):
        shard = Shard(paddle.to_tensor(weight), None, SGD())
        head = FusedSoftmax(Margin(*ARCFACE), 1e-3, products=products)
        state = head.forward(paddle.to_tensor(features), paddle.to_tensor(labels), shard)
        gradient = head.backward(state, shard, 1.0)
        found.append((state.loss.item(), gradient.numpy(), shard.weight.numpy() - weight))
    (loss, d_x, d_w), (half_loss, half_x, half_w) = found
    assert half_loss == pytest.approx(loss, rel=1e-4)
    assert relative_error(half_x, d_x) < TOLERANCE[dtype]
    assert relative_error(half_w[7], d_w[7]) < TOLERANCE[dtype]
    # The others move by little; they move all the same, and the right way.
    others = np.delete(np.arange(classes), 7)
    assert relative_error(half_w[others], d_w[others]) < 0.05
    assert (np.abs(half_w[others]).max(axis=1) > 0).mean() > 0.99


def test_a_sure_network_stays_finite():
    weight = np.eye(6, dtype="float32")
    problem = (weight.copy(), np.arange(6), weight, None)
    for dtype in TOLERANCE:
        states, found_x, shards = run_fused(problem, 2, (1.0, 0.0, 0.05), 64.0, products=HalfProducts(dtype))
        assert 0.0 <= states[0].loss.item() < 1e-4
        assert np.isfinite(found_x).all() and np.isfinite(gathered(shards, "weight")).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_vectors_of_zeros_give_finite_updates(dtype):
    problem = (np.zeros((2, 4), np.float32), np.array([0, 1]), np.zeros((3, 4), np.float32), None)
    states, found_x, shards = run_fused(problem, 1, ARCFACE, 64.0, rate=1e-6, products=HalfProducts(dtype))
    assert np.isfinite(states[0].loss.item()) and np.isfinite(found_x).all()
    assert np.isfinite(gathered(shards, "weight")).all()


def test_another_type_is_refused():
    with pytest.raises(ConfigError, match="expected 'float16' or 'bfloat16'"):
        HalfProducts("float32")
