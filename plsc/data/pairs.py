"""Verification pairs chosen from a labeled set, as in the second view of LFW.

Every fold has its own identities, and as many pairs of the same identity as of different identities. Huang et al.,
"Labeled Faces in the Wild", 2007. Same and different pairs alternate, so that libraries that cut the pairs into ten
contiguous folds find both kinds in each, however many folds were made.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc.data.damage import DamageLog
from plsc.data.images import decode
from plsc.data.records import Labels, Records
from plsc.data.verification_set import VerificationSet
from plsc.errors import DataError
from plsc.metrics.pairs import FoldNumbers
from plsc.utils.hints import argument
from plsc.utils.plural import counted

_Indices = npt.NDArray[np.int64]


class Pairs(NamedTuple):
    """P pairs of records, fold after fold.

    Attributes:
        first, second: [P] int64, indices of records.
        is_same: [P] bool.
        folds: [P] int64, the fold of each pair.
    """

    first: _Indices
    second: _Indices
    is_same: npt.NDArray[np.bool_]
    folds: FoldNumbers


def choose_pairs(labels: Labels, num_pairs: int, *, folds: int = 10, seed: int = 0) -> Pairs:
    """Choose pairs: no pair occurs twice, no record is paired with itself, no identity is in two folds.

    Pairs of the same identity are spread over the identities as evenly as their images allow. Pairs of different
    identities are drawn by image.

    Args:
        labels: [n] the class of each record.
        num_pairs: P, a multiple of 2 * folds.
        folds: 1 or more.
        seed: 0 or more.

    Raises:
        DataError: P is not a multiple of 2 * folds, or the identities of a fold do not give as many pairs.
    """
    if folds < 1 or num_pairs < 1 or num_pairs % (2 * folds):
        raise DataError(
            f"{counted(num_pairs, 'pair')} in {counted(folds, 'fold')}: expected a multiple of {2 * max(folds, 1)}, "
            f"so that every fold has as many same as different pairs"
        )
    rng = np.random.default_rng(seed)
    chosen: list[_Indices] = []
    per_kind = num_pairs // folds // 2
    for number, members in enumerate(_folds(labels, folds, rng)):
        same, different = _same_pairs(members, per_kind, rng), _different_pairs(members, per_kind, rng)
        if len(same) < per_kind or len(different) < per_kind:
            fewer = argument("num_pairs", of="plsc data pairs"), argument("folds", of="plsc data pairs")
            raise DataError(
                f"fold {number} of {folds} has {counted(len(members), 'identity')} with "
                f"{counted(sum(map(len, members)), 'image')}: {len(same)} same and "
                f"{counted(len(different), 'different pair')}, "
                f"expected {per_kind} of each; ask for fewer pairs or folds ({' and '.join(fewer)}), or "
                f"give more identities"
                + ("; different pairs need two identities in each fold" if len(members) < 2 else "")
            )
        chosen.append(np.stack([same, different], 1).reshape(-1, 2))
    pairs = np.concatenate(chosen)
    numbers = np.repeat(np.arange(folds), 2 * per_kind)
    return Pairs(pairs[:, 0], pairs[:, 1], labels[pairs[:, 0]] == labels[pairs[:, 1]], numbers)


def make_verification_set(
    records: Records, num_pairs: int, *, folds: int = 10, seed: int = 0, name: str = "pairs"
) -> VerificationSet:
    """A verification set of pairs chosen from `records`, with the images as they are in the source.

    The set keeps its folds. Of one fold it keeps none: evaluation needs two or more, and makes them.

    Args:
        records: the source.
        num_pairs, folds, seed: see `choose_pairs`.
        name: of the set.

    Raises:
        DataError: see `choose_pairs`; or a chosen image cannot be decoded. There is a warning of an image that can be
            decoded only in part.
    """
    damaged = DamageLog(records.describe)
    pairs = choose_pairs(records.labels, num_pairs, folds=folds, seed=seed)
    order = np.stack([pairs.first, pairs.second], 1).reshape(-1)
    images = [_readable(records, int(index), damaged) for index in order]
    return VerificationSet(name, images, is_same=pairs.is_same, folds=pairs.folds if folds > 1 else None)


def _readable(records: Records, index: int, damaged: DamageLog) -> Any:
    image = records[index].image
    try:
        decode(image, on_damage=functools.partial(damaged.warn, index))
    except DataError as error:
        raise DataError(f"{records.describe(index)}: {error}; replace or remove it") from None
    return image


def _folds(labels: Labels, folds: int, rng: np.random.Generator) -> list[list[_Indices]]:
    """The identities of each fold, in random order; an identity is the array of the indices of its records."""
    order = np.argsort(labels, kind="stable")
    identities = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    # Identities that have a pair of their own come first, so that every fold gets its share of them.
    shuffled = [identities[place] for place in rng.permutation(len(identities))]
    shuffled.sort(key=lambda members: len(members) < 2)
    return [shuffled[fold::folds] for fold in range(folds)]


def _same_pairs(members: list[_Indices], count: int, rng: np.random.Generator) -> _Indices:
    """`count` pairs of the same identity, [count, 2]; fewer where there are not as many."""
    possible = np.array([len(images) * (len(images) - 1) // 2 for images in members], np.int64)
    if possible.sum() < count:
        return np.zeros((int(possible.sum()), 2), np.int64)
    rounds = 1
    while np.minimum(possible, rounds).sum() < count:
        rounds *= 2
    found, priorities = [], []
    for images, total in zip(members, possible):
        numbers = rng.choice(total, min(int(total), rounds), replace=False) if total else np.zeros(0, np.int64)
        found.append(images[_unrank(numbers)])
        # The j-th pairs of all identities come before the pairs j + 1.
        priorities.append(np.arange(len(numbers)) + rng.random(len(numbers)))
    return np.concatenate(found)[np.argsort(np.concatenate(priorities))[:count]]


def _unrank(numbers: _Indices) -> _Indices:
    """The pairs with the numbers 0, 1, 2, ... are (1, 0), (2, 0), (2, 1), ...: [k] to [k, 2]."""
    high = ((1 + np.sqrt(1 + 8 * numbers.astype(np.float64))) // 2).astype(np.int64)
    # For large numbers the square root may be off by one.
    high -= high * (high - 1) // 2 > numbers
    high += high * (high + 1) // 2 <= numbers
    return np.stack([high, numbers - high * (high - 1) // 2], 1).reshape(-1, 2)


def _different_pairs(members: list[_Indices], count: int, rng: np.random.Generator) -> _Indices:
    """`count` pairs of two identities, [count, 2]; fewer where there are not as many."""
    sizes = np.array([len(images) for images in members], np.int64)
    total = int(sizes.sum())
    possible = int(total**2 - (sizes**2).sum()) // 2
    if possible < count:
        return np.zeros((possible, 2), np.int64)
    images, owner = np.concatenate(members), np.repeat(np.arange(len(members)), sizes)
    if possible <= 4 * count:
        first, second = np.triu_indices(total, 1)
        apart = np.flatnonzero(owner[first] != owner[second])
        taken = rng.choice(apart, count, replace=False)
        return np.stack([images[first[taken]], images[second[taken]]], 1)
    starts = np.cumsum(sizes) - sizes
    chosen = np.zeros(0, np.int64)
    while len(chosen) < count:
        first = rng.integers(total, size=2 * count)
        # Any image except those of the first image's identity, which are contiguous.
        second = (rng.random(2 * count) * (total - sizes[owner[first]])).astype(np.int64)
        second += np.where(second >= starts[owner[first]], sizes[owner[first]], 0)
        drawn = np.minimum(first, second) * total + np.maximum(first, second)
        together = np.concatenate([chosen, drawn])
        chosen = together[np.sort(np.unique(together, return_index=True)[1])]
    chosen = chosen[:count]
    return np.stack([images[chosen // total], images[chosen % total]], 1)
