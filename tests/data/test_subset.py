"""Splits, selections and pairs: nothing lost, nothing twice, identities apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data.pairs import _unrank, choose_pairs, make_verification_set
from plsc.data.records import Records
from plsc.data.sources.arrays import ArrayRecords
from plsc.data.subset import SelectedRecords, shuffled, split_identities, with_min_images, without_classes_of
from plsc.errors import DataError


def records_of(labels, class_names=None) -> ArrayRecords:
    """Records whose image is filled with its index."""
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 2, 2, 3))
    records = ArrayRecords(images, np.asarray(labels))
    records.class_names = class_names
    return records


def seen(records) -> list:
    return [(int(records[n].image[0, 0, 0]), records[n].label) for n in range(len(records))]


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=60).filter(lambda labels: len(set(labels)) > 1), st.integers(0, 99)
)
def test_a_split_by_identity_loses_nothing_and_shares_nothing(labels, seed):
    train, held_out = split_identities(records_of(labels), 0.3 if len(set(labels)) > 2 else 1, seed=seed)
    parts = [[(index, labels[index]) for index, _ in seen(part)] for part in (train, held_out)]
    assert sorted(parts[0] + parts[1]) == list(enumerate(labels))
    assert not {label for _, label in parts[0]} & {label for _, label in parts[1]}
    for part in (train, held_out):
        assert sorted(set(part.labels.tolist())) == list(range(part.num_classes))
        assert [label for _, label in seen(part)] == part.labels.tolist()


def test_a_split_depends_on_the_seed_alone_and_must_leave_both_parts_a_class():
    records = records_of(np.arange(100) % 50)
    again = [split_identities(records, 0.2, seed=seed)[1].labels.tolist() for seed in (3, 3)]
    assert again[0] == again[1]
    assert seen(split_identities(records, 10, seed=3)[1]) != seen(split_identities(records, 10, seed=4)[1])
    for held_out in (0, 0.001, 50, 1.0 * 50):
        with pytest.raises(DataError, match="of 50 classes is .*, expected 1 to 49"):
            split_identities(records, held_out)


def test_classes_with_few_images_go_and_the_rest_are_renumbered(caplog):
    caplog.set_level("INFO", "plsc")
    records = records_of([5, 0, 5, 2, 0, 5], class_names=list("abcdef"))
    selected = with_min_images(records, 2)
    assert seen(selected) == [(0, 1), (1, 0), (2, 1), (4, 0), (5, 1)]
    assert (selected.num_classes, selected.class_names) == (2, ["a", "f"])
    assert "left out 4 of 6 classes with fewer than 2 images, and with them 1 of 6 images" in caplog.text
    assert with_min_images(records_of([0, 1]), 1).num_classes == 2
    with pytest.raises(DataError, match="no class has 4 images or more; the largest has 3"):
        with_min_images(records, 4)


def test_identities_of_another_set_are_left_out_by_name_or_number():
    named = records_of([0, 1, 2, 2], ["x", "y", "z"])
    assert seen(without_classes_of(named, records_of([0], ["y"]))) == [(0, 0), (2, 1), (3, 1)]
    assert seen(without_classes_of(named, records_of([0, 2]))) == [(1, 0)]
    with pytest.raises(DataError, match="no identity is left"):
        without_classes_of(named, named)


def test_parts_of_a_set_are_told_from_it_and_each_other_by_the_numbers_it_had():
    whole = records_of(np.arange(40) % 20)
    train, held_out = split_identities(whole, 5)
    assert sorted(map(int, train.class_names + held_out.class_names)) == list(range(20))
    assert len(without_classes_of(held_out, train)) == len(held_out)
    assert {index % 20 for index, _ in seen(without_classes_of(whole, train))} == set(map(int, held_out.class_names))
    assert {index % 20 for index, _ in seen(without_classes_of(train, with_min_images(records_of([3, 7]), 1)))} == (
        set(map(int, train.class_names)) - {3, 7}
    )
    with pytest.raises(DataError, match="no identity is left"):
        without_classes_of(train, whole)


def test_shuffling_keeps_every_record_once():
    records = records_of(np.arange(30) % 4)
    mixed = shuffled(records, 1)
    assert sorted(seen(mixed)) == seen(records) != seen(mixed)


def test_a_choice_that_is_not_there_is_named():
    with pytest.raises(DataError, match="records 0 to 3 were chosen, expected 0 to 2"):
        SelectedRecords(records_of([0, 1, 2]), [0, 3])
    with pytest.raises(DataError, match="nothing is left"):
        SelectedRecords(records_of([0, 1, 2]), [])
    with pytest.raises(DataError, match="record 1 is of class 1, which is not among the 2 chosen"):
        SelectedRecords(records_of([0, 1, 2]), [0, 1], classes=[0, 2])


def test_labels_are_read_where_the_source_does_not_know_them():
    class Plain(Records):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return records_of([1, 0, 1])[index]

    assert Plain().labels.tolist() == [1, 0, 1]


# Pairs


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), min_size=12, max_size=40), st.sampled_from([1, 2, 5]), st.integers(0, 9))
def test_pairs_are_what_they_claim(sizes, folds, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    try:
        pairs = choose_pairs(labels, 8 * folds, folds=folds, seed=seed)
    except DataError as error:
        assert "ask for fewer pairs or folds" in str(error)
        return
    assert (labels[pairs.first] == labels[pairs.second]).tolist() == pairs.is_same.tolist()
    assert pairs.is_same.reshape(folds, 8).sum(1).tolist() == [4] * folds
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
