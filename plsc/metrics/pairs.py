"""The flags and the folds of verification pairs, as the metrics and the verification sets take them. P pairs."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc.errors import ConfigError, DataError
from plsc.utils.plural import counted

FOLDS = 10  # of the protocol of LFW (Huang et al., 2007), and of all sets that follow it

Flags = npt.NDArray[np.bool_]
FoldNumbers = npt.NDArray[np.int64]


def as_flags(is_same: Any, name: str) -> Flags:
    """The flags of pairs as an array [P] bool.

    Args:
        is_same: P flags: booleans, or numbers that are exactly 0 or 1.
        name: what messages call their owner.

    Raises:
        DataError: a flag of another kind, such as -1, 2, NaN or a text; names the first.
    """
    try:
        values = is_same.reshape(-1).tolist() if isinstance(is_same, np.ndarray) else list(is_same)
    except TypeError:
        raise DataError(f"{name}: got {type(is_same).__name__}, expected a list of flags, one per pair") from None
    return np.array([_as_flag(value, f"{name}: flag {index}") for index, value in enumerate(values)], np.bool_)


def _as_flag(value: Any, name: str) -> bool:
    if value is True or value is False:
        return value
    if hasattr(value, "__array__"):  # a number of NumPy, a tensor
        array = np.asarray(value)
        value = array.item() if array.size == 1 else array
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    # The text of anything else, of nested lists or very long numbers, may be without bounds.
    is_short = isinstance(value, (float, str, bytes)) or (isinstance(value, int) and value.bit_length() < 64)
    shown = f"{value!r:.60} of " if is_short else "of "
    raise DataError(
        f"{name} is {shown}type {type(value).__name__}, expected True or False, or the number 1 or 0; compare other "
        f"marks first, as in [mark == 1 for mark in marks]"
    )


def as_folds(folds: Any, is_same: Flags) -> FoldNumbers:
    """The fold of each pair, [P].

    Args:
        folds: the number of folds to make (see `make_folds`), 2 to P; or P numbers of folds, 0 or more.
        is_same: [P] bool.

    Raises:
        ConfigError: fewer than two folds, or anything else than numbers of folds.
        DataError: fewer pairs than folds, or not one fold per pair.
    """
    pairs = len(is_same)
    if np.ndim(folds) == 0:
        count = _as_count(folds)
        if pairs < count:
            raise DataError(
                f"verification: got {counted(pairs, 'pair')} for {counted(count, 'fold')}, expected a pair per fold "
                "or more"
            )
        return make_folds(is_same, count)
    numbers = np.asarray(folds)
    if numbers.dtype.kind not in "iu" or (numbers.astype(np.int64) < 0).any():
        raise ConfigError(f"folds: got {str(folds):.60} of {numbers.dtype}, expected whole numbers, 0 or more")
    if numbers.shape != (pairs,):
        raise DataError(
            f"folds: got shape {list(numbers.shape)} for {counted(pairs, 'pair')}, expected one fold per pair"
        )
    return numbers.astype(np.int64)


def _as_count(folds: Any) -> int:
    try:
        count = operator.index(folds)
    except TypeError:
        raise ConfigError(
            f"folds: got {folds!r:.60}, expected the number of folds, or the fold of each pair as a list"
        ) from None
    if count < 2:
        raise ConfigError(f"got folds={count}, expected two folds or more")
    return count


def make_folds(is_same: Flags, count: int) -> FoldNumbers:
    """The fold of each pair where no description says it, [P]; the same for the same flags.

    Sets by the protocol of LFW lie fold after fold, each with as many same as different pairs. So the folds are `count`
    contiguous parts, as in every library that evaluates these sets, where the share of same pairs in each part is
    within 0.1 of the share in the whole set. Otherwise the threshold for a fold would be chosen on pairs of another
    mixture, and a set that lists all same pairs first would score far too low. There the folds are stratified: the
    same pairs and the different pairs are divided into `count` contiguous parts each.

    Args:
        is_same: [P] bool.
        count: number of folds, 1 to P.
    """
    pairs, same = len(is_same), int(is_same.sum())
    contiguous: FoldNumbers = np.sort(np.arange(pairs) % count)
    sizes, same_in = np.bincount(contiguous), np.bincount(contiguous[is_same], minlength=count)
    # |same_in / sizes - same / pairs| <= 0.1, in whole numbers.
    if (10 * np.abs(same_in * pairs - same * sizes) <= sizes * pairs).all():
        return contiguous
    stratified = np.empty(pairs, np.int64)
    # The different pairs go on at the fold where the same pairs ended: no fold is empty, and sizes differ by one.
    stratified[is_same] = np.sort(np.arange(same) % count)
    stratified[~is_same] = np.sort(np.arange(same, pairs) % count)
    return stratified


def why_no_accuracy(is_same: Flags, folds: FoldNumbers) -> str | None:
    """Why these pairs have no accuracy, or None where they have one.

    The threshold for a fold is chosen on the pairs of the other folds, so these must be of both kinds.
    """
    same, pairs = int(is_same.sum()), len(is_same)
    if same in (0, pairs):
        return f"found {same} same and {counted(pairs - same, 'different pair')}, expected both kinds"
    numbers, places, sizes = np.unique(folds, return_inverse=True, return_counts=True)
    if len(numbers) < 2:
        return "all pairs are in one fold, expected two folds or more"
    same_in_others = same - np.bincount(places[is_same], minlength=len(numbers))
    one_kind = (same_in_others == 0) | (same_in_others == pairs - sizes)
    if not one_kind.any():
        return None
    fold = int(one_kind.argmax())
    kind = "same" if same_in_others[fold] else "different"
    return (
        f"the folds other than fold {numbers[fold]} hold {kind} pairs only, expected both kinds, on which its "
        f"threshold is chosen"
    )
