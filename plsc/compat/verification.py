"""`evaluate` of PLSC 0.1, with the results that old scripts expect. They import it from `plsc.utils`.

The distance is the squared Euclidean distance and thresholds lie on fixed grids, as in the evaluation code of FaceNet,
which the field copied. The library itself uses `plsc.metrics.verification`. P pairs, D embedding, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc.errors import ConfigError, DataError
from plsc.metrics.embeddings import to_unit_length
from plsc.metrics.pairs import as_flags
from plsc.utils.plural import counted

FAR_TARGET = 1e-3

_Floats = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


def evaluate(
    embeddings: npt.NDArray[Any], issame: Sequence[bool] | _Flags, nrof_folds: int = 10, pca: int = 0
) -> tuple[_Floats, _Floats, _Floats, float, float, float]:
    """K-fold verification of pairs by squared distance.

    Args:
        embeddings: [2P, D] of unit length, used as they are; rows 2i and 2i + 1 are pair i.
        issame: [P]: booleans, or numbers that are exactly 0 or 1.
        nrof_folds: contiguous folds, 2 to P.
        pca: number of principal components of the training folds to project on, with embeddings normalized again; 0 for
            no projection. Changes tpr, fpr and accuracy only.

    Returns:
        tpr, fpr: [400], true and false accept rates at the thresholds 0, 0.01, ..., 3.99, mean over folds.
        accuracy: [nrof_folds], each at the threshold that is best on the other folds (the lowest of several).
        val, val_std: true accept rate at the threshold where the false accept rate of the other folds is 0.001, mean
            and standard deviation over folds; thresholds 0, 0.001, ..., 3.999, interpolated.
        far: false accept rate at that threshold, mean over folds.

    Raises:
        DataError: shapes that do not fit, a flag that is no flag, or an embedding that is not finite.
        ConfigError: more folds or components than the pairs allow.
    """
    embeddings, same = np.asarray(embeddings, np.float64), as_flags(issame, "issame")
    if embeddings.ndim != 2 or len(embeddings) != 2 * len(same):
        raise DataError(
            f"embeddings: got shape {list(embeddings.shape)} for {counted(len(same), 'flag')} of issame, expected "
            f"[{2 * len(same)}, D]: two rows per flag"
        )
    if not np.isfinite(embeddings).all():
        row = int(np.argmin(np.isfinite(embeddings).all(axis=1)))
        raise DataError(f"embeddings: row {row} holds NaN or infinity, expected finite numbers")
    if not 2 <= nrof_folds <= len(same):
        raise ConfigError(f"nrof_folds: got {nrof_folds}, expected 2 to {len(same)}, the number of pairs")
    first, second = embeddings[0::2], embeddings[1::2]
    tpr, fpr, accuracy = _roc(np.arange(0, 4, 0.01), first, second, same, nrof_folds, pca)
    val, val_std, far = _validation_rate(np.arange(0, 4, 0.001), _distances(first, second), same, nrof_folds)
    return tpr, fpr, accuracy, val, val_std, far


def _roc(
    thresholds: _Floats, first: _Floats, second: _Floats, same: _Flags, folds: int, pca: int
) -> tuple[_Floats, _Floats, _Floats]:
    distances = _distances(first, second)
    rates, accuracies = [], []
    for train, test in _folds(len(same), folds):
        if pca > 0:
            distances = _distances(*_project(first, second, train, pca))
        best = int(_accuracy(thresholds, distances[train], same[train]).argmax())
        accuracies.append(_accuracy(thresholds[best : best + 1], distances[test], same[test])[0])
        rates.append(_accept_rates(thresholds, distances[test], same[test]))
    tpr, fpr = np.mean(rates, axis=0)
    return tpr, fpr, np.array(accuracies)


def _validation_rate(thresholds: _Floats, distances: _Floats, same: _Flags, folds: int) -> tuple[float, float, float]:
    vals, fars = np.zeros(folds), np.zeros(folds)
    for fold, (train, test) in enumerate(_folds(len(same), folds)):
        far_train = _accept_rates(thresholds, distances[train], same[train])[1]
        reached = far_train.max() >= FAR_TARGET
        threshold = np.interp(FAR_TARGET, far_train, thresholds) if reached else 0.0
        (vals[fold],), (fars[fold],) = _accept_rates(np.array([threshold]), distances[test], same[test])
    return float(vals.mean()), float(vals.std()), float(fars.mean())


def _folds(pairs: int, folds: int) -> Iterator[tuple[_Indices, _Indices]]:
    for test in np.array_split(np.arange(pairs), folds):
        yield np.setdiff1d(np.arange(pairs), test), test


def _distances(first: _Floats, second: _Floats) -> _Floats:
    squares: _Floats = np.square(first - second).sum(axis=1)
    return squares


def _accepted(thresholds: _Floats, distances: _Floats) -> _Indices:
    """The number of distances below each threshold, [T]."""
    return np.searchsorted(np.sort(distances), thresholds, side="left")


def _accept_rates(thresholds: _Floats, distances: _Floats, same: _Flags) -> tuple[_Floats, _Floats]:
    """(true accept rates [T], false accept rates [T]); 0 where there are no pairs of the kind."""
    return (
        _accepted(thresholds, distances[same]) / max(1, same.sum()),
        _accepted(thresholds, distances[~same]) / max(1, (~same).sum()),
    )


def _accuracy(thresholds: _Floats, distances: _Floats, same: _Flags) -> _Floats:
    right: _Indices = _accepted(thresholds, distances[same]) + (~same).sum() - _accepted(thresholds, distances[~same])
    return right / len(same)


def _project(first: _Floats, second: _Floats, train: _Indices, components: int) -> tuple[_Floats, _Floats]:
    """Both sides projected on the principal components of the training pairs and normalized."""
    fitted = np.concatenate([first[train], second[train]])
    if components > min(fitted.shape):
        raise ConfigError(
            f"pca: got {components} components, expected at most {min(fitted.shape)}: the lesser of the "
            f"embedding size and the rows to fit on"
        )
    mean = fitted.mean(axis=0)
    axes = np.linalg.svd(fitted - mean, full_matrices=False)[2][:components]

    def project(rows: _Floats) -> _Floats:
        projected = (rows - mean) @ axes.T
        return to_unit_length(projected)[0]

    return project(first), project(second)
