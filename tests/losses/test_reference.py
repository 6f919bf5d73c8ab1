"""The sharded loss and its gradients against a per-sample float64 oracle, ranks played by threads."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.reference import ReferenceSoftmax, sample_weights
from tests._support.head_oracle import oracle, relative_error, worst_row_error
from tests._support.head_problems import ARCFACE, SHARDINGS, TOLERANCE, make_problem, run_reference, with_short_vectors
from tests._support.workers.cases import NormMargin


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
    states, found_x, found_w, _ = run_reference(problem, ranks, CombinedMargin(*margins), scale)
    assert len({state.loss.item() for state in states}) == 1
    assert relative_error(states[0].loss, loss) < TOLERANCE[dtype]
    assert relative_error(found_x, d_x) < TOLERANCE[dtype]
    assert relative_error(found_w, d_w) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", SHARDINGS)
@pytest.mark.parametrize("scale", [64.0, 128.0])
def test_a_margin_that_depends_on_the_norm_matches_the_oracle(classes, ranks, samples, scale, dtype):
    problem = make_problem(classes, samples, dtype=dtype)
    loss, d_x, d_w, _ = oracle(*problem[:3], margin=NormMargin.of_one, scale=scale)
    states, found_x, found_w, _ = run_reference(problem, ranks, NormMargin(), scale)
    assert relative_error(states[0].loss, loss) < TOLERANCE[dtype]
    assert relative_error(found_x, d_x) < TOLERANCE[dtype]
    assert relative_error(found_w, d_w) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", SHARDINGS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_softmax_kind_matches_the_oracle(classes, ranks, samples, with_bias, dtype):
    problem = make_problem(classes, samples, dtype=dtype, with_bias=with_bias)
    loss, d_x, d_w, d_b = oracle(*problem)
    states, found_x, found_w, found_b = run_reference(problem, ranks, None, 64.0)
    assert relative_error(states[0].loss, loss) < TOLERANCE[dtype]
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
    margin = CombinedMargin(*margins) if margins else None
    states, found_x, found_w, _ = run_reference((features, labels, weight, None), 2, margin, scale)
    assert relative_error(states[0].loss, loss) < 1e-10
    assert relative_error(found_x, d_x) < 1e-10
    assert relative_error(found_w, d_w) < 1e-10


def test_the_loss_is_not_floored_where_the_softmax_kernels_are():
    centers = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    problem = (np.array([[1.0, 0.0]], np.float32), np.array([1]), centers, None)
    states, _, _, _ = run_reference(problem, 2, CombinedMargin(), 64.0)
    assert states[0].loss.item() == pytest.approx(128.0, abs=1e-4)


@pytest.mark.parametrize("scale", [64.0, 128.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_features_on_and_opposite_their_center_give_finite_gradients(scale, sign):
    centers = np.eye(4, dtype=np.float32) * 3
    problem = (sign * centers[[0, 2]], np.array([0, 2]), centers, None)
    states, d_x, d_w, _ = run_reference(problem, 2, CombinedMargin(*ARCFACE), scale)
    assert math.isfinite(states[0].loss.item()) and np.isfinite(d_x).all() and np.isfinite(d_w).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", [*SHARDINGS, (11, 2, 12)])
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 64.0), ((1.0, 0.0, 0.35), 128.0), (None, 30.0)])
def test_short_vectors_have_the_loss_and_the_bounded_gradients_of_the_oracle(
    classes, ranks, samples, margins, scale, dtype
):
    """None of the margins stands for one that depends on the norm. Each row is compared by itself."""
    problem = with_short_vectors(make_problem(classes, samples, dtype=dtype))
    given = {"margins": margins} if margins else {"margin": NormMargin.of_one}
    margin = CombinedMargin(*margins) if margins else NormMargin()
    loss, d_x, d_w, _ = oracle(*problem, **given, scale=scale)
    states, found_x, found_w, _ = run_reference(problem, ranks, margin, scale)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    assert relative_error(states[0].loss, loss) < tolerance
    assert worst_row_error(found_x, d_x) < tolerance
    assert worst_row_error(found_w, d_w) < tolerance
    assert not found_x[0].any()


def test_the_gradient_by_a_feature_is_bounded_and_vanishes_with_its_length():
    """At most that of a feature with a root mean square of 0.01, which is a hundred times that of an ordinary one."""
    features, labels, weight, _ = make_problem(20, 1, size=64)
    lengths, slopes = np.geomspace(1e-30, 8.0, 400), []
    for length in lengths:
        problem = (features * (length / np.linalg.norm(features)), labels, weight, None)
        _, d_x, _, _ = run_reference(problem, 1, CombinedMargin(*ARCFACE), 64.0)
        slopes.append(np.linalg.norm(d_x) / 64.0)
    assert max(slopes) <= 2.0 / 0.08 and slopes[0] < 1e-30
    assert np.argmax(slopes) == pytest.approx(np.searchsorted(lengths, 0.08), abs=1)
    # Unchanged for ordinary features, whose gradient is in proportion to 1 / length.
    ordinary = lengths >= 0.08
    np.testing.assert_allclose(np.asarray(slopes)[ordinary] * lengths[ordinary], slopes[-1] * 8.0, rtol=1e-9)


def test_samples_have_their_full_weight_from_a_root_mean_square_of_a_hundredth_on():
    features = paddle.ones([5, 64]) * paddle.to_tensor([[0.0], [1e-3], [0.0101], [1.0], [50.0]])
    weights = sample_weights(features, CombinedMargin()).numpy()
    assert weights.tolist() == [0.0, pytest.approx(1e-6, rel=1e-4), 1.0, 1.0, 1.0]
    assert (sample_weights(features, None) == 1.0).all()


def test_vectors_of_zeros_give_finite_gradients():
    problem = (np.zeros((2, 4), np.float32), np.array([0, 1]), np.zeros((3, 4), np.float32), None)
    states, found_x, found_w, _ = run_reference(problem, 1, CombinedMargin(*ARCFACE), 64.0)
    assert math.isfinite(states[0].loss.item())
    np.testing.assert_array_equal(found_x, 0.0)
    np.testing.assert_array_equal(found_w, 0.0)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_greater_logits_are_counted_over_all_shards(ranks):
    features, labels, weight, _ = make_problem(11, 12, seed=3)
    features += np.random.default_rng(1).standard_normal(features.shape) * 3
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    cosines = features @ unit.T
    expected = (cosines > cosines[np.arange(12), labels][:, None]).sum(axis=1)
    assert expected.max() > 0
    problem = (features, labels, weight, None)
    states, *_ = run_reference(problem, ranks, CombinedMargin(*ARCFACE), 64.0, count_above=True)
    for state in states:
        np.testing.assert_array_equal(state.num_greater.numpy(), expected)


def test_arguments_are_not_changed():
    features, labels, weight, bias = (paddle.to_tensor(a) for a in make_problem(7, 5, with_bias=True))
    before = [t.clone().numpy() for t in (features, labels, weight, bias)]
    softmax = ReferenceSoftmax(None)
    softmax.row_gradients(softmax.loss_and_feature_gradient(features, labels, weight=weight, bias=bias))
    for tensor, copy in zip((features, labels, weight, bias), before):
        np.testing.assert_array_equal(tensor.numpy(), copy)
