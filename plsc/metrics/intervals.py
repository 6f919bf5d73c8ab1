"""Confidence intervals of shares."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution: an interval of 95 %."""


def wilson_interval(share: float, trials: int, *, z: float = Z95) -> tuple[float, float]:
    """The interval of Wilson (1927) for a probability: all p from which the share is within z standard deviations.

    The ends are the solutions of (share - p)^2 = z^2 p (1 - p) / trials.

    Args:
        share: of the trials that succeeded, 0 to 1.
        trials: 1 or more, independent of each other.
        z: half the width, in standard deviations.

    Example:
        >>> wilson_interval(0.99, 6000)
        (0.98715..., 0.99222...)
    """
    weight = z * z / trials
    center = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))  # rounding may lead past the ends
