"""The classes of the highest scores of each sample, exactly, however the classes are divided into chunks and shards.

A product of matrices in float32 is off by some units of the last digit, and by others for another size of the matrices.
It is therefore used only to find candidates: the classes whose score may be among the highest. Their scores are then
computed one by one in float64, so that they depend on nothing but the two rows.

M samples, D embedding, k classes per sample, P pairs of a sample and a class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plsc.metrics.embeddings import CENTER_FLOOR, EPSILON

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_NO_CLASS = np.iinfo(np.int64).max
_PAIRS = 1 << 13  # scored at a time: 32 MB of float64 at D = 512
_UNIT = 2.0**-24  # relative error of one operation of float32


class TopClasses:
    """The k classes of the highest score of each sample, equal scores by the lower number, of all that were offered.

    Args:
        features: [M, D].
        count: k, 1 or more.
        is_cosine: whether the score is the cosine of the feature and the class center, or <x, w> + b.

    Attributes:
        scores: [M, k] in descending order; -inf where fewer classes were offered.
        classes: [M, k], the number of each; the largest int64 where fewer were offered.

    Example:
        >>> top = TopClasses(np.eye(2, dtype=np.float32), 1, is_cosine=True)
        >>> top.offer(np.array([0, 1]), np.array([7, 8]), rows=np.array([[1, 0], [2, 2]], np.float32))
        >>> top.classes.tolist()
        [[7], [8]]
    """

    def __init__(self, features: Float32, count: int, *, is_cosine: bool) -> None:
        self._features, self._count, self._is_cosine = features, count, is_cosine
        self.scores: Float64 = np.full([len(features), count], -np.inf)
        self.classes: Int64 = np.full([len(features), count], _NO_CLASS, np.int64)

    def offer(self, samples: Int64, classes: Int64, *, rows: Float32, bias: Float32 | None = None) -> Float64:
        """Score pairs exactly, and keep those that are among the highest. No pair may be offered twice.

        Args:
            samples: [P] places in `features`.
            classes: [P] numbers of classes.
            rows: [P, D] class centers, of any length; or [P, K, D] sub-centers, of which the nearest counts.
            bias: [P], only without cosines.

        Returns:
            The scores [P].
        """
        scores = np.empty(len(samples))
        for start in range(0, len(samples), _PAIRS):
            part = slice(start, start + _PAIRS)
            own = None if bias is None else bias[part]
            scores[part] = exact_scores(self._features[samples[part]], rows[part], bias=own, is_cosine=self._is_cosine)
        self.merge(samples, classes, scores)
        return scores

    def merge(self, samples: Int64, classes: Int64, scores: Float64) -> None:
        """Take over pairs that are scored already, as by another rank; all [P]."""
        places = np.arange(len(self.scores))
        samples = np.concatenate([np.repeat(places, self._count), samples])
        classes = np.concatenate([self.classes.reshape(-1), classes])
        scores = np.concatenate([self.scores.reshape(-1), scores])
        order = np.lexsort((classes, -scores, samples))
        samples = samples[order]
        kept = order[np.arange(len(order)) - np.searchsorted(samples, places)[samples] < self._count]
        self.scores = scores[kept].reshape(-1, self._count)
        self.classes = classes[kept].reshape(-1, self._count)


def exact_scores(features: Float32, rows: Float32, *, bias: Float32 | None, is_cosine: bool) -> Float64:
    """The score [P] of each row of [P, D] with the class center [P, D] beside it, in float64.

    Of K sub-centers [P, K, D] it is the highest.
    Each depends on its two rows alone: NumPy adds up a row in an order that depends on D only.
    """
    if rows.ndim == 3:
        each = (exact_scores(features, rows[:, k], bias=bias, is_cosine=is_cosine) for k in range(rows.shape[1]))
        highest: Float64 = np.max(list(each), axis=0)
        return highest
    wide, centers = features.astype(np.float64), rows.astype(np.float64)
    products: Float64 = (wide * centers).sum(axis=1)
    if not is_cosine:
        return products if bias is None else products + bias
    lengths = np.sqrt((wide * wide).sum(axis=1)), np.sqrt((centers * centers).sum(axis=1))
    scores: Float64 = products / (np.maximum(lengths[0], EPSILON) * np.maximum(lengths[1], CENTER_FLOOR))
    return scores


def slack(dimension: int) -> float:
    """How far a cosine of D float32 numbers may be from the exact one: the products and sums of both lengths and of the
    product, each with a relative error of 2^-24. Of <x, w> it is that times |x| |w|."""
    return (2 * dimension + 16) * _UNIT
