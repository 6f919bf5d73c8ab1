"""CSV, TSV and Parquet tables as training data."""

from __future__ import annotations

import pickle
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest

from plsc.data.sources import open_records
from plsc.data.sources.tables import CsvRecords, ParquetRecords
from plsc.errors import DataError, MissingDependencyError
from tests._support.sources import IMAGES, LABELS, make_list, make_table


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"the columns are \[\], expected one of image, image_path"),
        ("image,label\n", "the table has no rows"),
        ("image,color\na,b\n", r"the columns are \['image', 'color'\], expected one of label, class"),
        ("image,label\na.png\n", r"line 2: got \['a.png'\], expected 2 fields"),
        ("image,label\n\na.png,\n", "line 3: got"),
        ('image,label\n"a.png,3\n', "no table in UTF-8 text"),
        ("image,label\na\0.png,3\n", "t.csv, line 2"),
        ("image,label\na.png,3\nb.png,\0\n", "t.csv, line 3"),
        ("a.png,3\nb.png,4\n", "the first line names the columns, as image,label: add it"),
        ("image\tlabel\na.png\t3\n", "a .csv separates its fields by commas: name the file .tsv"),
        ("image;label\na.png;3\n", "separate its fields by commas"),
        ("image,label\n数.png,3\n", r"line 2: found .* not UTF-8 text; in GBK the line is '数.png,3'"),
    ],
)
def test_malformed_tables_are_named_by_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text.encode("gbk"))
    with pytest.raises(DataError, match=message):
        open_records(tmp_path / "t.csv")


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_line_ends_end_a_row(tmp_path, odd):
    for end in ("\n", "\r\n"):
        rows = ["\ufeffimage,label", f"a{odd}b.png,x{odd}y", "", "  ", "c.png,z"]
        (tmp_path / "t.csv").write_bytes(end.join(rows).encode())
        records = open_records(tmp_path / "t.csv")
        assert records.class_names == [f"x{odd}y", "z"] and records.path_of(0) == str(tmp_path / f"a{odd}b.png")
        assert records.describe(1).endswith("line 5)")


def test_hidden_files_beside_shards_are_no_shards(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": IMAGES[:3], "label": LABELS[:3]}), tmp_path / "0.parquet")
    (tmp_path / "._0.parquet").write_bytes(b"\0\5\x16\7")
    assert len(open_records(tmp_path)) == 3


def test_a_table_with_other_column_names_and_names_as_classes(tmp_path):
    (tmp_path / "t.tsv").write_text("bild\twer\na.png\tzoë\nb.png\tada\n", encoding="utf-8")
    records = CsvRecords(tmp_path / "t.tsv", image_column="bild", label_column="wer")
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
from plsc.data.sources import open_records
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
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        ParquetRecords(tmp_path / "a.parquet")


def test_a_folder_with_a_tsv(tmp_path):
    folder = make_list(tmp_path / "set")
    (folder / "label.txt").unlink()
    (folder / "x.tsv").write_text("image\tlabel\n" + "".join(f"images/{n}.png\t{LABELS[n]}\n" for n in range(6)))
    assert open_records(folder).labels.tolist() == list(LABELS)


@pytest.mark.parametrize(
    "labels, found",
    [
        (["0.0", "1.0", "10.0", "2.0"], [0, 1, 10, 2]),
        (["0", "-1"], None),
        (["0.5", "1"], None),
        (["nan", "1"], None),
        (["b", "-1"], [1, 0]),
    ],
)
def test_numbers_in_a_table_stay_numbers(tmp_path, labels, found):
    (tmp_path / "a.csv").write_text("image,label\n" + "".join(f"{n}.png,{text}\n" for n, text in enumerate(labels)))
    if found is None:
        with pytest.raises(DataError, match=r"a.csv, line \d\): label '.*' is no class; expected whole numbers"):
            open_records(tmp_path / "a.csv")
    else:
        assert open_records(tmp_path / "a.csv").labels.tolist() == found


@pytest.mark.parametrize(
    "names", [["1_23", "12_3", "1_2_3"], ["0002_01", "0020_1"], ["1" * 20, "2" * 20], ["1" * 16, "7"]]
)
def test_names_that_python_takes_for_numbers_stay_names(tmp_path, names):
    records = open_records(make_table(tmp_path / "a.csv", names))
    assert records.class_names == sorted(names)
    assert records.labels.tolist() == [sorted(names).index(name) for name in names]


@pytest.mark.parametrize(
    "labels, message",
    [
        (["01", "1"], "label '1' is the same number as '01'"),
        (["1e3", "1000"], "line 2.*label '1e3' is no class"),
        (["3", "-1"], "line 3.*label '-1' is no class"),
        (["1", "Infinity"], "no class"),
        (["٣", "1"], "no class"),
    ],
)
def test_numbers_that_are_written_in_another_way_are_refused(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        open_records(make_table(tmp_path / "a.csv", labels))


def test_numbers_padded_alike_or_with_a_fraction_of_zero_are_numbers(tmp_path):
    assert open_records(make_table(tmp_path / "a.csv", ["0003", "0010", "0003"])).labels.tolist() == [3, 10, 3]
    assert open_records(make_table(tmp_path / "b.csv", ["3", "3.0", "10."])).labels.tolist() == [3, 3, 10]


def test_labels_of_parquet_are_read_as_those_of_csv(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for labels in ([" 1", "2 ", "0"], [Decimal("1.0000000"), Decimal("2.0000000"), Decimal("0.0000000")]):
        parquet.write_table(arrow.table({"image": IMAGES[:3], "label": labels}), tmp_path / "a.parquet")
        assert open_records(tmp_path / "a.parquet").labels.tolist() == [1, 2, 0]
