"""Sources of training data: each kind read whole, in any order, from a pickle; lists, folders and their faults."""

from __future__ import annotations

import contextlib
import logging
import pickle
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plsc.data.recordio import RecordIOWriter
from plsc.data.sources import open_records
from plsc.data.sources.base64_text import Base64Records
from plsc.data.sources.folders import FolderRecords
from plsc.data.sources.lists import ListRecords
from plsc.data.sources.string_table import StringTable
from plsc.data.sources.synthetic import SyntheticRecords
from plsc.data.sources.tables import CsvRecords
from plsc.errors import DataError, PLSCError
from tests._support.sources import IMAGES, LABELS, make_base64, make_csv, make_folders, make_list, make_rec, make_tar

fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MAKERS = {
    "list of images": make_list,
    "class folders": make_folders,
    "RecordIO, plain layout, with index": make_rec,
    "base64 text, 2 part files, image first or label first": make_base64,
    "tar, WebDataset layout, 2 shards": make_tar,
    "table of image paths, CSV": make_csv,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_is_recognized_and_read_whole_in_any_order_from_a_pickle(kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    records = open_records(MAKERS[kind](tmp_path / "set"))
    assert records.format == kind
    assert f"{tmp_path / 'set'}: {kind}, 6 images" in caplog.text
    assert records.num_classes == 3
    assert records.labels.tolist() == LABELS
    for copy in (records, pickle.loads(pickle.dumps(records))):
        for n in random.Random(0).sample(range(6), 6):
            assert copy[n] == (IMAGES[n], LABELS[n])
    assert copy[-1] == copy[5]
    with pytest.raises(IndexError, match="6"):
        records[6]
    assert len({records.describe(n) for n in range(6)}) == 6


def test_arrays_are_read_by_memory_map(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "labels.npy", np.array(LABELS, np.int32))
    np.savez(tmp_path / "set.npz", images=pixels, labels=LABELS)
    for path in (tmp_path, tmp_path / "images.npy", tmp_path / "set.npz"):
        records = open_records(path)
        copy = pickle.loads(pickle.dumps(records))
        for n in range(6):
            assert np.array_equal(copy[n].image, pixels[n])
            assert copy[n].label == records[n].label == LABELS[n]
    assert len(pickle.dumps(open_records(tmp_path))) < pixels.nbytes + 1000


def test_synthetic_images_depend_on_seed_and_index_alone():
    records = open_records("synthetic:1000:50000")
    assert (len(records), records.num_classes) == (50000, 1000)
    image, label = records[41234]
    assert (image.shape, image.dtype, label) == ((112, 112, 3), np.uint8, 234)
    assert np.array_equal(image, SyntheticRecords(1000, 50000)[41234].image)
    assert not np.array_equal(image, SyntheticRecords(1000, 50000, seed=1)[41234].image)
    assert records.labels[41234] == 234


def test_the_first_choice_of_several_is_read_and_the_others_are_named(tmp_path, caplog):
    make_list(tmp_path / "set")
    with RecordIOWriter(tmp_path / "set" / "train.rec") as writer:
        writer.write(0, 0, image=IMAGES[0])
    assert isinstance(open_records(tmp_path / "set"), ListRecords)
    assert "reading label.txt; the folder also has train.rec" in caplog.text
    assert len(open_records(tmp_path / "set" / "train.rec")) == 1


def test_classes_txt_names_the_classes_of_sets_that_do_not(tmp_path, caplog):
    folder = make_rec(tmp_path / "set")
    (folder / "classes.txt").write_text("zoë\nada\nbo\n", encoding="utf-8")
    for path in (folder, folder / "train.rec"):
        assert open_records(path).class_names == ["zoë", "ada", "bo"]
    (folder / "classes.txt").write_text("ada\n")
    assert getattr(open_records(folder), "class_names", None) is None
    assert "classes.txt: 1 names for 3 classes, passed over" in caplog.text
    (folder / "classes.txt").write_bytes(b"\xff\n\n\n")
    assert getattr(open_records(folder), "class_names", None) is None
    assert "the names of the classes cannot be read" in caplog.text


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "'.*nothing' does not exist; expected a folder"),
        ("lfw.bin", "a .bin is a verification set"),
        ("empty", "found no images in class folders"),
        ("synthetic:5", "expected 'synthetic:CLASSES:IMAGES'"),
        ("synthetic:0:5", "got 0 classes"),
        ("two", r"holds a.rec, b.rec; expected one of them to be train.rec"),
    ],
)
def test_what_is_no_training_data_is_said(tmp_path, name, message):
    (tmp_path / "lfw.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.rec").write_bytes(b"x")
    (tmp_path / "two" / "b.rec").write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        open_records(name if ":" in name else tmp_path / name)


# Lists and folders


def test_a_list_takes_any_white_space_comments_absolute_and_unicode_paths(tmp_path):
    for name in ("a.png", "with blanks 7.png", "名前.png", "x#y.png"):
        (tmp_path / name).write_bytes(name.encode())
    text = (
        f"# a comment\n\n{tmp_path / 'a.png'}\t \t3\r\n  with blanks 7.png 0   # trailing\n名前.png 12\n"
        f"x#y.png 1\n./a.png\u30003"
    )
    (tmp_path / "list.txt").write_text("\ufeff" + text, encoding="utf-8")
    records = ListRecords(tmp_path / "list.txt")
    assert records.labels.tolist() == [3, 0, 12, 1, 3]
    names = [record.image.decode() for record in records]
    assert names == ["a.png", "with blanks 7.png", "名前.png", "x#y.png", "a.png"]
    assert records.describe(2).endswith("list.txt, line 5)")
    assert records.num_classes == 13


@pytest.mark.parametrize(
    "text, message",
    [
        ("a.png 0\nb.png\n", r"label.txt, line 2: got 'b.png', expected an image path and a label"),
        ("a.png -1\n", "line 1: got 'a.png -1'"),
        ("a.png 0.5\n", "line 1"),
        ("a.png 99999999999999999999\n", "line 1"),
        ("\n# only a comment\n", "the list is empty"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_a_malformed_list_is_named_by_line(tmp_path, text, message):
    (tmp_path / "label.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        open_records(tmp_path / "label.txt")


def test_an_image_that_is_missing_is_named_when_it_is_read(tmp_path):
    (tmp_path / "label.txt").write_text("images/gone.jpg 0\n")
    with pytest.raises(DataError, match="gone.jpg: the image cannot be read: No such file"):
        open_records(tmp_path)[0]


@given(data=st.binary(max_size=120) | st.text(max_size=60).map(str.encode))
@fuzz
def test_fuzz_lists_and_tables(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name, reader in (("label.txt", ListRecords), ("t.csv", CsvRecords), ("b64", Base64Records)):
        path = folder / name
        path.write_bytes(b"image,label\n" + data if name == "t.csv" else data)
        with contextlib.suppress(PLSCError):
            records = reader(path)
            for n in range(len(records)):
                with contextlib.suppress(PLSCError):
                    records[n]


def test_folders_below_class_folders_count_and_other_files_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "plsc")
    make_folders(tmp_path)
    (tmp_path / "b" / "deeper").mkdir()
    (tmp_path / "b" / "deeper" / "9.JPG").write_bytes(b"x")
    (tmp_path / "b" / "notes.txt").write_text("x")
    records = FolderRecords(tmp_path)
    assert records.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert records.class_names == ["a", "b", "c"]
    assert "passed over 1 files" in caplog.text


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]))))
def test_packed_strings_are_the_strings(strings):
    packed = StringTable(strings)
    assert list(packed) == strings
    assert list(StringTable.from_arrays(packed.text, packed.ends)) == strings
