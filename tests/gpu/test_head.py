"""The head against the oracle in float64, by the type of its products."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.adaface import AdaFace
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.margins.dynamic import DynamicMargin
from plsc.losses.margins.elasticface import ElasticArcPlus, ElasticCos
from plsc.losses.margins.magface import MagFace
from plsc.losses.margins.warmup import WarmupMargin
from plsc.losses.precision import HalfPrecision
from plsc.losses.row_optimizers import SGD, Momentum
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.utils.ranges import Range
from tests._support import margin_oracles
from tests._support.head_oracle import oracle, relative_error
from tests._support.head_problems import ARCFACE, collect, make_problem, train_step

# As tests/losses/test_precision.py has them; float32 also allows for TF32, which has 11 bits.
TOLERANCE = {"float32": 4e-3, "float16": 8e-3, "bfloat16": 6e-2}


def parts(problem, optimizer=None):
    features, labels, weight, bias = problem
    bias = None if bias is None else paddle.to_tensor(bias)
    shard = Shard(paddle.to_tensor(weight), optimizer or SGD(), bias=bias)
    return paddle.to_tensor(features), paddle.to_tensor(labels), shard


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("logits", ["store", "recompute"])
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 16.0), (ARCFACE, 128.0), (None, 1.0)])
def test_loss_and_gradients_are_near_the_oracle(device, dtype, logits, margins, scale):
    problem = make_problem(50, 12, dtype="float32", with_bias=margins is None)
    loss, d_x, d_w, _ = oracle(*problem, margins=margins, scale=scale)
    precision = None if dtype == "float32" else HalfPrecision(dtype)
    softmax = FusedSoftmax(CombinedMargin(*margins) if margins else None, scale, logits=logits, precision=precision)
    features, labels, shard = parts(problem)
    assert shard.weight.place.is_gpu_place() == (device == "gpu")
    state = softmax.loss_and_feature_gradient(features, labels, shard=shard)
    found_w, _ = collect(softmax.row_gradients(state), shard)
    exponential = 1.0 + scale / 16
    assert abs(state.loss.item() - loss) < scale / 2048 + 1e-3
    assert relative_error(state.feature_gradient.numpy(), d_x) < TOLERANCE[dtype] * exponential
    assert relative_error(found_w.numpy(), d_w) < TOLERANCE[dtype] * exponential


def of_adaface(problem):
    return {"margin": margin_oracles.adaface(np.linalg.norm(problem[0], axis=1), 20.0, 100.0)[0]}


def of_magface(problem):
    def penalty(norm):
        return margin_oracles.magface_penalty(norm, l_a=1.0)

    return {"margin": lambda *of: margin_oracles.magface(*of, l_a=1.0), "penalty": penalty}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "make, expected", [(AdaFace, of_adaface), (lambda: MagFace(l_a=1.0), of_magface), (lambda: None, lambda _: {})]
)
def test_margins_by_norm_and_smoothed_labels_are_near_the_oracle(device, dtype, make, expected):
    margin = make()
    problem, scale = make_problem(50, 12, dtype="float32", with_bias=margin is None), 1.0 if margin is None else 16.0
    loss, d_x, d_w, d_b = oracle(*problem, scale=scale, smoothing=0.2, **expected(problem))
    precision = None if dtype == "float32" else HalfPrecision(dtype)
    softmax = FusedSoftmax(margin, scale, precision=precision, smoothing=0.2)
    features, labels, shard = parts(problem)
    state = softmax.loss_and_feature_gradient(features, labels, shard=shard)
    found_w, found_b = collect(softmax.row_gradients(state), shard)
    assert abs(state.loss.item() - loss) < scale / 2048 + 2e-3
    assert relative_error(state.feature_gradient.numpy(), d_x) < 2 * TOLERANCE[dtype]
    assert relative_error(found_w.numpy(), d_w) < 2 * TOLERANCE[dtype]
    assert margin is not None or relative_error(found_b.numpy(), d_b) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("make", [ElasticArcPlus, ElasticCos, DynamicMargin, lambda: WarmupMargin(AdaFace(), 3)])
def test_a_device_computes_the_margins_that_a_cpu_computes(device, make):
    cosine, labels = np.linspace(-0.99, 0.99, 12, dtype="float32"), np.arange(12)

    def found(place):
        margin = make()
        with paddle.device.device_guard(place):
            if hasattr(margin, "set_class_counts"):
                margin.set_class_counts(np.arange(1, 13), Range(0, 12))
            if hasattr(margin, "begin_step"):
                margin.begin_step(1, seed=3)
            given = [paddle.to_tensor(values) for values in (cosine, 20.0 + 10.0 * cosine, labels)]
            return [part.numpy() for part in margin(*given)]

    for one, other in zip(found(device), found("cpu")):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_sampled_classes_alone_move_and_by_the_gradient_of_the_sampled_problem(device):
    problem = make_problem(50, 8, dtype="float32")
    features, labels, shard = parts(problem)
    before, sampled = shard.weight.numpy().copy(), SampledShard(shard, ratio=0.4, samples=8)
    sampled.draw(labels, seed=5)
    rows = sampled.rows.numpy()
    assert rows.tolist() == sorted(set(rows.tolist())) and set(problem[1]) <= set(rows)
    train_step(FusedSoftmax(CombinedMargin(*ARCFACE), 16.0), features, labels, sampled, 1.0)
    _, _, d_w, _ = oracle(*problem, margins=ARCFACE, scale=16.0, rows=rows.tolist())
    assert relative_error(before - shard.weight.numpy(), d_w) < 2 * TOLERANCE["float32"]
    others = np.setdiff1d(np.arange(50), rows)
    np.testing.assert_array_equal(shard.weight.numpy()[others], before[others])


def test_steps_of_momentum_are_those_of_the_definition(device):
    problem = make_problem(50, 8, dtype="float32")
    features, labels, shard = parts(problem, Momentum(0.9, 5e-4))
    softmax, weight, velocity = FusedSoftmax(CombinedMargin(*ARCFACE), 16.0), problem[2].astype(np.float64), 0.0
    for _ in range(3):
        train_step(softmax, features, labels, shard, 0.1)
        _, _, d_w, _ = oracle(problem[0], problem[1], weight, margins=ARCFACE, scale=16.0)
        velocity = 0.9 * velocity + d_w + 5e-4 * weight
        weight = weight - 0.1 * velocity
    moved = weight - problem[2]
    assert relative_error(shard.weight.numpy() - problem[2], moved) < 2 * TOLERANCE["float32"]
