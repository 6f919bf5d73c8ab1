"""Confidence intervals against their definition, solved by bisection."""

from __future__ import annotations

import pytest

from plsc.metrics.intervals import Z95, wilson_interval


def distance(share, trials, p):
    """(share - p)^2 - z^2 p (1 - p) / n: 0 at both ends of the interval."""
    return (share - p) ** 2 - Z95**2 * p * (1 - p) / trials


def solve(share, trials, outside):
    """The end of the interval between `outside`, 0 or 1, and the share."""
    inside = share
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if distance(share, trials, middle) <= 0 else (inside, middle)
    return inside


@pytest.mark.parametrize("trials", [1, 7, 600, 6000])
@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.9967, 1.0])
def test_the_ends_solve_the_equation(part, trials):
    share = round(part * trials) / trials
    low, high = wilson_interval(share, trials)
    assert low == pytest.approx(solve(share, trials, 0.0), abs=1e-9)
    assert high == pytest.approx(solve(share, trials, 1.0), abs=1e-9)
    assert 0 <= low <= share <= high <= 1
