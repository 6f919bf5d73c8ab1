"""Verification pairs: balanced, distinct, identities apart by fold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data.pairs import _unrank, choose_pairs, make_verification_set
from plsc.data.sources import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.errors import DataError
from plsc.metrics.verification import verification_report
from plsc.utils.hints import command_line
from tests._support.sources import IMAGES, make_list


def test_pairs_hold_no_image_that_cannot_be_decoded(tmp_path):
    folder = make_list(tmp_path / "set")
    for number in range(6):
        (folder / "images" / f"{number}.png").write_bytes(IMAGES[number][:40] if number == 3 else IMAGES[number])
    with pytest.raises(DataError, match="3.png .*label.txt, line 4.: no image: a truncated PNG of 40 bytes"):
        for seed in range(20):
            make_verification_set(open_records(folder), 4, folds=1, seed=seed)


def records_of(labels, class_names=None) -> ArrayRecords:
    """Records whose image is filled with its index."""
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 2, 2, 3))
    records = ArrayRecords(images, np.asarray(labels))
    records.class_names = class_names
    return records


def test_too_few_identities_are_told_from_too_few_images():
    """The error names the flags, and that a fold of one identity has no different pair."""
    few = r"of each; ask for fewer pairs or folds \(num_pairs=... and folds=...\), or give more identities"
    with pytest.raises(DataError, match=f"fold 0 of 2 has 1 identity .*{few}; different pairs need two identities"):
        choose_pairs(np.repeat([0, 1], 9), 8, folds=2)
    with pytest.raises(DataError, match=f"fold 0 of 2 has 2 identities.*{few}$"):
        choose_pairs(np.repeat([0, 1, 2, 3], 2), 40, folds=2)
    with command_line({"--pairs", "--folds"}), pytest.raises(DataError, match=r"\(--pairs and --folds\)"):
        choose_pairs(np.repeat([0, 1], 9), 8, folds=2)


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), min_size=12, max_size=40), st.sampled_from([1, 2, 5]), st.integers(0, 9))
def test_pairs_are_distinct_and_balanced_with_identities_apart(sizes, folds, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    try:
        pairs = choose_pairs(labels, 8 * folds, folds=folds, seed=seed)
    except DataError as error:
        assert "ask for fewer pairs or folds" in str(error)
        return
    assert (labels[pairs.first] == labels[pairs.second]).tolist() == pairs.is_same.tolist()
    assert pairs.is_same.reshape(folds, 8).sum(1).tolist() == [4] * folds
    assert pairs.folds.tolist() == np.repeat(np.arange(folds), 8).tolist()
    assert pairs.is_same.tolist() == [True, False] * 4 * folds
    assert (pairs.first != pairs.second).all()
    assert len({frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist())}) == 8 * folds
    identities = [
        set(labels[pairs.first[8 * fold : 8 * fold + 8]]) | set(labels[pairs.second[8 * fold : 8 * fold + 8]])
        for fold in range(folds)
    ]
    assert sum(map(len, identities)) == len(set().union(*identities))


def test_every_possible_pair_is_given_when_asked_for_and_not_one_more():
    labels = np.array([0, 0, 0, 1])
    pairs = choose_pairs(labels, 6, folds=1)
    assert {frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist())} == {
        frozenset(pair) for pair in [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    }
    with pytest.raises(
        DataError, match="fold 0 of 1 has 2 identities with 4 images: 3 same and 3 different pairs, expected 4 of each"
    ):
        choose_pairs(labels, 8, folds=1)
    with pytest.raises(DataError, match="7 pairs in 2 folds: expected a multiple of 4"):
        choose_pairs(labels, 7, folds=2)


def test_same_pairs_are_spread_over_identities_and_large_sets_are_quick():
    labels = np.repeat(np.arange(1000), 20)
    labels[:5000] = 0
    pairs = choose_pairs(labels, 6000, folds=10, seed=0)
    per_identity = np.bincount(labels[pairs.first[pairs.is_same]])
    assert per_identity.max() <= 5


def test_pair_numbers_count_all_pairs_in_order():
    assert _unrank(np.arange(6)).tolist() == [[1, 0], [2, 0], [2, 1], [3, 0], [3, 1], [3, 2]]
    large = np.array([2**45 - 1, 2**45, 10**14])
    high, low = _unrank(large).T
    assert (high * (high - 1) // 2 + low == large).all()
    assert ((low >= 0) & (low < high)).all()


def test_a_verification_set_holds_the_pairs_images():
    records = records_of(np.repeat(np.arange(8), 5))
    made = make_verification_set(records, 16, folds=2, seed=1)
    owner = [int(image[0, 0, 0]) // 5 for image in made.images]
    assert [a == b for a, b in zip(owner[0::2], owner[1::2])] == made.is_same.tolist()
    assert made.is_same.sum() == 8
    assert made.has_own_folds and made.folds.tolist() == [0] * 8 + [1] * 8
    identities = [{owner[2 * pair], owner[2 * pair + 1]} for pair in range(16)]
    assert not set.union(*identities[:8]) & set.union(*identities[8:])


def test_pairs_in_one_fold_leave_the_folds_to_the_evaluation():
    """Ten contiguous folds, as other libraries cut, hold both kinds as well."""
    made = make_verification_set(records_of(np.repeat(np.arange(8), 10)), 40, folds=1)
    assert not made.has_own_folds and made.folds.tolist() == np.repeat(np.arange(10), 4).tolist()
    assert made.is_same.reshape(10, 4).sum(1).tolist() == [2] * 10


def test_the_folds_of_pairs_do_not_change_what_they_say_of_embeddings():
    """Ten contiguous folds of pairs laid out in two would hold same pairs only, or different pairs only."""
    labels = np.repeat(np.arange(40), 6)
    rng = np.random.default_rng(0)
    centers, noise = rng.normal(size=[40, 8]), rng.normal(size=[240, 8])
    found = []
    for folds in (1, 2, 5, 10):
        pairs = choose_pairs(labels, 200, folds=folds)
        order = np.stack([pairs.first, pairs.second], 1).reshape(-1)
        rows = (0.5 * centers[labels] + noise)[order]
        numbers = pairs.folds if folds > 1 else 10
        found.append(verification_report(rows, pairs.is_same, folds=numbers).accuracy)
        found.append(verification_report(rows, pairs.is_same).accuracy)
    assert min(found) > 0.5 and max(found) - min(found) < 0.2
