"""Every source of training data: read whole, in any order, from a pickle; each malformed kind by its message."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import logging
import pickle
import random
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plsc.data import offset_index
from plsc.data.arrays import ArrayRecords
from plsc.data.base64_text import Base64Records
from plsc.data.packed import PackedStrings
from plsc.data.recordio import RecordIOWriter
from plsc.data.records import FolderRecords, ListRecords, open_records
from plsc.data.synthetic import SyntheticRecords
from plsc.data.tables import CsvRecords, ParquetRecords
from plsc.data.tar_shards import TarRecords, expand_range
from plsc.errors import DataError, MissingDependencyError, PLSCError

fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
IMAGES = [cv2.imencode(".png", np.full((4 + n, 5, 3), 10 * n, np.uint8))[1].tobytes() for n in range(6)]
LABELS = [0, 0, 1, 1, 2, 2]


def make_list(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    for n, image in enumerate(IMAGES):
        (folder / "images" / f"{n}.png").write_bytes(image)
    (folder / "label.txt").write_text("".join(f"images/{n}.png {label}\n" for n, label in enumerate(LABELS)))
    return folder


def make_folders(folder: Path) -> Path:
    for n, image in enumerate(IMAGES):
        (folder / "abc"[LABELS[n]]).mkdir(parents=True, exist_ok=True)
        (folder / "abc"[LABELS[n]] / f"{n}.png").write_bytes(image)
    return folder


def make_rec(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with RecordIOWriter(folder / "train.rec") as writer:
        for n, image in enumerate(IMAGES):
            writer.write(n, LABELS[n], image)
    return folder


def line(n: int, label_first: bool) -> str:
    columns = [base64.b64encode(IMAGES[n]).decode(), str(LABELS[n])]
    return "\t".join(reversed(columns) if label_first else columns) + "\n"


def make_base64(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "part-0").write_text("".join(line(n, label_first=True) for n in range(4)))
    (folder / "part-1").write_text("\n" + "".join(line(n, label_first=False) for n in (4, 5)).rstrip("\n"))
    (folder / "file_list.txt").write_text("part-0\npart-1\n")
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def make_tar(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            add(tar, "LICENCE", b"a note that is no sample")
            for n in range(3 * shard, 3 * shard + 3):
                add(tar, f"a.b/{'ü' * 80}{n:06d}.png", IMAGES[n])
                if shard:
                    add(tar, f"a.b/{'ü' * 80}{n:06d}.json", json.dumps({"label": LABELS[n]}).encode())
                else:
                    add(tar, f"a.b/{'ü' * 80}{n:06d}.cls", b"%d\n" % LABELS[n])
    return folder


def make_csv(folder: Path) -> Path:
    make_list(folder)
    (folder / "label.txt").unlink()
    rows = "".join(f"x,images/{n}.png,{'abc'[label]}\n" for n, label in enumerate(LABELS))
    (folder / "train.csv").write_text("note,Path,identity\n" + rows)
    return folder


MAKERS = {"list of images": make_list, "class folders": make_folders, "RecordIO, plain layout, with index": make_rec,
          "base64 text, 2 part files, image first or label first": make_base64,
          "tar, WebDataset layout, 2 shards": make_tar, "table of image paths, CSV": make_csv}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_is_recognised_and_read_whole_in_any_order_from_a_pickle(kind, tmp_path, caplog):
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
        writer.write(0, 0, IMAGES[0])
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


@pytest.mark.parametrize("name, message", [
    ("nothing", "'.*nothing' does not exist; expected a folder"),
    ("lfw.bin", "a .bin is a verification set"),
    ("empty", "found no images in class folders"),
    ("synthetic:5", "expected 'synthetic:CLASSES:IMAGES'"),
    ("synthetic:0:5", "got 0 classes"),
    ("two", r"holds a.rec, b.rec; expected one of them to be train.rec"),
])
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
    text = (f"# a comment\n\n{tmp_path / 'a.png'}\t \t3\r\n  with blanks 7.png 0   # trailing\n名前.png 12\n"
            f"x#y.png 1\n./a.png\u30003")
    (tmp_path / "list.txt").write_text("\ufeff" + text, encoding="utf-8")
    records = ListRecords(tmp_path / "list.txt")
    assert records.labels.tolist() == [3, 0, 12, 1, 3]
    names = [record.image.decode() for record in records]
    assert names == ["a.png", "with blanks 7.png", "名前.png", "x#y.png", "a.png"]
    assert records.describe(2).endswith("list.txt, line 5)")
    assert records.num_classes == 13


@pytest.mark.parametrize("text, message", [
    ("a.png 0\nb.png\n", r"label.txt, line 2: got 'b.png', expected an image path and a label"),
    ("a.png -1\n", "line 1: got 'a.png -1'"),
    ("a.png 0.5\n", "line 1"),
    ("a.png 99999999999999999999\n", "line 1"),
    ("\n# only a comment\n", "the list is empty"),
    (b"\xff\xfe\x00", "not UTF-8 text"),
])
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
    packed = PackedStrings(strings)
    assert list(packed) == strings
    assert list(PackedStrings.from_arrays(packed.bytes, packed.ends)) == strings


# Base64


def test_columns_are_told_per_file(tmp_path):
    records = Base64Records(make_base64(tmp_path / "set"))
    assert records.label_first == [True, False]
    assert records.describe(4).endswith("part-1, line 2")
    assert len(open_records(tmp_path / "set" / "part-1")) == 2


@pytest.mark.parametrize("text, message", [
    ("", "the file is empty"),
    ("\n\n", "the file has no lines"),
    ("hello world\n", r"line 1: got b'hello world'..., expected 'base64-image<TAB>label'"),
    (line(0, True) + "0\n", "line 2: got b'0'"),
    (line(0, True) + line(1, False), "line 2: got b'iVBOR.*expected 'label<TAB>base64-image' as in the file's first"),
    (line(0, False) + "iVBORw0KGgo=\n", "line 2: got"),
    (line(0, False) + line(1, False).strip() + " " * 99 + "\n", "line 2: got"),
    (line(0, True) + " " * 300 + line(1, True), "line 2: got"),
    (line(0, False) + "iVBORw0KGgo=\t-3\n", "line 2: got"),
])
def test_malformed_base64_files_are_named_by_line(tmp_path, text, message):
    (tmp_path / "part").write_text(text)
    (tmp_path / "file_list.txt").write_text("part\n")
    with pytest.raises(DataError, match=message):
        Base64Records(tmp_path)


def test_base64_that_is_not_is_named_when_it_is_read(tmp_path):
    (tmp_path / "part").write_text(line(0, True) + "1\tnot*base64\n" + "1\tabc\n")
    records = Base64Records(tmp_path / "part")
    assert records[0] == (IMAGES[0], 0)
    for n in (1, 2):
        with pytest.raises(DataError, match=rf"part, line {n + 1}: the image column is no base64"):
            records[n]


def test_a_list_of_part_files_names_what_is_missing(tmp_path):
    make_base64(tmp_path / "set")
    (tmp_path / "set" / "file_list.txt").write_text("part-0\npart-7\n")
    with pytest.raises(DataError, match="file_list.txt, line 2: there is no part file .*part-7"):
        open_records(tmp_path / "set")
    (tmp_path / "set" / "file_list.txt").write_text("x" * 5000)
    with pytest.raises(DataError, match="there is no part file"):
        open_records(tmp_path / "set")
    (tmp_path / "set" / "file_list.txt").write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        open_records(tmp_path / "set")


# Tar shards


def test_shards_by_range_notation(tmp_path):
    make_tar(tmp_path / "set")
    assert len(open_records(tmp_path / "set" / "train-{000..001}.tar")) == 6
    assert expand_range("a-{08..11}") == ["a-08", "a-09", "a-10", "a-11"]
    with pytest.raises(DataError, match="train-002.tar: there is no such shard"):
        open_records(tmp_path / "set" / "train-{000..002}.tar")


@pytest.mark.parametrize("members, message", [
    ([("0.png", IMAGES[0])], r"sample '0' has no class \(.cls"),
    ([("0.cls", b"1")], r"sample '0' has no image"),
    ([("0.png", IMAGES[0]), ("1.png", IMAGES[1]), ("0.cls", b"1")], "sample '0' has no class"),
    ([("0.png", IMAGES[0]), ("0.jpg", IMAGES[0]), ("0.cls", b"1")], "two images, '0.png' and '0.jpg'"),
    ([("0.png", IMAGES[0]), ("0.cls", b"cat")], "'0.cls' holds b'cat', expected a class number"),
    ([("0.png", IMAGES[0]), ("0.json", b'{"label": "cat"}')], "sample '0' has no class"),
    ([], "the shards hold no samples"),
])
def test_samples_that_are_not_whole_are_named(tmp_path, members, message):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members:
            add(tar, name, data)
    with pytest.raises(DataError, match=message):
        TarRecords(tmp_path)


def test_damaged_shards_are_not_read_as_shorter_ones(tmp_path, caplog):
    path = tmp_path / "train-000.tar"
    with tarfile.open(path, "w") as tar:
        for n in range(3):
            add(tar, f"{n}.png", IMAGES[n])
            add(tar, f"{n}.cls", b"0")
    data = path.read_bytes()
    second = data.index(b"1.png")
    assert second % 512 == 0
    path.write_bytes(data[:second] + b"x" * 512 + data[second + 512 :])
    with pytest.raises(DataError, match=f"train-000.tar, offset {second}: found no tar header"):
        TarRecords(path)
    path.write_bytes(data[: data.index(b"2.png") + 520])
    with pytest.raises(DataError, match="damaged, cut off or no tar"):
        TarRecords(path)
    assert "may have been cut off" not in caplog.text
    path.write_bytes(data[: data.index(b"2.png")])
    assert len(TarRecords(path)) == 2
    assert "train-000.tar: the shard ends without the mark of an archive's end, so it may have been cut" in caplog.text
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match="unpack a .tar.gz first"):
        open_records(tmp_path / "b.tar.gz")


@given(flips=st.lists(st.tuples(st.integers(0, 10000), st.integers(0, 255)), min_size=1, max_size=6),
       cut=st.integers(0, 6000))
@fuzz
def test_fuzz_damaged_tar_and_base64(flips, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for path, reader in ((make_tar(folder / "tar") / "train-001.tar", TarRecords),
                         (make_base64(folder / "text") / "part-0", Base64Records)):
        data = bytearray(path.read_bytes())
        for position, value in flips:
            data[position % len(data)] = value
        path.write_bytes(data[: max(0, len(data) - cut)])
        with contextlib.suppress(PLSCError):
            records = reader(path)
            for n in range(len(records)):
                with contextlib.suppress(PLSCError):
                    assert len(records[n].image) < len(data)


# The index that is kept


@pytest.mark.parametrize("make", [make_tar, make_base64])
def test_a_saved_index_serves_until_the_file_changes(tmp_path, make, monkeypatch, caplog):
    folder = make(tmp_path / "set")
    before = list(open_records(folder))
    written = open_records(folder).save_index()
    assert [path.name.endswith(".index.npz") for path in written] == [True, True]
    used, load = [], offset_index._load
    monkeypatch.setattr(offset_index, "_load", lambda *args: used.append(load(*args)) or used[-1])
    assert list(open_records(folder)) == before
    assert [arrays is not None for arrays in used] == [True, True]
    path = Path(str(written[0])[: -len(".index.npz")])
    path.write_bytes(path.read_bytes() + bytes(512) if path.suffix == ".tar" else path.read_bytes() + b"\n")
    written[1].write_bytes(b"no index")
    assert list(open_records(folder)) == before
    assert used[2:] == [None, None]
    assert "the file has changed since" in caplog.text
    assert "the index cannot be used" in caplog.text


# Tables and arrays


@pytest.mark.parametrize("text, message", [
    ("", r"the columns are \[\], expected one of image, image_path"),
    ("image,label\n", "the table has no rows"),
    ("image,colour\na,b\n", r"the columns are \['image', 'colour'\], expected one of label, class"),
    ("image,label\na.png\n", r"line 2: got \['a.png'\], expected 2 fields"),
    ("image,label\n\na.png,\n", "line 3: got"),
    ('image,label\n"a.png,3\n', "no table in UTF-8 text"),
])
def test_malformed_tables_are_named_by_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_records(tmp_path / "t.csv")


def test_a_table_with_other_column_names_and_names_as_classes(tmp_path):
    (tmp_path / "t.tsv").write_text("bild\twer\na.png\tzoë\nb.png\tada\n", encoding="utf-8")
    records = CsvRecords(tmp_path / "t.tsv", "bild", "wer")
    assert (records.labels.tolist(), records.class_names) == ([1, 0], ["ada", "zoë"])


def test_parquet_as_bytes_as_struct_and_as_path(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = make_list(tmp_path / "set")
    for name, images in (("bytes", IMAGES), ("struct", [{"bytes": image, "path": None} for image in IMAGES]),
                         ("path", [f"images/{n}.png" for n in range(6)])):
        table = pyarrow.table({"image": images, "label": LABELS})
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=2)
        records = open_records(folder / f"{name}.parquet")
        copy = pickle.loads(pickle.dumps(records))
        assert [copy[n] for n in (5, 0, 3, 1, 2, 4)] == [(IMAGES[n], LABELS[n]) for n in (5, 0, 3, 1, 2, 4)]
        assert (records.num_classes, len(records)) == (3, 6)
    shards = tmp_path / "shards"
    shards.mkdir()
    for part in range(2):
        table = pyarrow.table({"image": IMAGES[3 * part : 3 * part + 3], "label": ["abc"[n] for n in LABELS][
            3 * part : 3 * part + 3]})
        parquet.write_table(table, shards / f"{part}.parquet", row_group_size=2)
    records = open_records(shards)
    assert [record.image for record in records] == IMAGES
    assert records.class_names == ["a", "b", "c"]
    assert records.describe(4).endswith("1.parquet, row 1")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="broken.parquet: cannot be read as Parquet"):
        open_records(tmp_path / "broken.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match=r"pip install 'plsc\[parquet\]'"):
        ParquetRecords(tmp_path / "a.parquet")


@pytest.mark.parametrize("images, labels, message", [
    (np.zeros((2, 4, 4), np.uint8), [0, 1], r"the images are \[2, 4, 4\] of uint8, expected \[n, H, W, 3\]"),
    (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "of float32, expected"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0], "2 images and 1 labels"),
    (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64), "0 images and 0 labels"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0.5, 1], "the labels are .* of float64, expected"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0, -1], "label 1 is -1, expected 0 or more"),
])
def test_arrays_of_another_shape_are_named(images, labels, message):
    with pytest.raises(DataError, match=message):
        ArrayRecords(images, np.asarray(labels))


def test_array_files_that_are_none_are_named(tmp_path):
    with pytest.raises(DataError, match="images.npy: cannot be read"):
        ArrayRecords.load(tmp_path)
    np.save(tmp_path / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="images.npy: no NumPy file of numbers"):
        ArrayRecords.load(tmp_path)
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    with pytest.raises(DataError, match=r"holds \['images'\], expected 'images' and 'labels'"):
        open_records(tmp_path / "a.npz")
