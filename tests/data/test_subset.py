"""Parts of a source: nothing lost, nothing twice, identities apart."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.data.convert.conversion import convert
from plsc.data.records import Records
from plsc.data.sources import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.data.subset import (
    SelectedRecords,
    hold_out,
    shuffled,
    split_identities,
    with_min_images,
    without_classes_of,
)
from plsc.errors import DataError
from tests._support.sources import LABELS, make_list, make_rec


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


def test_a_source_without_images_has_no_classes_to_leave_out():
    class Empty(Records):
        def __len__(self):
            return 0

        def __getitem__(self, index):
            raise IndexError(index)

    with pytest.raises(DataError, match="records: there are no images, expected at least one"):
        with_min_images(Empty(), 2)


def test_identities_of_another_set_are_left_out_by_name_or_number():
    named = records_of([0, 1, 2, 2], ["x", "y", "z"])
    assert seen(without_classes_of(named, records_of([0], ["y"]))) == [(0, 0), (2, 1), (3, 1)]
    assert seen(without_classes_of(named, records_of([0, 2]))) == [(1, 0)]
    with pytest.raises(DataError, match="no identity is left"):
        without_classes_of(named, named)


def test_classes_of_parts_are_compared_by_the_numbers_they_had_in_the_whole():
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


def test_a_wrong_choice_of_records_is_named():
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


def test_class_numbers_with_leading_zeros_are_equal_to_those_without(tmp_path):
    numbered = open_records(make_list(tmp_path / "list"))
    convert(numbered, tmp_path / "folders", to="folders")
    for folder in (tmp_path / "folders").iterdir():
        folder.rename(folder.with_name(folder.name.zfill(5)))
    folders = open_records(tmp_path / "folders")
    assert folders.class_names[0] == "00000"
    for records, other in ((numbered, folders), (folders, numbered), (folders, folders)):
        with pytest.raises(DataError, match="no identity is left"):
            without_classes_of(records, other)
    left = without_classes_of(folders, SelectedRecords(numbered, [0]))
    assert len(left) == sum(label != LABELS[0] for label in LABELS)


def test_a_huge_label_costs_no_memory(tmp_path):
    folders = open_records(make_list(tmp_path / "list"))
    convert(folders, tmp_path / "folders", to="folders")
    (tmp_path / "huge.txt").write_text("list/images/0.png 99999999999\n")
    assert len(without_classes_of(open_records(tmp_path / "folders"), open_records(tmp_path / "huge.txt"))) == 6


@pytest.mark.parametrize("held_out", [1.5, float("inf"), float("nan"), -1, 0])
def test_a_held_out_share_out_of_range_is_refused(tmp_path, held_out):
    with pytest.raises(DataError, match="held_out="):
        split_identities(open_records(make_list(tmp_path / "set")), held_out)


def test_a_warning_where_two_sets_have_no_class_in_common(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    named = ArrayRecords(np.zeros([6, 4, 4, 3], np.uint8), np.arange(6) // 2)
    named.class_names, other = ["ann", "bob", "cid"], ArrayRecords(np.zeros([2, 4, 4, 3], np.uint8), np.arange(2))
    other.class_names = ["ann", "dan"]
    assert len(without_classes_of(named, other)) == 4
    assert "left out 1 of 3 classes, in the other set too" in caplog.text
    other.class_names = ["eve", "dan"]
    caplog.clear()
    assert len(without_classes_of(named, other)) == 6
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "left out 0 of 3 classes: the two sets" in record.getMessage()


def test_labels_beyond_the_classes_of_the_set_are_named(tmp_path):
    rec = make_rec(tmp_path / "rec")
    (rec / "property").write_text("2,8,8\n")
    (rec / "classes.txt").write_text("a\nb\n")
    make_list(tmp_path / "list")
    records = open_records(rec)
    for attempt in (
        lambda: convert(records, tmp_path / "out", to="folders"),
        lambda: SelectedRecords(records, [5, 0], classes=[0, 1, 2]),
        lambda: without_classes_of(records, open_records(tmp_path / "list")),
        lambda: without_classes_of(open_records(tmp_path / "list"), records),
    ):
        with pytest.raises(DataError, match="record [45] at .*label 2 is out of range, expected 0 to 1: the set"):
            attempt()


@given(st.lists(st.integers(0, 6), min_size=3, max_size=80), st.sampled_from([0.1, 0.25, 0.5, 0.9]), st.integers(0, 99))
def test_a_share_of_each_class_is_held_out(labels, share, seed):
    records, counts = records_of(labels), np.bincount(labels)
    expected = [min(int(np.floor(share * count + 0.5)), max(count - 1, 0)) for count in counts]
    if not any(expected):
        with pytest.raises(DataError, match=f"val_split {share:g}: no image can be held out"):
            hold_out(records, share, seed=seed)
        return
    part = hold_out(records, share, seed=seed)
    assert sorted(seen(part) + seen(part.held_out)) == list(enumerate(labels))
    held = np.bincount(part.held_out.labels, minlength=len(counts))
    assert held.tolist() == expected
    assert ((counts - held)[counts > 0] >= 1).all()
    again = hold_out(records_of(labels), share, seed=seed)
    assert again.digest == part.digest and seen(again.held_out) == seen(part.held_out)


def test_classes_too_small_for_validation_are_counted(caplog):
    caplog.set_level(logging.INFO)
    hold_out(records_of([0, 0, 1, 1]), 0.5, seed=0)
    assert caplog.messages[-1] == "held out 2 of 4 images for validation, at least one of each class"
    hold_out(records_of([0, 0, 1, 1, 2]), 0.5, seed=0)
    assert caplog.messages[-1].endswith("at least one of each class but 1 of 3 classes, too small for it")


def test_the_seed_chooses_which_are_held_out():
    records = records_of(np.arange(200) % 10)
    parts = [hold_out(records, 0.2, seed=seed) for seed in range(4)]
    assert len({part.digest for part in parts}) == 4
    # Each image is drawn about equally often: 40 of 200 in each of 100 draws.
    times = sum(np.isin(np.arange(200), hold_out(records, 0.2, seed=seed).held_out._indices) for seed in range(100))
    assert times.sum() == 4000 and times.min() > 0 and times.max() < 45


def test_held_out_records_keep_names_and_places():
    records = records_of([0, 0, 1, 1], ["ann", "bob"])
    part = hold_out(records, 0.5)
    assert part.class_names == part.held_out.class_names == ["ann", "bob"]
    assert part.num_classes == part.held_out.num_classes == records.num_classes
