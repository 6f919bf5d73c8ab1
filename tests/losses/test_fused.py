"""The fused step against the per-sample oracle, the reference and Paddle's own optimizers."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.precision import HalfPrecision
from plsc.losses.reference import ReferenceSoftmax
from plsc.losses.row_optimizers import SGD, AdamW, Momentum
from plsc.losses.shard import Shard
from tests._support.head_oracle import oracle, relative_error, worst_row_error
from tests._support.head_problems import (
    ARCFACE,
    SHARDINGS,
    TOLERANCE,
    gathered,
    make_problem,
    run_fused,
    train_fused,
    train_step,
    with_short_vectors,
)
from tests._support.workers.cases import NormMargin

pytestmark = pytest.mark.usefixtures("small_chunks")


def combined(margins):
    return None if margins is None else CombinedMargin(*margins)


@pytest.mark.parametrize("logits", ["store", "recompute"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", SHARDINGS)
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), (ARCFACE, 128.0), ((0.9, 0.4, 0.15), 30.0), (None, 1.0)])
def test_loss_and_gradients_match_the_oracle(classes, ranks, samples, margins, scale, dtype, logits):
    problem = make_problem(classes, samples, dtype=dtype, with_bias=margins is None)
    loss, d_x, d_w, d_b = oracle(*problem, margins=margins, scale=scale)
    states, found_x, found_w, found_b = run_fused(problem, ranks, combined(margins), scale, logits=logits)
    assert len({state.loss.item() for state in states}) == 1
    assert relative_error(states[0].loss, loss) < TOLERANCE[dtype]
    assert relative_error(found_x, d_x) < TOLERANCE[dtype]
    assert relative_error(found_w, d_w) < TOLERANCE[dtype]
    if margins is None:
        assert relative_error(found_b, d_b) < TOLERANCE[dtype]


@pytest.mark.parametrize("logits", ["store", "recompute"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", SHARDINGS)
@pytest.mark.parametrize("scale", [64.0, 128.0])
def test_a_margin_that_depends_on_the_norm_matches_the_oracle(classes, ranks, samples, scale, dtype, logits):
    problem = make_problem(classes, samples, dtype=dtype)
    loss, d_x, d_w, _ = oracle(*problem, margin=NormMargin.of_one, scale=scale)
    states, found_x, found_w, _ = run_fused(problem, ranks, NormMargin(), scale, logits=logits)
    assert relative_error(states[0].loss, loss) < TOLERANCE[dtype]
    assert relative_error(found_x, d_x) < TOLERANCE[dtype]
    assert relative_error(found_w, d_w) < TOLERANCE[dtype]


@pytest.mark.parametrize("logits", ["store", "recompute"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", [(6, 4, 5), (3, 4, 6), (40, 3, 4), (50, 2, 16), (90, 1, 7)])
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), ((0.9, 0.4, 0.15), 100.0), (None, 1.0)])
def test_a_second_pass_by_rows_matches_the_oracle(classes, ranks, samples, margins, scale, dtype, logits):
    """With l2. Among the vectors are short ones, each compared by itself."""
    problem = make_problem(classes, samples, dtype=dtype, with_bias=margins is None)
    problem = with_short_vectors(problem) if margins else problem
    loss, d_x, d_w, d_b = oracle(*problem, margins=margins, scale=scale)
    states, found_x, found_w, found_b = run_fused(
        problem, ranks, combined(margins), scale, logits=logits, l2=0.3, by_rows=True
    )
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    assert relative_error(states[0].loss, loss) < tolerance
    assert relative_error(found_x, d_x) < tolerance
    assert worst_row_error(found_w, d_w + 0.3 * problem[2].astype("float64")) < tolerance
    if margins is None:
        assert relative_error(found_b, d_b + 0.3 * problem[3].astype("float64")) < tolerance


@pytest.mark.parametrize("margins", [ARCFACE, None])
def test_l2_adds_a_multiple_of_each_row(margins):
    problem = make_problem(50, 8, with_bias=margins is None)
    _, _, d_w, d_b = oracle(*problem, margins=margins, scale=16.0)
    _, _, found_w, found_b = run_fused(problem, 2, combined(margins), 16.0, l2=0.3)
    np.testing.assert_allclose(found_w, d_w + 0.3 * problem[2], rtol=0, atol=1e-12)
    if margins is None:
        np.testing.assert_allclose(found_b, d_b + 0.3 * problem[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("margins", [ARCFACE, None])
@pytest.mark.parametrize(
    "row_optimizer, optimizer",
    [
        (SGD(), lambda p: paddle.optimizer.SGD(0.05, p)),
        (SGD(1e-2), lambda p: paddle.optimizer.SGD(0.05, p, weight_decay=1e-2)),
        (Momentum(0.9, 1e-2), lambda p: paddle.optimizer.Momentum(0.05, 0.9, p, weight_decay=1e-2)),
        (AdamW(decay=0.1), lambda p: paddle.optimizer.AdamW(0.05, parameters=p, weight_decay=0.1)),
    ],
    ids=["sgd", "sgd-l2", "momentum", "adamw"],
)
def test_fused_and_reference_train_to_the_same_weights(row_optimizer, optimizer, margins):
    problem = make_problem(50, 8, dtype="float64", with_bias=margins is None)
    features, labels, weight, bias = problem
    shards = train_fused(problem, 2, combined(margins), 16.0, optimizer=row_optimizer, steps=8, learning_rate=0.05)
    parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for name, value in parameters.items():
        parameters[name] = paddle.create_parameter(value.shape, "float64")
        parameters[name].set_value(value)
    plain, softmax = optimizer(list(parameters.values())), ReferenceSoftmax(combined(margins), 16.0)
    features, labels = paddle.to_tensor(features), paddle.to_tensor(labels)
    for _ in range(8):
        gradients = softmax.row_gradients(softmax.loss_and_feature_gradient(features, labels, **parameters))
        for name, parameter in parameters.items():
            parameter.grad = getattr(gradients, name)
        plain.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(gathered(shards, name), parameter.numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("half", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), (ARCFACE, 128.0), (None, 1.0)])
def test_stored_and_recomputed_logits_give_the_same_bits(margins, scale, by_rows, half):
    problem = make_problem(50, 8, dtype="float32", with_bias=margins is None)
    options = {"optimizer": Momentum(), "steps": 5, "learning_rate": 0.1}
    options |= {"precision": HalfPrecision(half) if half else None, "by_rows": by_rows}
    shards = [
        train_fused(problem, 2, combined(margins), scale, logits=logits, **options) for logits in ("store", "recompute")
    ]
    np.testing.assert_array_equal(*(gathered(found, "weight") for found in shards))


@pytest.mark.parametrize("scale", [64.0, 128.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_cosine_at_its_limit_stays_in_range(scale, sign):
    """All classes on one line: every exponential is e^s, or every one e^-s. The loss is known exactly."""
    classes = 1000
    weight = np.zeros((classes, 4), np.float32)
    weight[:, 0] = np.geomspace(1e-2, 1e3, classes)
    problem = (np.array([[sign, 0, 0, 0]] * 2, np.float32), np.array([3, 700]), weight, None)
    states, found_x, found_w, _ = run_fused(problem, 2, CombinedMargin(m3=0.35), scale)
    assert states[0].loss.item() == pytest.approx(math.log1p((classes - 1) * math.exp(scale * 0.35)), rel=1e-5)
    assert np.isfinite(found_x).all() and np.isfinite(found_w).all()
    # The only direction here is that of the feature itself, and the gradient has no part along the feature.
    np.testing.assert_allclose(found_x, 0.0, atol=1e-3)


@pytest.mark.parametrize("margins", [ARCFACE, (1.0, 0.0, 0.05)])
def test_a_loss_near_zero_has_an_exact_gradient(margins):
    """p - 1 is about -1e-7 to -1e-17 here, which float32 cannot hold as a difference."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((20, 16)).astype("float32")
    features, labels = (weight[:6] + 0.1 * rng.standard_normal((6, 16))).astype("float32"), np.arange(6)
    loss, d_x, d_w, _ = oracle(features, labels, weight, margins=margins)
    assert 0 < loss < 1e-4
    states, found_x, found_w, _ = run_fused((features, labels, weight, None), 2, combined(margins), 64.0)
    assert relative_error(states[0].loss, loss) < 1e-4
    assert relative_error(found_x, d_x) < 1e-4
    assert relative_error(found_w, d_w) < 1e-4


@pytest.mark.parametrize("logits", ["store", "recompute"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", [*SHARDINGS, (11, 2, 12)])
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), ((1.0, 0.0, 0.35), 128.0), (None, 30.0)])
def test_short_vectors_have_the_loss_and_the_bounded_gradients_of_the_oracle(
    classes, ranks, samples, margins, scale, dtype, logits
):
    """None of the margins stands for one that depends on the norm. Each row is compared by itself."""
    problem = with_short_vectors(make_problem(classes, samples, dtype=dtype))
    given = {"margins": margins} if margins else {"margin": NormMargin.of_one}
    margin = CombinedMargin(*margins) if margins else NormMargin()
    loss, d_x, d_w, _ = oracle(*problem, **given, scale=scale)
    states, found_x, found_w, _ = run_fused(problem, ranks, margin, scale, logits=logits)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    assert relative_error(states[0].loss, loss) < tolerance
    assert worst_row_error(found_x, d_x) < tolerance
    assert worst_row_error(found_w, d_w) < tolerance
    assert not found_x[0].any()


def test_vectors_of_zeros_give_finite_gradients():
    problem = (np.zeros((2, 4), np.float32), np.array([0, 1]), np.zeros((3, 4), np.float32), None)
    states, found_x, found_w, _ = run_fused(problem, 1, CombinedMargin(*ARCFACE), 64.0)
    assert math.isfinite(states[0].loss.item())
    np.testing.assert_array_equal(found_x, 0.0)
    np.testing.assert_array_equal(found_w, 0.0)


@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), (ARCFACE, 128.0), (None, 1.0)])
def test_one_class_has_no_loss_and_no_gradient(margins, scale):
    states, found_x, found_w, _ = run_fused(make_problem(1, 3, dtype="float32"), 2, combined(margins), scale)
    assert states[0].loss.item() == 0.0
    np.testing.assert_array_equal(found_x, 0.0)
    np.testing.assert_array_equal(found_w, 0.0)


@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), (None, 1.0)])
@pytest.mark.parametrize("ranks", [1, 3])
def test_counts_greater_logits_as_the_reference_does(margins, scale, ranks):
    problem = make_problem(47, 12, seed=3, with_bias=margins is None)
    features, labels, weight, bias = (None if a is None else paddle.to_tensor(a) for a in problem)
    plain = ReferenceSoftmax(combined(margins), scale).loss_and_feature_gradient(
        features, labels, weight=weight, bias=bias, count_above=True
    )
    assert plain.num_greater.max().item() > 0
    states, *_ = run_fused(problem, ranks, combined(margins), scale, count_above=True)
    for state in states:
        np.testing.assert_array_equal(state.num_greater.numpy(), plain.num_greater.numpy())


def test_a_weight_written_from_outside_counts_once_the_norms_are_invalidated():
    features, labels, weight, _ = make_problem(50, 8)
    shard, softmax = Shard(paddle.to_tensor(weight), SGD()), FusedSoftmax(CombinedMargin(*ARCFACE))
    features, labels = paddle.to_tensor(features), paddle.to_tensor(labels)
    train_step(softmax, features, labels, shard, 0.1)
    shard.weight.set_value(weight * np.linspace(1.0, 9.0, 50)[:, None])
    shard.invalidate_norms()
    fresh = FusedSoftmax(CombinedMargin(*ARCFACE)).loss_and_feature_gradient(
        features, labels, shard=Shard(shard.weight, SGD())
    )
    assert softmax.loss_and_feature_gradient(features, labels, shard=shard).loss.item() == fresh.loss.item()


@pytest.mark.cpu("counts the blocks of a CPU")
def test_neither_loss_nor_gradients_change_the_shard():
    features, labels, weight, _ = make_problem(50, 8)
    shard, softmax = Shard(paddle.to_tensor(weight), Momentum()), FusedSoftmax(CombinedMargin(*ARCFACE))
    state = softmax.loss_and_feature_gradient(paddle.to_tensor(features), paddle.to_tensor(labels), shard=shard)
    blocks = list(softmax.row_gradients(state))
    assert len(blocks) == 13  # three chunks of 16 rows have 4 blocks each, the last 2 rows are one block
    np.testing.assert_array_equal(shard.weight.numpy(), weight)
    assert shard.step == 0


def test_an_unknown_logits_mode_is_refused():
    with pytest.raises(ConfigError, match="expected 'store' or 'recompute'"):
        FusedSoftmax(CombinedMargin(), logits="both")
