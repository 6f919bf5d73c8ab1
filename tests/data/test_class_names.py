"""Classes of other data are found by name, or by number where neither side has names."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from plsc.data.class_names import LEFT_OUT, ClassNames, match_labels
from plsc.data.records import as_records
from plsc.data.sources.string_table import StringTable
from plsc.errors import DataError
from tests.data.test_subset import records_of

TRAINING = StringTable(["ann", "bob", "carl", "dora"])


def match(labels, names, training=TRAINING, num_classes=4, **options):
    return match_labels(records_of(labels, names), training, num_classes=num_classes, what="val", **options).tolist()


def test_names_decide_and_not_numbers():
    assert match([0, 1, 1, 2], ["dora", "bob", "ann"]) == [3, 1, 1, 0]


def test_numbers_decide_where_neither_side_has_names():
    assert match([3, 0, 2], None, training=None) == [3, 0, 2]
    with pytest.raises(
        DataError, match="val: got 1 class of 2 that the training data has not: 4; leave their 2 images"
    ):
        match([0, 4, 4], None, training=None)


@pytest.mark.parametrize(
    "names, training, expected",
    [(["7", "010"], None, [7, 10, 7]), (None, StringTable(["01", "0", "7"]), [1, 0, 1])],
)
def test_names_that_are_numbers_match_numbers(names, training, expected):
    assert match([0, 1, 0], names, training=training, num_classes=11 if training is None else 3) == expected


def test_one_side_names_and_the_other_numbers_its_classes():
    with pytest.raises(DataError, match="the training data names its classes, and val numbers them"):
        match([0, 1], None)
    with pytest.raises(DataError, match="val names its classes, and the training data numbers them"):
        match([0, 1], ["ann", "7"], training=None)


@pytest.mark.parametrize("classes", [None, 4])
def test_data_without_an_image_is_refused(classes):
    class Empty(list):
        labels, num_classes = np.zeros(0, np.int64), classes

    with pytest.raises(DataError, match="val: no image; give validation data"):
        match_labels(as_records(Empty(), "val_dataset"), TRAINING, num_classes=4, what="val")


def test_unknown_classes_are_refused_by_name():
    with pytest.raises(DataError, match="got 2 classes of 3 that the training data has not: 'eve', 'Ann'; .* 3 images"):
        match([0, 1, 1, 2, 0, 0], ["bob", "eve", "Ann"])
    many = [f"x{number}" for number in range(9)]
    with pytest.raises(DataError, match="'x0', 'x1', 'x2', 'x3', 'x4' and others"):
        match([*range(9), 9], [*many, "bob"])


def test_unknown_classes_may_be_left_out_and_are_counted(caplog):
    with caplog.at_level(logging.WARNING, "plsc"):
        assert match([0, 1, 1, 2], ["bob", "eve", "ann"], leave_out=True) == [1, LEFT_OUT, LEFT_OUT, 0]
    assert "val: left out 2 images of 1 class that training has left out: 'eve'" in caplog.text
    with pytest.raises(DataError, match="that the training data has not"):  # nothing would be left
        match([0, 0], ["eve"], leave_out=True)


def test_a_class_without_an_image_is_not_asked_for():
    assert match([0, 2], ["bob", "eve", "ann"]) == [1, 0]


def test_a_name_of_several_classes():
    twice = StringTable(["ann", "bob", "ann"])
    with pytest.raises(DataError, match="'ann' is the name of the classes 0 and 2 of training"):
        match([0], ["ann"], training=twice)
    assert match([0], ["bob"], training=twice) == [1]


def test_classes_beyond_those_that_are_trained():
    with pytest.raises(DataError, match="'dora'"):
        match([0], ["dora"], num_classes=3)


def test_names_by_number():
    names = ClassNames(TRAINING)
    assert [names[number] for number in (0, 3, 4)] == ["ann", "dora", "4"]
    assert ClassNames()[7] == "7"


def test_the_number_of_each_record_for_many_classes():
    names = [f"n{number}" for number in range(1000)]
    order = np.random.default_rng(0).permutation(1000)
    found = match(np.arange(1000), [names[place] for place in order], training=StringTable(names), num_classes=1000)
    assert found == order.tolist()
