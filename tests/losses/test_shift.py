"""The shift of the exponents: every policy keeps the sums what they are, and in range."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.losses.reference import SingleRank
from plsc.losses.shift import ConstantShift, HalfRange, RunningMaximum, choose_shift


@pytest.mark.parametrize(
    "scale, half_range, policy",
    [
        (64.0, False, ConstantShift),
        (64.1, False, RunningMaximum),
        (None, False, RunningMaximum),
        (64.0, True, HalfRange),
        (None, True, HalfRange),
    ],
)
def test_the_policy_follows_the_bound_of_the_logits(scale, half_range, policy):
    assert choose_shift(scale, half_range=half_range) is policy


@pytest.mark.parametrize("policy, largest", [(ConstantShift, 64.0), (RunningMaximum, 1e4), (HalfRange, 1e4)])
def test_sums_over_chunks_are_those_of_the_logits(policy, largest):
    """total * e^shift is the sum of e^z, and gradient * e^shift follows it, after each phase."""
    logits = np.random.default_rng(0).uniform(-largest, largest, (12, 3))
    shift = policy(3, paddle.float64)
    total, gradient = paddle.zeros([3], "float64"), paddle.zeros([3, 2], "float64")
    for chunk in np.split(logits, 3):
        exponents = paddle.to_tensor(chunk) - shift.constant
        shift.follow(exponents, total=total, gradient=gradient)
        e = shift.subtract_(exponents).exp()
        total.add_(e.sum(axis=0))
        gradient.add_(e.sum(axis=0).unsqueeze(1) * paddle.to_tensor([[1.0, 2.0]], "float64"))
    expected = np.logaddexp.reduce(logits, axis=0)

    def check():
        np.testing.assert_allclose(total.log() + shift.value, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient, total.unsqueeze(1) * paddle.to_tensor([[1.0, 2.0]], "float64"))

    check()
    shift.agree(SingleRank(), total=total, gradient=gradient)
    check()
    shift.center(total, gradient=gradient)
    check()


def test_half_range_divides_by_the_root_of_the_total():
    shift, total, gradient = HalfRange(1, paddle.float32), paddle.zeros([1]), paddle.zeros([1, 1])
    exponents = paddle.zeros([10_000, 1])
    shift.follow(exponents, total=total, gradient=gradient)
    total.add_(shift.subtract_(exponents).exp().sum(axis=0))
    shift.center(total, gradient=gradient)
    assert total.item() == pytest.approx(100.0)
    # The second pass then has exponentials of 1 / 100 and a target term of about 100.
    assert paddle.exp(-shift.value).item() == pytest.approx(0.01)
