"""What tells classes apart: names, the paths of first images, or labels; and what a change of the data shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.data.class_identity import ClassIdentity, find_change, identify_classes, rows_by_name, sample_places
from plsc.data.records import DatasetRecords, Records
from plsc.data.sources import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.data.sources.string_table import StringTable
from plsc.data.subset import with_min_images
from tests._support.sources import make_csv, make_folders, make_list, make_rec, make_tar


def identify(records, folder="") -> ClassIdentity:
    found = identify_classes(records, str(folder))
    assert found is not None
    return found


def change(before, records, folder="") -> str | None:
    return find_change(before, identify(records, folder), records=records, folder=str(folder))


def arrays(labels, names=None) -> ArrayRecords:
    records = ArrayRecords(np.zeros([len(labels), 2, 2, 3], np.uint8), np.asarray(labels))
    records.class_names = names
    return records


def named(*names) -> ClassIdentity:
    return identify(arrays(list(range(len(names))), list(names)))


@pytest.mark.parametrize(
    "make, by",
    [(make_folders, "name"), (make_csv, "name"), (make_list, "image"), (make_rec, "label"), (make_tar, "label")],
)
def test_each_kind_of_source_is_known_by_what_it_has_and_the_same_twice(tmp_path, make, by):
    folder = make(tmp_path / "data")
    found = identify(open_records(folder), folder)
    assert found.by == by
    again = ClassIdentity.from_arrays(found.by, found.num_images, arrays=found.arrays())
    assert again.digest == found.digest == identify(open_records(folder), folder).digest
    assert change(again, open_records(folder), folder) is None


def test_a_renamed_class_folder_shifts_the_others(tmp_path):
    folder = make_folders(tmp_path / "data")
    before = identify(open_records(folder), folder)
    (folder / "a").rename(folder / "z")
    assert change(before, open_records(folder), folder) == (
        "class 0 was 'a' and is 'b' now; changed are 3 of 3 class names"
    )


def test_names_at_the_end_come_and_go_without_a_change():
    assert change(named("a", "b"), arrays([0, 1, 2], ["a", "b", "c"])) is None
    assert change(named("a", "b", "c"), arrays([0, 1], ["a", "b"])) is None
    assert change(named("a", "c"), arrays([0, 1, 2], ["a", "b", "c"])).startswith(
        "class 1 was 'c' and is 'b' now; changed are 1 of 2"
    )


def write_list(folder, labels):
    (folder / "label.txt").write_text("".join(f"images/{n}.png {label}\n" for n, label in labels))
    return open_records(folder)


def test_a_list_whose_labels_were_exchanged_is_noticed_by_its_images_in_any_order(tmp_path):
    folder = make_list(tmp_path / "data")
    before = identify(open_records(folder), folder)
    swapped = [(0, 1), (1, 1), (2, 0), (3, 0), (4, 2), (5, 2)]
    for labels in (swapped, swapped[::-1]):
        assert change(before, write_list(folder, labels), folder) == (
            "'images/0.png' was in class 0 and is in class 1 now; in another class are 2 of 3 images that "
            "stood first in their class"
        )


def test_a_list_that_grew_shrank_was_shuffled_or_moved_is_the_same(tmp_path):
    folder = make_list(tmp_path / "data")
    before = identify(open_records(folder), folder)
    for labels in (
        [(5, 2), (0, 0), (1, 0), (2, 1), (3, 1), (4, 2)],  # in another order
        [(9, 0), (0, 0), (1, 0), (8, 1), (2, 1), (3, 1), (7, 2), (4, 2), (5, 2)],  # grown at the front of each class
        [(1, 0), (3, 1), (5, 2)],  # without the images that stood first
    ):
        assert change(before, write_list(folder, labels), folder) is None
    (tmp_path / "data").rename(tmp_path / "moved")
    assert change(before, write_list(tmp_path / "moved", [(1, 0), (3, 1), (0, 2)]), tmp_path / "moved") is not None


def test_a_class_that_lost_its_number_is_found_where_there_are_fewer_classes_now(tmp_path):
    folder = make_list(tmp_path / "data")
    before = identify(open_records(folder), folder)
    assert "'images/4.png' was in class 2 and is in class 1" in change(
        before, write_list(folder, [(0, 0), (1, 0), (4, 1), (5, 1)]), folder
    )


def test_labels_that_changed_in_place_are_noticed_where_there_is_nothing_else():
    before = identify(arrays([0, 0, 1, 1]))
    assert change(before, arrays([1, 1, 0, 0])) == (
        "record 0 of arrays was in class 0 and is in class 1 now; changed are 4 of 4 compared labels"
    ).replace("record 0 of arrays", arrays([0]).describe(0))
    assert change(before, arrays([0, 0, 1, 1, 0, 2])) is None  # grown at the end
    assert change(before, arrays([0, 0, 1])) is None


def test_data_without_names_and_paths_that_grew_in_its_midst_is_accepted_and_said(caplog):
    assert change(identify(arrays([0, 1])), arrays([0, 0, 1])) is None
    assert "whether classes have kept their numbers cannot be told" in caplog.text


@given(st.integers(1, 20_000))
def test_the_labels_that_are_kept_are_spread_over_the_data(count):
    places = sample_places(count)
    assert len(places) == min(count, 4096)
    assert places[0] == 0 and places[-1] < count and (np.diff(places) > 0).all()
    assert count - places[-1] <= -(-count // len(places))


def test_no_image_is_read_and_a_source_that_would_have_to_is_known_by_nothing():
    class Unreadable(Records):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError("read")

    assert identify_classes(Unreadable(), "") is None
    assert identify_classes(DatasetRecords([(b"", 0)]), "") is None


def test_a_part_of_unnamed_data_has_its_old_numbers_as_names():
    whole = identify(arrays([0, 0, 1, 1, 2, 2]))
    part = with_min_images(arrays([0, 0, 1, 2, 2]), 2)
    assert find_change(whole, identify(part), records=part, folder="").startswith("class 1 was '1' and is '2' now")
    # With and without leading zeros, as folders that were made of them are named.
    assert find_change(named("00", "01"), named("0", "1"), records=part, folder="") is None


def test_classes_that_were_known_otherwise_cannot_be_compared(caplog):
    caplog.set_level("INFO", "plsc")
    assert change(named("ann", "bob"), arrays([0, 1])) is None
    assert "classes were known by name and are known by label now" in caplog.text


def test_rows_by_name():
    assert rows_by_name(named("a", "b", "c"), named("c", "a", "b")).tolist() == [2, 0, 1]
    assert rows_by_name(named("a", "b", "c"), named("d", "b", "c", "e")).tolist() == [-1, 1, 2, -1]
    assert rows_by_name(named("07", "3"), named("3", "7", "5")).tolist() == [1, 0, -1]
    assert rows_by_name(named("a", "a"), named("a", "b")) == "several classes have the same name"
    assert rows_by_name(identify(arrays([0])), named("a")) == "not both have names"


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, unique=True), st.randoms())
def test_any_names_in_any_order_are_matched(names, random):
    shuffled = random.sample(names, len(names))
    rows = rows_by_name(named(*names), named(*shuffled))
    assert [names[row] for row in rows] == shuffled


def test_names_that_are_not_utf_8_are_kept():
    name = b"gr\xfcn".decode("utf-8", "surrogateescape")
    assert list(named(name, "b").table) == [name, "b"] == list(StringTable([name, "b"]))
