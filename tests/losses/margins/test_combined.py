"""The margin against its definition, at its guards, and on its bounds."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses.margins.combined import CombinedMargin
from tests._support.head_oracle import psi

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
