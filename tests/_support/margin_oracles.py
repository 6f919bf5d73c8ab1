"""The margins of the library for one sample, in plain numbers, straight from their papers.

Each returns (psi, derivative by the cosine, derivative by the norm) of one sample.
"""

from __future__ import annotations

import math
import statistics


def add_angle(cosine, m):
    """cos(theta + m), and beyond pi the line of slope 1: (value, derivative by the cosine, derivative by m)."""
    theta = math.acos(cosine)
    if theta + m > math.pi:
        return cosine + math.cos(m) - 1.0, 1.0, -math.sin(m)
    return math.cos(theta + m), math.sin(theta + m) / math.sin(theta), -math.sin(theta + m)


def angle_added(m):
    """A function for `oracle`: the angle m is added."""
    return lambda cosine, norm, label: (*add_angle(cosine, m)[:2], 0.0)


def subtracted(m):
    """A function for `oracle`: m is subtracted from the cosine."""
    return lambda cosine, norm, label: (cosine - m, 1.0, 0.0)


def adaface(norms, mean, std, *, m=0.4, h=0.333, average=0.01):
    """(a function for `oracle`, mean and deviation after the batch), from those before and the batch's norms."""
    clipped = [min(max(norm, 0.001), 100.0) for norm in norms]
    mean = (1.0 - average) * mean + average * statistics.mean(clipped)
    std = (1.0 - average) * std + average * statistics.stdev(clipped)

    def of_one(cosine, norm, label):
        z = (min(max(norm, 0.001), 100.0) - mean) / (std + 0.001) * h
        z = min(max(z, -1.0), 1.0)
        theta = math.acos(cosine)
        angle = theta - m * z
        if not 0.001 < angle < math.pi - 0.001:
            angle = min(max(angle, 0.001), math.pi - 0.001)
            return math.cos(angle) - (m + m * z), 0.0, 0.0
        return math.cos(angle) - (m + m * z), math.sin(angle) / math.sin(theta), 0.0

    return of_one, mean, std


def magface(cosine, norm, label, *, l_a=10.0, u_a=110.0, l_margin=0.45, u_margin=0.8):
    slope = (u_margin - l_margin) / (u_a - l_a)
    value, by_cosine, by_margin = add_angle(cosine, l_margin + slope * (min(max(norm, l_a), u_a) - l_a))
    return value, by_cosine, by_margin * slope if l_a < norm < u_a else 0.0


def magface_penalty(norm, *, l_a=10.0, u_a=110.0, lambda_g=35.0):
    """(value, derivative by the norm)."""
    a = min(max(norm, l_a), u_a)
    return lambda_g * (a / u_a**2 + 1.0 / a), lambda_g * (1.0 / u_a**2 - 1.0 / a**2) if l_a < norm < u_a else 0.0


def dynamic_margins(counts, *, low=0.05, high=0.5, power=0.25):
    """The angle of each class."""
    inverse = [count**-power for count in counts]
    return [low + (high - low) * (t - min(inverse)) / (max(inverse) - min(inverse)) for t in inverse]


def warmed_up(margin, share):
    """A function for `oracle`: the margin times a share."""

    def of_one(cosine, norm, label):
        value, by_cosine, by_norm = margin(cosine, norm, label)
        return cosine + share * (value - cosine), 1.0 + share * (by_cosine - 1.0), share * by_norm

    return of_one
