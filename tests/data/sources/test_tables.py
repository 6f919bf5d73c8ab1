"""Tables and arrays as training data; each malformed kind by its message."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from plsc.data.records import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.data.sources.tables import CsvRecords, ParquetRecords
from plsc.errors import DataError, MissingDependencyError
from tests._support.sources import IMAGES, LABELS, make_list


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"the columns are \[\], expected one of image, image_path"),
        ("image,label\n", "the table has no rows"),
        ("image,color\na,b\n", r"the columns are \['image', 'color'\], expected one of label, class"),
        ("image,label\na.png\n", r"line 2: got \['a.png'\], expected 2 fields"),
        ("image,label\n\na.png,\n", "line 3: got"),
        ('image,label\n"a.png,3\n', "no table in UTF-8 text"),
    ],
)
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
    for name, images in (
        ("bytes", IMAGES),
        ("struct", [{"bytes": image, "path": None} for image in IMAGES]),
        ("path", [f"images/{n}.png" for n in range(6)]),
    ):
        table = pyarrow.table({"image": images, "label": LABELS})
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=2)
        records = open_records(folder / f"{name}.parquet")
        copy = pickle.loads(pickle.dumps(records))
        assert [copy[n] for n in (5, 0, 3, 1, 2, 4)] == [(IMAGES[n], LABELS[n]) for n in (5, 0, 3, 1, 2, 4)]
        assert (records.num_classes, len(records)) == (3, 6)
    shards = tmp_path / "shards"
    shards.mkdir()
    for part in range(2):
        table = pyarrow.table(
            {"image": IMAGES[3 * part : 3 * part + 3], "label": ["abc"[n] for n in LABELS][3 * part : 3 * part + 3]}
        )
        parquet.write_table(table, shards / f"{part}.parquet", row_group_size=2)
    records = open_records(shards)
    assert [record.image for record in records] == IMAGES
    assert records.class_names == ["a", "b", "c"]
    assert records.describe(4).endswith("1.parquet, row 1")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="broken.parquet: cannot be read as Parquet"):
        open_records(tmp_path / "broken.parquet")


def test_threads_share_a_parquet_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    count = 400
    table = pyarrow.table({"image": [bytes([n % 256]) * 500 for n in range(count)], "label": list(range(count))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    records = open_records(tmp_path / "a.parquet")
    order = np.random.default_rng(0).permutation(count).tolist()
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
from plsc.data.records import open_records
from plsc.utils.threads import thread_map
records = open_records({str(tmp_path / "a.parquet")!r})
print([label for _, label in thread_map(records.__getitem__, {order}, threads=8)])
""",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stdout.strip() == str(order), found.stderr[-2000:]
    assert [records[n].image for n in order[:9]] == [bytes([n % 256]) * 500 for n in order[:9]]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match=r"pip install 'plsc\[parquet\]'"):
        ParquetRecords(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros((2, 4, 4), np.uint8), [0, 1], r"the images are \[2, 4, 4\] of uint8, expected \[n, H, W, 3\]"),
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "of float32, expected"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], "2 images and 1 labels"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64), "0 images and 0 labels"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.5, 1], "the labels are .* of float64, expected"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, -1], "label 1 is -1, expected 0 or more"),
    ],
)
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
