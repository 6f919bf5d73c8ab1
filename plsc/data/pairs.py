"""Verification pairs out of a labeled set, in the way of LFW's second view.

Every fold has its own identities, and as many pairs of the same identity as of different ones. Huang et al.,
"Labeled Faces in the Wild", 2007.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from plsc.data.records import Records
from plsc.data.subset import labels_of
from plsc.data.transforms import decode
from plsc.data.verification_set import VerificationSet
from plsc.errors import DataError


class Pairs(NamedTuple):
    """P pairs of records, fold after fold.

    Attributes:
        first, second: [P] int64, indices of records.
        is_same: [P] bool.
    """

    first: np.ndarray
    second: np.ndarray
    is_same: np.ndarray


def choose_pairs(labels: np.ndarray, num_pairs: int, folds: int = 10, seed: int = 0) -> Pairs:
    """Choose pairs; no pair occurs twice, no record is paired with itself, no identity is in two folds.

    Pairs of the same identity are spread as evenly over identities as their images allow; pairs of different
    identities are drawn by image.

    Args:
        labels: [n] the class of each record.
        num_pairs: P, a multiple of 2 * folds.
        folds: 1 or more.
        seed: 0 or more.

    Raises:
        DataError: P is no such multiple, or the identities of a fold do not give as many pairs.
    """
    if folds < 1 or num_pairs < 1 or num_pairs % (2 * folds):
        raise DataError(
            f"{num_pairs} pairs in {folds} folds: expected a multiple of {2 * max(folds, 1)}, so that "
            f"every fold has as many same as different pairs"
        )
    rng = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    per_kind = num_pairs // folds // 2
    for number, members in enumerate(_folds(labels, folds, rng)):
        same, different = _same_pairs(members, per_kind, rng), _different_pairs(members, per_kind, rng)
        if len(same) < per_kind or len(different) < per_kind:
            raise DataError(
                f"fold {number} of {folds} has {len(members)} identities with "
                f"{sum(map(len, members))} images: {len(same)} same and {len(different)} different pairs, "
                f"expected {per_kind} of each; ask for fewer pairs or folds, or give more identities"
            )
        chosen += [same, different]
    pairs = np.concatenate(chosen)
    return Pairs(pairs[:, 0], pairs[:, 1], labels[pairs[:, 0]] == labels[pairs[:, 1]])


def make_verification_set(
    records: Records, num_pairs: int, folds: int = 10, seed: int = 0, name: str = "pairs"
) -> VerificationSet:
    """A verification set of pairs chosen from `records`, its images as the source has them."""
    pairs = choose_pairs(labels_of(records), num_pairs, folds, seed)
    order = np.stack([pairs.first, pairs.second], 1).reshape(-1)
    return VerificationSet(name, [_readable(records, int(index)) for index in order], pairs.is_same)


def _readable(records: Records, index: int) -> Any:
    image = records[index].image
    try:
        decode(image)
    except DataError as error:
        raise DataError(f"{records.describe(index)}: {error}; mend or remove it") from None
    return image


def _folds(labels: np.ndarray, folds: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Identities dealt to folds, each as the array of its records' indices, in random order."""
    order = np.argsort(labels, kind="stable")
    identities = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    # Those that can give a pair of their own are dealt first, so that every fold gets its share of them.
    shuffled = [identities[place] for place in rng.permutation(len(identities))]
    shuffled.sort(key=lambda members: len(members) < 2)
    return [shuffled[fold::folds] for fold in range(folds)]


def _same_pairs(members: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
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
        # The j-th pair of any identity comes before the next pair of another.
        priorities.append(np.arange(len(numbers)) + rng.random(len(numbers)))
    return np.concatenate(found)[np.argsort(np.concatenate(priorities))[:count]]


def _unrank(numbers: np.ndarray) -> np.ndarray:
    """Pair numbers 0, 1, 2, ... to (1, 0), (2, 0), (2, 1), ...: [k, 2]."""
    high = ((1 + np.sqrt(1 + 8 * numbers.astype(np.float64))) // 2).astype(np.int64)
    # The root may be off by one for large numbers.
    high -= high * (high - 1) // 2 > numbers
    high += high * (high + 1) // 2 <= numbers
    return np.stack([high, numbers - high * (high - 1) // 2], 1).reshape(-1, 2)


def _different_pairs(members: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
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
        # Any image but those of the first one's identity, which lie together.
        second = (rng.random(2 * count) * (total - sizes[owner[first]])).astype(np.int64)
        second += np.where(second >= starts[owner[first]], sizes[owner[first]], 0)
        drawn = np.minimum(first, second) * total + np.maximum(first, second)
        together = np.concatenate([chosen, drawn])
        chosen = together[np.sort(np.unique(together, return_index=True)[1])]
    chosen = chosen[:count]
    return np.stack([images[chosen // total], images[chosen % total]], 1)
