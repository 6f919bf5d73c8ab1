"""Records: the defaults of the base class, the adapter of other data sets, reading files."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from plsc.data.image_input import read_image
from plsc.data.loader import ReaderLoader
from plsc.data.records import DatasetRecords, Record, Records, as_records
from plsc.data.sources import open_records
from plsc.errors import DataError
from tests._support.sources import IMAGES, LABELS, make_list, make_rec


@pytest.mark.parametrize("label", [[0, 0, 1], 1.7, np.float32("nan"), "b", ["1", "2"], None])
def test_a_label_that_is_no_number_is_refused(label):
    with pytest.raises(DataError, match="expected a class of 0 or more: label .* is no whole number"):
        DatasetRecords([(IMAGES[0], label)])[0]
    loader = ReaderLoader(lambda: iter([[(np.zeros((3, 8, 8), np.float32), label)]]), (3, 8, 8), num_classes=5)
    with pytest.raises(DataError, match="train_reader, batch 0"):
        list(loader.epoch(0))


def test_a_label_may_be_a_text_or_a_float_that_is_whole():
    assert [DatasetRecords([(IMAGES[0], label)])[0].label for label in ("5", 5.0, [5], np.int8(5))] == [5] * 4


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pillow_images_of_any_mode(mode):
    image = Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).convert(mode)
    assert DatasetRecords([(image, 2)])[0].image.tolist() == np.full((4, 4, 3), 255).tolist()


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_pillow_whose_values_it_would_cut_off_are_refused(mode):
    image = (
        Image.fromarray(np.full((4, 4), 30000, np.uint16)).convert(mode)
        if mode != "I;16"
        else (Image.fromarray(np.full((4, 4), 30000, np.uint16)))
    )
    with pytest.raises(DataError, match=f"mode {mode}, expected 8 bits"):
        DatasetRecords([(image, 0)])[0]


def test_an_image_of_pillow_that_cannot_be_read_is_a_bad_image(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    with pytest.raises(DataError, match="of Pillow cannot be read"):
        DatasetRecords([(Image.open(tmp_path / "cut.jpg"), 0)])[0]
    with pytest.raises(DataError, match="got the path 'a.jpg', expected the image"):
        DatasetRecords([("a.jpg", 0)])[0]


def test_large_files_are_read_whole(tmp_path):
    data = os.urandom(300_001)
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_image(tmp_path / "a.jpg") == data
    with pytest.raises(DataError, match="Is a directory; give the files in it one by one"):
        read_image(tmp_path)


class Counting(Records):
    """Five records of classes 0, 2, 1, 2, 0, and how often they were read."""

    reads = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.reads += 1
        return Record(b"image %d" % index, (0, 2, 1, 2, 0)[index])


def test_a_source_needs_only_a_length_and_records():
    records = Counting()
    assert (records.num_classes, records.class_names, records.root, records.damage) == (None, None, None, None)
    assert (records.format, records.describe(3), records.path_of(3), records.save_index()) == (
        "records",
        "record 3 of records",
        None,
        [],
    )
    assert [label for _, label in records] == [0, 2, 1, 2, 0] and records.reads == 5
    assert records.labels.tolist() == [0, 2, 1, 2, 0] and records.count_classes() == 3
    records.check_labels()
    assert records.reads == 10, "labels are read once"
    with pytest.raises(TypeError, match="abstract"):
        Records()


@pytest.mark.parametrize(
    "item, words",
    [
        ((b"image", -1), r"record 0 of records: reading its label failed: ValueError\('label -1 is below 0'\)"),
        ((b"image", 1.5), "record 0 of records: reading its label failed: ValueError"),
        (None, "record 0 of records: reading its label failed: TypeError"),
        (KeyError("a"), r"record 0 of records: reading its label failed: KeyError\('a'\)"),
        (DataError("cut short"), "record 0 of records: cut short"),
    ],
)
def test_a_record_whose_label_cannot_be_read_is_named(item, words):
    class One(Records):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            if isinstance(item, Exception):
                raise item
            return item

    with pytest.raises(DataError, match=words):
        One().labels  # noqa: B018


def test_a_record_may_be_a_plain_pair():
    class Pairs(Counting):
        def __getitem__(self, index):
            return tuple(super().__getitem__(index))

    assert Pairs().labels.tolist() == [0, 2, 1, 2, 0]


def test_labels_are_compared_with_the_number_of_classes():
    records = Counting()
    records.num_classes = 2
    assert records.count_classes() == 2
    with pytest.raises(DataError, match="record 1 of records: label 2 is out of range, expected 0 to 1: the set says"):
        records.check_labels()


def test_only_a_subclass_is_taken_for_records():
    class Own:
        """A data set that happens to have the names of the base class."""

        num_classes, format, labels = 7, "own", None

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return IMAGES[0], 6

        def describe(self):
            return "my data set"

    records = as_records(Own())
    assert isinstance(records, DatasetRecords) and records.num_classes == 7 and as_records(records) is records
    assert records.describe(0) == "item 0 of Own" and records.labels.tolist() == [6]
    assert DatasetRecords([(b"x", 0)]).num_classes is None


class Named:
    """A data set whose class attributes a test gives."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise AssertionError("read")


@pytest.mark.parametrize(
    "attributes, num_classes, names",
    [
        ({}, None, None),
        ({"num_classes": 2}, 2, None),
        ({"classes": ("a", "b")}, 2, ["a", "b"]),
        ({"class_names": ["a", "b"], "num_classes": 2}, 2, ["a", "b"]),
        ({"classes": ["a", "b"], "num_classes": 3}, 3, None),  # which two of the three is not known
        ({"classes": [0, 1]}, None, None),
    ],
)
def test_a_data_set_may_say_its_classes(attributes, num_classes, names):
    records = DatasetRecords(Named(**attributes))
    assert (records.num_classes, records.class_names, records.known_labels()) == (num_classes, names, None)


def test_labels_are_known_where_no_record_has_to_be_read(tmp_path):
    assert open_records(make_list(tmp_path / "list")).known_labels().tolist() == LABELS
    assert open_records("synthetic:3:6").known_labels().tolist() == [0, 1, 2, 0, 1, 2]
    (make_rec(tmp_path / "rec") / "property").write_text("3,4,5")
    records = open_records(tmp_path / "rec")
    assert records.known_labels() is None
    assert records.labels_at(np.array([5, 0])).tolist() == [2, 0]
    assert records.known_labels() is None
    assert records.labels.tolist() == records.known_labels().tolist() == LABELS
