"""Embeddings of pairs, and the slow parts that several oracles share."""

from __future__ import annotations

import numpy as np


def noisy_pairs(pairs, dimension=16, noise=0.9, seed=0):
    """Embeddings of pairs whose identities overlap, half of them same, in random order."""
    rng = np.random.default_rng(seed)
    same = rng.permutation(np.arange(pairs) % 2 == 0)
    rows = rng.normal(size=[2 * pairs, dimension])
    rows[1::2][same] = rows[0::2][same] + noise * rng.normal(size=[same.sum(), dimension])
    return rows, same


def slow_scores(rows):
    return [float(np.dot(a / np.linalg.norm(a), b / np.linalg.norm(b))) for a, b in zip(rows[0::2], rows[1::2])]


def slow_folds(pairs, folds):
    """As KFold: contiguous, the first pairs % folds of them one longer."""
    start = 0
    for fold in range(folds):
        size = pairs // folds + (fold < pairs % folds)
        yield list(range(start, start + size))
        start += size
