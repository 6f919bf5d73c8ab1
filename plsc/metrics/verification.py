"""How well embeddings tell identities apart: verification of pairs, and identification in a gallery.

Similarity is the cosine of the angle between two embeddings; embeddings are brought to unit length here.
P pairs, D embedding, M gallery images, Q probe images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from plsc.errors import ConfigError, DataError

# Keeps a zero embedding at a cosine of 0 instead of a division by zero.
EPSILON = 1e-12
# Rows and matrix elements held at once: a few dozen MiB.
_BLOCK_ROWS, _BLOCK_ELEMENTS = 1 << 14, 1 << 23


@dataclass(frozen=True)
class VerificationReport:
    """The figures of one verification set.

    Attributes:
        accuracy: share of pairs judged rightly, mean over folds, 0 to 1.
        accuracy_std: its standard deviation over folds.
        threshold: cosine from which on a pair counts as the same; mean over folds.
        tar_at_far: share of same pairs accepted (TAR) where at most a share FAR of the different ones is,
            by FAR; only for those FARs at which at least one different pair may be accepted.
        auc: area under the ROC curve, 0 to 1; NaN unless there are both same and different pairs.
        xnorm: mean length of the embeddings as they were given.
        pairs: P.
    """

    accuracy: float
    accuracy_std: float
    threshold: float
    tar_at_far: dict[float, float] = field(default_factory=dict)
    auc: float = float("nan")
    xnorm: float = float("nan")
    pairs: int = 0

    def figures(self) -> dict[str, float]:
        """All figures by name, TAR as tar_at_far_0.001 and the like."""
        tars = {f"tar_at_far_{far:g}": tar for far, tar in self.tar_at_far.items()}
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "threshold": self.threshold,
            **tars,
            "auc": self.auc,
            "xnorm": self.xnorm,
            "pairs": float(self.pairs),
        }

    def __str__(self) -> str:
        tars = "".join(f", TAR {100 * tar:.2f} % at FAR {far:g}" for far, tar in self.tar_at_far.items())
        return (
            f"accuracy {100 * self.accuracy:.2f} +- {100 * self.accuracy_std:.2f} % at cosine {self.threshold:.3f}"
            f"{tars}, AUC {self.auc:.4f}, XNorm {self.xnorm:.2f}, {self.pairs} pairs"
        )


def verification_report(
    embeddings: np.ndarray, is_same: Sequence[bool], folds: int = 10, fars: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4)
) -> VerificationReport:
    """Judge pairs by the cosine of their embeddings, as the protocol of LFW (Huang et al., 2007) says.

    The pairs are cut into contiguous folds. The threshold that is best on all folds but one is applied to
    that one, in turn. Thresholds are exact: every cut between two neighboring scores is tried; of equally
    good ones the highest is taken, halfway between the two. TAR, FAR and AUC are over all pairs at once.

    Args:
        embeddings: [2P, D]; rows 2i and 2i + 1 are pair i. Of any length; zero rows count as cosine 0.
        is_same: [P] bool.
        folds: 2 to P.
        fars: shares of different pairs to accept, each in (0, 1].

    Raises:
        DataError: shapes that do not fit, fewer pairs than folds, or an embedding that is not finite.
        ConfigError: fewer than two folds, or a FAR outside (0, 1].
    """
    same = np.asarray(is_same, np.bool_).reshape(-1)
    embeddings = _matrix(embeddings, "embeddings")
    if len(embeddings) != 2 * len(same):
        raise DataError(f"embeddings: got {len(embeddings)} rows for {len(same)} pairs, expected two rows per pair")
    if folds < 2 or any(not 0 < far <= 1 for far in fars):
        raise ConfigError(f"got folds={folds} and fars={tuple(fars)}, expected two folds or more, and FARs in (0, 1]")
    if len(same) < folds:
        raise DataError(f"verification: got {len(same)} pairs for {folds} folds, expected a pair per fold or more")
    scores, xnorm = _pair_cosines(embeddings)
    accuracies, thresholds = _cross_validate(scores, same, folds)
    return VerificationReport(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=float(thresholds.mean()),
        tar_at_far=_tar_at_far(scores[same], scores[~same], fars),
        auc=_auc(scores[same], scores[~same]),
        xnorm=xnorm,
        pairs=len(same),
    )


def identification(
    gallery: np.ndarray,
    gallery_labels: Sequence[int],
    probes: np.ndarray,
    probe_labels: Sequence[int],
    ranks: Sequence[int] = (1, 5),
) -> dict[int, float]:
    """Share of probes whose label is among those of the k most similar gallery images, by k.

    Closed-set identification, the CMC curve of ISO/IEC 19795-1. A wrong image as similar as the best right
    one counts as more similar, so that collapsed embeddings earn nothing. A probe whose label the gallery
    lacks counts as missed. Memory holds a block of the [Q, M] cosines at a time.

    Args:
        gallery: [M, D].
        gallery_labels: [M].
        probes: [Q, D].
        probe_labels: [Q].
        ranks: the values of k, 1 or more.

    Raises:
        DataError: nothing to compare, shapes that do not fit, or an embedding that is not finite.
        ConfigError: a rank below 1.
    """
    gallery, probes = _matrix(gallery, "gallery"), _matrix(probes, "probes")
    gallery_labels, probe_labels = np.asarray(gallery_labels).reshape(-1), np.asarray(probe_labels).reshape(-1)
    for name, matrix, labels in (("gallery", gallery, gallery_labels), ("probes", probes, probe_labels)):
        if len(matrix) != len(labels) or not len(labels):
            raise DataError(
                f"{name}: got {len(matrix)} embeddings and {len(labels)} labels, expected one label each, "
                f"and at least one"
            )
    if gallery.shape[1] != probes.shape[1]:
        raise DataError(
            f"got a gallery of {gallery.shape[1]} columns and probes of {probes.shape[1]}, expected the "
            f"same embedding size"
        )
    if any(rank < 1 for rank in ranks):
        raise ConfigError(f"ranks: got {tuple(ranks)}, expected 1 or more")
    gallery = np.concatenate([_unit(block)[0] for block in _blocks(gallery, _BLOCK_ROWS)]).astype(np.float32)
    places, rows = [], max(1, _BLOCK_ELEMENTS // len(gallery))
    for block, labels in zip(_blocks(probes, rows), _blocks(probe_labels, rows)):
        cosines = _unit(block)[0].astype(np.float32) @ gallery.T
        right = labels[:, None] == gallery_labels[None, :]
        best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)
        above = (~right & (cosines >= best)).sum(axis=1)
        places.append(np.where(right.any(axis=1), above + 1, np.inf))
    place = np.concatenate(places)
    return {rank: float((place <= rank).mean()) for rank in ranks}


def _matrix(embeddings: np.ndarray, name: str) -> np.ndarray:
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: got shape {list(embeddings.shape)} of {embeddings.dtype}, expected [rows, D] of numbers"
        )
    for first, block in zip(range(0, len(embeddings), _BLOCK_ROWS), _blocks(embeddings, _BLOCK_ROWS)):
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise DataError(
                f"{name}: row {first + int(bad.argmax())} holds NaN or infinity, expected finite numbers; "
                f"the network has diverged or its weights are damaged"
            )
    return embeddings


def _blocks(array: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    return (array[start : start + rows] for start in range(0, len(array), rows))


def _unit(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [B, D] brought to unit length in float64, and their lengths [B, 1]."""
    embeddings = embeddings.astype(np.float64)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(lengths, EPSILON), lengths


def _pair_cosines(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """[2P, D] -> cosines [P], and the mean length of the rows."""
    scores, total = [], 0.0
    for block in _blocks(embeddings, _BLOCK_ROWS):
        unit, lengths = _unit(block)
        scores.append((unit[0::2] * unit[1::2]).sum(axis=1))
        total += float(lengths.sum())
    return np.concatenate(scores), total / len(embeddings)


def _cross_validate(scores: np.ndarray, same: np.ndarray, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy [folds] on each fold at the threshold [folds] that is best on the others."""
    accuracies, thresholds = np.zeros(folds), np.zeros(folds)
    for fold, test in enumerate(np.array_split(np.arange(len(scores)), folds)):
        train = np.ones(len(scores), np.bool_)
        train[test] = False
        thresholds[fold] = _best_threshold(scores[train], same[train])
        accuracies[fold] = ((scores[test] >= thresholds[fold]) == same[test]).mean()
    return accuracies, thresholds


def _best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The cosine from which on to accept for the most right judgments; of several, the highest."""
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], same[order]
    # right[k]: how much accepting the k highest gains; a cut may not part equal scores.
    right = np.concatenate([[0], np.cumsum(np.where(same, 1, -1))])
    cuts = np.concatenate([[True], scores[1:] < scores[:-1], [True]])
    accepted = int(np.where(cuts, right, -len(scores) - 1).argmax())
    if accepted == 0:
        return float(np.nextafter(scores[0], np.inf))
    lowest = scores[accepted - 1]
    if accepted == len(scores):
        return float(lowest)
    middle = (lowest + scores[accepted]) / 2
    # Between neighboring floats there is no middle.
    return float(middle if middle > scores[accepted] else lowest)


def _tar_at_far(same: np.ndarray, different: np.ndarray, fars: Sequence[float]) -> dict[float, float]:
    """TAR at the lowest threshold that accepts no more than FAR of the different scores, by FAR."""
    if not len(same):
        return {}
    descending, tars = np.sort(different)[::-1], {}
    for far in fars:
        # 0.29 * 100 is 28.999... in floats, and means 29.
        allowed = int(far * len(descending) * (1 + 1e-9))
        if allowed < 1:
            continue
        tars[far] = float((same > descending[allowed]).mean()) if allowed < len(descending) else 1.0
    return tars


def _auc(same: np.ndarray, different: np.ndarray) -> float:
    """The chance that a same pair scores above a different one, equals counting half (Mann and Whitney, 1947)."""
    if not len(same) or not len(different):
        return float("nan")
    ascending = np.sort(different)
    below, not_above = (np.searchsorted(ascending, same, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(different)))
