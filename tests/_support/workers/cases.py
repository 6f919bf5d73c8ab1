"""The problems that the workers solve and the tests know the answer to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ARCFACE, COSFACE, SPHEREFACE = (1.0, 0.5, 0.0), (1.0, 0.0, 0.35), (1.35, 0.0, 0.0)


class HeadCase(NamedTuple):
    classes: int
    margins: tuple[float, float, float] | None = ARCFACE
    scale: float = 64.0
    samples_per_rank: int = 5
    with_bias: bool = False
    dtype: str = "float64"


HEAD_CASES = {
    "six": HeadCase(6),
    "five": HeadCase(5),
    "three": HeadCase(3),
    "one class": HeadCase(1),
    "batch of one": HeadCase(7, samples_per_rank=1),
    "scale 128": HeadCase(11, scale=128.0),
    "scale 64000": HeadCase(9, scale=64000.0),
    "cosface": HeadCase(10, COSFACE),
    "sphereface": HeadCase(10, SPHEREFACE),
    "combined": HeadCase(10, (0.9, 0.4, 0.15), 30.0),
    "softmax": HeadCase(10, None),
    "softmax with bias": HeadCase(6, None, with_bias=True),
    "float32": HeadCase(50, samples_per_rank=8, dtype="float32"),
}


def head_problem(case, ranks):
    """(features [G, D], labels [G] with duplicates, weight [C, D], bias [C] or None), in rank order."""
    rng = np.random.default_rng(7)
    samples = case.samples_per_rank * ranks
    weight = rng.standard_normal((case.classes, 16)).astype(case.dtype) * 0.1
    labels = rng.integers(0, case.classes, samples)
    labels[-1] = labels[0]
    features = (3.0 * weight[labels] + rng.standard_normal((samples, 16))).astype(case.dtype)
    bias = rng.standard_normal(case.classes).astype(case.dtype) if case.with_bias else None
    return features, labels, weight, bias
