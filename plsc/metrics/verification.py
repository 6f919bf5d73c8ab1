"""Verification: whether the cosine of two embeddings says that they are of the same identity.

P pairs, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from plsc.errors import ConfigError, DataError
from plsc.metrics.embeddings import Array, Float64, blocks, check_embeddings, to_unit_length

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VerificationReport:
    """The metrics of one verification set.

    Attributes:
        accuracy: share of pairs judged correctly, mean over folds, 0 to 1.
        accuracy_std: standard deviation of the accuracy over folds.
        threshold: cosine from which a pair is judged to be of the same identity, mean over folds, -1 to 1.
        tar_at_far: {FAR: TAR}. TAR, the true accept rate, is the share of same pairs accepted at the lowest threshold
            at which no more than the share FAR of the different pairs is accepted. Only for values of FAR that allow
            at least one different pair.
        auc: area under the ROC curve, 0 to 1; NaN unless there are both same and different pairs.
        xnorm: mean length of the embeddings before they are brought to unit length.
        pairs: P.
    """

    accuracy: float
    accuracy_std: float
    threshold: float
    tar_at_far: dict[float, float] = field(default_factory=dict)
    auc: float = float("nan")
    xnorm: float = float("nan")
    pairs: int = 0

    def metrics(self) -> dict[str, float]:
        """All metrics by name. TAR at FAR 0.001 is named tar_at_far_0.001."""
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
    embeddings: Array, is_same: Array, *, folds: int = 10, fars: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4)
) -> VerificationReport:
    """Judge pairs by the cosine of their embeddings, by the protocol of LFW (Huang et al., 2007).

    The pairs are divided into contiguous folds. Each fold is judged at the threshold that is best on all other folds.
    Thresholds are exact: every cut between two neighboring scores is tried, and the threshold lies halfway between
    them; of equally good cuts the highest is taken. TAR, FAR and AUC are over all pairs at once.

    Args:
        embeddings: [2P, D]; rows 2i and 2i + 1 are pair i. Of any length; zero rows have cosine 0.
        is_same: [P] bool, whether the pair is of the same identity.
        folds: number of folds, 2 to P.
        fars: shares of the different pairs that may be accepted, each in (0, 1].

    Raises:
        DataError: shapes that do not fit, fewer pairs than folds, or an embedding that is not finite.
        ConfigError: fewer than two folds, or a FAR outside (0, 1].

    Example:
        >>> report = verification_report(embeddings, is_same)
        >>> report.accuracy, report.tar_at_far[0.001]
        (0.998, 0.991)
    """
    same = np.asarray(is_same, np.bool_).reshape(-1)
    embeddings = check_embeddings(embeddings, "embeddings")
    if len(embeddings) != 2 * len(same):
        raise DataError(f"embeddings: got {len(embeddings)} rows for {len(same)} pairs, expected two rows per pair")
    if folds < 2 or any(not 0 < far <= 1 for far in fars):
        raise ConfigError(f"got folds={folds} and fars={tuple(fars)}, expected two folds or more, and FARs in (0, 1]")
    if len(same) < folds:
        raise DataError(f"verification: got {len(same)} pairs for {folds} folds, expected a pair per fold or more")
    scores, xnorm = _pair_cosines(embeddings)
    accuracies, thresholds = _cross_validate(scores, same, folds=folds)
    return VerificationReport(
        accuracy=float(accuracies.mean()),
        accuracy_std=float(accuracies.std()),
        threshold=float(thresholds.mean()),
        tar_at_far=_tar_at_far(scores[same], scores[~same], fars=fars),
        auc=_auc(scores[same], scores[~same]),
        xnorm=xnorm,
        pairs=len(same),
    )


def _pair_cosines(embeddings: Array) -> tuple[Float64, float]:
    """[2P, D] -> (the cosines [P] of the pairs, the mean length of the rows)."""
    scores, total = [], 0.0
    for block in blocks(embeddings):
        unit, lengths = to_unit_length(block)
        scores.append((unit[0::2] * unit[1::2]).sum(axis=1))
        total += float(lengths.sum())
    return np.concatenate(scores), total / len(embeddings)


def _cross_validate(scores: Float64, same: Flags, *, folds: int) -> tuple[Float64, Float64]:
    """(accuracy [folds] of each fold, threshold [folds] that is best on the other folds)."""
    accuracies, thresholds = np.zeros(folds), np.zeros(folds)
    for fold, test in enumerate(np.array_split(np.arange(len(scores)), folds)):
        train = np.ones(len(scores), np.bool_)
        train[test] = False
        thresholds[fold] = _best_threshold(scores[train], same[train])
        accuracies[fold] = ((scores[test] >= thresholds[fold]) == same[test]).mean()
    return accuracies, thresholds


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


def _tar_at_far(same: Float64, different: Float64, *, fars: Sequence[float]) -> dict[float, float]:
    """{FAR: TAR} from the scores of same pairs and of different pairs."""
    if not len(same):
        return {}
    descending, tars = np.sort(different)[::-1], {}
    for far in fars:
        # The factor keeps rounding from losing a pair: 0.29 * 100 is 28.999... in floats.
        allowed = int(far * len(descending) * (1 + 1e-9))
        if allowed < 1:
            continue
        tars[far] = float((same > descending[allowed]).mean()) if allowed < len(descending) else 1.0
    return tars


def _auc(same: Float64, different: Float64) -> float:
    """The probability that a same pair scores above a different pair; ties count half (Mann and Whitney, 1947)."""
    if not len(same) or not len(different):
        return float("nan")
    ascending = np.sort(different)
    below, not_above = (np.searchsorted(ascending, same, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(different)))
