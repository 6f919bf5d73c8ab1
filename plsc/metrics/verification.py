"""Verification: whether the cosine of two embeddings says that they are of the same identity.

P pairs, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from plsc.errors import ConfigError, DataError
from plsc.metrics.embeddings import Array, Float64, blocks, check_embeddings, to_unit_length
from plsc.metrics.pairs import FOLDS, Flags, FoldNumbers, as_flags, as_folds, why_no_accuracy
from plsc.utils.plural import counted

FARS = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class VerificationReport:
    """The metrics of one verification set. A metric that the pairs do not give is NaN, and `notes` says why.

    Attributes:
        accuracy: share of pairs judged correctly, mean over folds, 0 to 1; NaN where a threshold would have to be
            chosen on pairs of one kind.
        accuracy_std: standard deviation of the accuracy over folds; NaN as `accuracy`.
        threshold: cosine from which a pair is judged to be of the same identity, mean over folds, -1 to 1; NaN as
            `accuracy`.
        tar_at_far: {FAR: TAR}. TAR, the true accept rate, is the share of same pairs accepted at the lowest threshold
            at which no more than the share FAR of the different pairs is accepted. Only for values of FAR that allow
            at least one different pair.
        auc: area under the ROC curve, 0 to 1; NaN unless there are both same and different pairs.
        xnorm: mean length of the embeddings before they are brought to unit length.
        pairs: P.
        notes: which metrics the pairs do not give and why, a sentence each.
        scores: [P], the cosine of each pair; None where it is not known.
    """

    accuracy: float
    accuracy_std: float
    threshold: float
    tar_at_far: dict[float, float] = field(default_factory=dict)
    auc: float = float("nan")
    xnorm: float = float("nan")
    pairs: int = 0
    notes: tuple[str, ...] = ()
    scores: Float64 | None = field(default=None, repr=False, compare=False)

    def metrics(self) -> dict[str, float]:
        """All metrics by name. TAR at FAR 0.001 is named tar_at_far_0.001. JSON has no NaN: `to_json` writes null."""
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
        parts = [f"TAR {100 * tar:.2f} % at FAR {far:g}" for far, tar in self.tar_at_far.items()]
        if math.isfinite(self.accuracy):
            share = f"{100 * self.accuracy:.2f} +- {100 * self.accuracy_std:.2f} %"
            parts.insert(0, f"accuracy {share} at cosine {self.threshold:.3f}")
        else:
            parts.insert(0, "no accuracy")
        parts.append(f"AUC {self.auc:.4f}" if math.isfinite(self.auc) else "no AUC")
        return ", ".join([*parts, f"XNorm {self.xnorm:.2f}", counted(self.pairs, "pair")])


def verification_report(
    embeddings: Array,
    is_same: Array | Sequence[bool],
    *,
    folds: int | Sequence[int] | FoldNumbers = FOLDS,
    fars: Sequence[float] = FARS,
) -> VerificationReport:
    """Judge pairs by the cosine of their embeddings, by the protocol of LFW (Huang et al., 2007).

    The pairs are divided into folds. Each fold is judged at the threshold that is best on all other folds.
    Thresholds are exact: every cut between two neighboring scores is tried, and the threshold lies halfway between
    them; of equally good cuts the highest is taken. TAR, FAR and AUC are over all pairs at once.

    Args:
        embeddings: [2P, D]; rows 2i and 2i + 1 are pair i. Of any length; zero rows have cosine 0.
        is_same: [P], whether the pair is of the same identity: booleans, or numbers that are exactly 0 or 1.
        folds: number of folds, 2 to P: contiguous where each part has about the same share of same pairs, else
            stratified (see `plsc.metrics.pairs.make_folds`). Or the fold of each pair, [P].
        fars: shares of the different pairs that may be accepted, each in (0, 1].

    Raises:
        DataError: shapes that do not fit, fewer pairs than folds, a flag that is no flag, or an embedding that is not
            finite.
        ConfigError: fewer than two folds, folds that are no numbers of folds, or a FAR outside (0, 1].

    Example:
        >>> report = verification_report(embeddings, is_same)
        >>> report.accuracy, report.tar_at_far[0.001]
        (0.998, 0.991)
    """
    same = as_flags(is_same, "is_same")
    embeddings = check_embeddings(embeddings, "embeddings")
    if len(embeddings) != 2 * len(same) or not len(same):
        raise DataError(
            f"embeddings: got {counted(len(embeddings), 'row')} for {counted(len(same), 'pair')}, expected two rows "
            f"per pair, and a pair or more"
        )
    if any(not 0 < far <= 1 for far in fars):
        raise ConfigError(f"got fars={tuple(fars)}, expected FARs in (0, 1]")
    numbers = as_folds(folds, same)
    scores, xnorm = _pair_cosines(embeddings)
    accuracies, thresholds = _cross_validate(scores, same, folds=numbers)
    return VerificationReport(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=float(np.minimum(thresholds.mean(), 1)),  # rounding may lead past 1; NaN stays NaN
        tar_at_far={far: point.tar for far, point in operating_points(scores, same, fars).items()},
        auc=_auc(scores[same], scores[~same]),
        xnorm=xnorm,
        pairs=len(same),
        notes=tuple(missing_metrics(same, numbers, fars=fars)),
        scores=scores,
    )


def missing_metrics(is_same: Flags, folds: FoldNumbers, *, fars: Sequence[float] = FARS) -> list[str]:
    """Which metrics these pairs do not give and why, a sentence each.

    Args:
        is_same: [P] bool.
        folds: [P], the fold of each pair.
        fars: as of `verification_report`.
    """
    same, different = int(is_same.sum()), int((~is_same).sum())
    reason = why_no_accuracy(is_same, folds)
    notes = [] if reason is None else [f"no accuracy: {reason}"]
    if not same or not different:
        return [f"no accuracy, TAR or AUC: {reason}"]
    for far in fars:
        if not _allowed(far, different):
            needed = math.ceil(1 / far * (1 - 1e-9))
            notes.append(
                f"no TAR at FAR {far:g}: found {counted(different, 'different pair')}, expected {needed} or more"
            )
    return notes


def _pair_cosines(embeddings: Array) -> tuple[Float64, float]:
    """[2P, D] -> (the cosines [P] of the pairs, the mean length of the rows)."""
    scores, total = [], 0.0
    for block in blocks(embeddings):
        unit, lengths = to_unit_length(block)
        scores.append((unit[0::2] * unit[1::2]).sum(axis=1))
        total += float(lengths.sum())
    return np.concatenate(scores), total / len(embeddings)


def _cross_validate(scores: Float64, same: Flags, *, folds: FoldNumbers) -> tuple[Float64, Float64]:
    """(accuracy [K] of each of the K folds, threshold [K] that is best on the other folds); NaN where there is none."""
    if why_no_accuracy(same, folds) is not None:
        return np.array([np.nan]), np.array([np.nan])
    accuracies, thresholds = [], []
    for fold in np.unique(folds):
        test = folds == fold
        threshold = _best_threshold(scores[~test], same[~test])
        thresholds.append(threshold)
        accuracies.append(((scores[test] >= threshold) == same[test]).mean())
    return np.array(accuracies), np.array(thresholds)


def _best_threshold(scores: Float64, same: Flags) -> float:
    """The cosine from which accepting gives the most correct judgments; of several the highest."""
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], same[order]
    # gain[k]: correct minus wrong judgments gained by accepting the k highest scores. No cut separates equal scores.
    gain = np.concatenate([[0], np.cumsum(np.where(same, 1, -1))])
    cuts = np.concatenate([[True], scores[1:] < scores[:-1], [True]])
    accepted = int(np.where(cuts, gain, -len(scores) - 1).argmax())
    if accepted == 0:
        return float(np.nextafter(scores[0], np.inf))
    lowest = scores[accepted - 1]
    if accepted == len(scores):
        return float(lowest)
    middle = (lowest + scores[accepted]) / 2
    # Two neighboring floats have no float halfway.
    return float(middle if middle > scores[accepted] else lowest)


class OperatingPoint(NamedTuple):
    """Attributes: `threshold`, from which a score is accepted; `tar`, the share of same pairs accepted there."""

    threshold: float
    tar: float


def operating_points(scores: Array, is_same: Flags, fars: Sequence[float] = FARS) -> dict[float, OperatingPoint]:
    """{FAR: the lowest threshold at which no more than the share FAR of the different pairs is accepted}.

    Args:
        scores: [P].
        is_same: [P] bool.
        fars: each in (0, 1]. One that allows no different pair is left out; all are without same pairs.
    """
    same, descending, found = scores[is_same], np.sort(scores[~is_same])[::-1], {}
    for far in fars if len(same) else ():
        allowed = _allowed(far, len(descending))
        if not allowed:
            continue
        is_all = allowed >= len(descending)
        threshold = float(scores.min()) if is_all else float(np.nextafter(descending[allowed], np.inf))
        found[far] = OperatingPoint(threshold, float((same >= threshold).mean()))
    return found


def _allowed(far: float, different: int) -> int:
    """How many of the different pairs may be accepted."""
    # The factor keeps rounding from losing a pair: 0.29 * 100 is 28.999... in floats.
    return int(far * different * (1 + 1e-9))


def _auc(same: Float64, different: Float64) -> float:
    """The probability that a same pair scores above a different pair; ties count half (Mann and Whitney, 1947)."""
    if not len(same) or not len(different):
        return float("nan")
    ascending = np.sort(different)
    below, not_above = (np.searchsorted(ascending, same, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(different)))
