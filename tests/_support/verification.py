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


def slow_make_folds(same, folds):
    """Lists of pairs: contiguous parts if the share of same pairs is alike in all, else the same pairs in contiguous
    parts and the different pairs likewise, whose longer parts are those where the same pairs have shorter ones."""
    parts = list(slow_folds(len(same), folds))
    share = sum(map(int, same)) / len(same)
    if all(abs(sum(int(same[index]) for index in part) / len(part) - share) <= 0.1 + 1e-12 for part in parts):
        return parts
    parts = [[] for _ in range(folds)]
    kinds = [[index for index in range(len(same)) if same[index] == kind] for kind in (True, False)]
    takes = [[0] * folds, [0] * folds]
    fold = 0
    for kind, members in enumerate(kinds):
        for _ in members:
            takes[kind][fold] += 1
            fold = (fold + 1) % folds
    for members, sizes in zip(kinds, takes):
        for part, size in zip(parts, sizes):
            part += members[:size]
            members = members[size:]
    return parts
