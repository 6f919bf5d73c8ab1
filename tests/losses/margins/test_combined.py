"""The margin against its definition, at its guards, and on its bounds."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plsc.errors import ConfigError
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.precision import HalfPrecision
from tests._support.head_oracle import oracle, psi
from tests._support.head_problems import gathered, make_problem, run_fused, run_reference, run_sampled

MARGINS = [
    (1.0, 0.5, 0.0),
    (1.0, 0.0, 0.35),
    (1.35, 0.0, 0.0),
    (0.9, 0.4, 0.15),
    (1.0, 0.3, 0.2),
    (2.0, 0.1, 0.0),
    (1.0, 0.0, 0.0),
    (1.0, math.pi, 0.0),
]


@pytest.mark.parametrize("margins", MARGINS)
def test_value_and_derivative_follow_the_definition(margins):
    cosines = np.linspace(-0.9995, 0.9995, 4001)
    value, derivative = CombinedMargin(*margins)(paddle.to_tensor(cosines))
    expected = np.array([psi(c, *margins) for c in cosines])
    np.testing.assert_allclose(value.numpy(), expected[:, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(derivative.numpy(), expected[:, 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("margins", MARGINS)
def test_derivative_is_the_slope_of_the_value(margins):
    cosines, step = np.linspace(-0.99, 0.99, 1001), 1e-6
    margin = CombinedMargin(*margins)
    above, below = (margin(paddle.to_tensor(cosines + d))[0].numpy() for d in (step, -step))
    derivative = margin(paddle.to_tensor(cosines))[1].numpy()
    # The slope itself jumps at the turning point.
    smooth = np.abs(cosines - margin._turning_cosine) > 2 * step
    np.testing.assert_allclose(((above - below) / (2 * step))[smooth], derivative[smooth], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("margins", MARGINS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_larger_angle_never_scores_higher(margins, dtype):
    cosines = np.cos(np.linspace(0.0, math.pi, 20001)).astype(dtype)
    value, derivative = CombinedMargin(*margins)(paddle.to_tensor(cosines))
    assert (np.diff(value.numpy().astype(np.float64)) <= 4 * np.finfo(dtype).eps).all()
    assert (derivative.numpy() >= 0).all()
    turn = CombinedMargin(*margins)._turning_cosine
    assert (derivative.numpy()[cosines < turn] >= 1.0).all()


@pytest.mark.parametrize("margins", MARGINS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_finite_at_and_past_the_ends(margins, dtype):
    ends = paddle.to_tensor(np.array([-1.001, -1.0, 1.0, 1.001], dtype))
    value, derivative = CombinedMargin(*margins)(ends)
    assert value.dtype == derivative.dtype == ends.dtype
    assert np.isfinite(value.numpy()).all() and np.isfinite(derivative.numpy()).all()


@pytest.mark.parametrize(
    "margins", [(0.0, 0.5, 0.0), (1.0, -0.1, 0.0), (1.0, 3.2, 0.0), (1.0, 0.0, -0.1), (1.0, float("nan"), 0.0)]
)
def test_a_margin_outside_its_range_is_refused(margins):
    with pytest.raises(ConfigError, match="expected m1 > 0"):
        CombinedMargin(*margins)


HEADS = ["reference", "store", "recompute", "sampled"]
PRECISIONS = ["float64", "float32", "float16", "bfloat16"]


def play(head, problem, ranks, margin, scale, precision):
    """(loss, dX, dW) of one step; sampled: at the least ratio."""
    if head == "reference":
        (state, *_), d_x, d_w, _ = run_reference(problem, ranks, margin, scale)
    elif head == "sampled":
        state, d_x, shards, _ = run_sampled(problem, ranks, 1e-9, margin, scale, precision=precision)
        d_w = problem[2] - gathered(shards, "weight")
    else:
        (state, *_), d_x, d_w, _ = run_fused(problem, ranks, margin, scale, logits=head, precision=precision)
    return state.loss.item(), d_x, d_w


@settings(max_examples=150)
@example(1.0, 0.5, 0.0, 64.0, 1, 1, 1, "store", "float32", True)
@example(1.0, 0.0, 2.0, 64.0, 1, 3, 2, "store", "float32", True)
@example(1.0, 0.0, 1e30, 128.0, 1, 2, 1, "sampled", "float16", True)
@example(1.0, 0.0, 0.35, 64.0, 3, 1, 1, "sampled", "float64", False)
@example(1.0, 0.0, 1.0, 64.0, 2, 1, 3, "store", "float64", False)
@given(
    m1=st.floats(0.1, 4.0),
    m2=st.floats(0.0, math.pi),
    m3=st.one_of(st.floats(0.0, 3.0), st.floats(3.0, 1e30)),
    scale=st.sampled_from([1.0, 64.0, 128.0]),
    classes=st.integers(1, 3),
    ranks=st.integers(1, 3),
    samples=st.integers(1, 4),
    head=st.sampled_from(HEADS),
    precision=st.sampled_from(PRECISIONS),
    opposite=st.booleans(),
)
def test_few_classes_give_finite_gradients_and_a_single_one_none(
    m1, m2, m3, scale, classes, ranks, samples, head, precision, opposite
):
    """Up to three classes on up to three ranks, some of which have none; features near or opposite their centers."""
    dtype = "float64" if precision == "float64" else "float32"
    features, labels, weight, _ = make_problem(classes, samples, dtype=dtype)
    problem = (-features if opposite else features, labels, weight, None)
    half = HalfPrecision(precision) if precision.endswith("16") else None
    loss, d_x, d_w = play(head, problem, ranks, CombinedMargin(m1, m2, m3), scale, half)
    assert math.isfinite(loss) and loss >= 0.0
    assert np.isfinite(d_x).all() and np.isfinite(d_w).all()
    if classes == 1:
        assert loss == 0.0
        np.testing.assert_array_equal(d_x, 0.0)
        np.testing.assert_array_equal(d_w, 0.0)
    elif precision == "float64" and head != "sampled" and m3 <= 3.0:
        expected, expected_x, expected_w, _ = oracle(*problem, margins=(m1, m2, m3), scale=scale)
        np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(d_x, expected_x, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(d_w, expected_w, rtol=1e-7, atol=1e-7)
    if classes > 1 and head == "sampled" and scale == 1.0 and m3 <= 3.0:
        assert loss > 0.0 and d_x.any()
