"""Data that are easily taken for something else: told, or read as they are meant, and never mixed up in silence."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from decimal import Decimal
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from plsc.data.alignment import TEMPLATE, read_landmarks
from plsc.data.convert.inspection import inspect, plot
from plsc.data.recordio import RecordIOWriter
from plsc.data.records import DatasetRecords, read_image
from plsc.data.sources import open_records
from plsc.errors import DataError
from tests._support.sources import IMAGES, LABELS, add, line, make_folders, make_list, make_rec, run


def table(path, labels):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *((f"{n}.png", label) for n, label in enumerate(labels))])
    return path


@pytest.mark.parametrize(
    "names", [["1_23", "12_3", "1_2_3"], ["0002_01", "0020_1"], ["1" * 20, "2" * 20], ["1" * 16, "7"]]
)
def test_names_that_python_takes_for_numbers_stay_names(tmp_path, names):
    records = open_records(table(tmp_path / "a.csv", names))
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
        open_records(table(tmp_path / "a.csv", labels))


def test_numbers_padded_alike_or_with_a_fraction_of_zero_are_numbers(tmp_path):
    assert open_records(table(tmp_path / "a.csv", ["0003", "0010", "0003"])).labels.tolist() == [3, 10, 3]
    assert open_records(table(tmp_path / "b.csv", ["3", "3.0", "10."])).labels.tolist() == [3, 3, 10]


def test_labels_of_parquet_are_read_as_those_of_csv(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for labels in ([" 1", "2 ", "0"], [Decimal("1.0000000"), Decimal("2.0000000"), Decimal("0.0000000")]):
        parquet.write_table(arrow.table({"image": IMAGES[:3], "label": labels}), tmp_path / "a.parquet")
        assert open_records(tmp_path / "a.parquet").labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize("shape", [(2, 2, 5), (5, 2, 2), (2, 10), (1, 5, 2)])
def test_landmarks_of_another_shape_are_refused(tmp_path, shape):
    np.save(tmp_path / "marks.npy", np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=r"expected \[2, 5, 2\]"):
        read_landmarks(tmp_path / "marks.npy", 2)


@pytest.mark.parametrize(
    "text", ["{marks} 0.998", "{marks} 3", "7 {marks}", "a.jpg {marks} 1", "1 2 3", "a b c d e f g h i j"]
)
def test_a_line_of_landmarks_with_other_numbers_is_refused(tmp_path, text):
    marks = " ".join(map(str, TEMPLATE.reshape(-1)))
    (tmp_path / "marks.txt").write_text(text.format(marks=marks) + "\n")
    with pytest.raises(DataError, match="line 1.*expected ten numbers"):
        read_landmarks(tmp_path / "marks.txt", 1)


def test_landmarks_that_are_no_face_and_several_arrays_are_told_of(tmp_path, caplog):
    np.save(tmp_path / "faces.npy", np.stack([TEMPLATE, TEMPLATE]))
    read_landmarks(tmp_path / "faces.npy", 2)
    assert not caplog.records
    (tmp_path / "marks.txt").write_text(" ".join(map(str, TEMPLATE.T.reshape(-1))) + "\n")  # x1 ... x5 y1 ... y5
    read_landmarks(tmp_path / "marks.txt", 1)
    assert "in 1 of the 1 images looked at the points lie as in no face" in caplog.text
    np.savez(tmp_path / "marks.npz", TEMPLATE)
    (tmp_path / "marks.npz").rename(tmp_path / "marks.npy")
    with pytest.raises(DataError, match="found several arrays"):
        read_landmarks(tmp_path / "marks.npy", 1)


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


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_links_that_lead_back_up_bring_no_image_twice(tmp_path, target):
    root = make_folders(tmp_path / "deep" / "set")
    (root / "a" / "all").symlink_to(target)
    records = open_records(root)
    assert (len(records), records.class_names, records.labels.tolist()) == (6, ["a", "b", "c"], LABELS)


def test_a_link_to_the_set_itself_is_no_class(tmp_path):
    root = make_folders(tmp_path / "set")
    (root / "again").symlink_to(root)
    assert open_records(root).class_names == ["a", "b", "c"]


def test_what_other_programs_leave_behind_is_neither_class_nor_image(tmp_path, caplog):
    root = make_folders(tmp_path / "set")
    for path in (".ipynb_checkpoints/0.png", "a/.ipynb_checkpoints/0.png", "__MACOSX/a/0.png", "a/._0.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(IMAGES[0])
    records = open_records(root)
    assert (len(records), records.class_names) == (6, ["a", "b", "c"])
    assert f"passed over 4 files and folders that other programs left behind, {root / '.ipynb_che'}" in caplog.text


def test_class_folders_beside_a_file_that_is_read_are_told_of(tmp_path, caplog):
    table(make_folders(tmp_path / "set") / "notes.csv", ["0"])
    assert len(open_records(tmp_path / "set")) == 1
    assert "folders of images, " in caplog.text
    caplog.clear()
    listed = make_folders(tmp_path / "listed")
    for first in ("a/0.png", "./a/0.png", listed / "a" / "0.png", "../listed/a/0.png"):
        (listed / "label.txt").write_text(f"{first} 0\nb/2.png 1\n")
        open_records(listed)
    assert "folders of images" not in caplog.text


def test_a_folder_that_cannot_be_listed_can_still_hold_a_list(tmp_path, monkeypatch):
    source = make_list(tmp_path / "set")

    def shut(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", shut)
    assert len(open_records(source)) == 6


def make_face_set(folder, stated, images=6):
    folder.mkdir()
    with RecordIOWriter(folder / "train.rec") as writer:
        writer.write(0, [stated, stated + 3], image=b"")
        for n in range(images):
            writer.write(n + 1, LABELS[n], image=IMAGES[n])
        for n in range(3):
            writer.write(images + 1 + n, [1 + 2 * n, 3 + 2 * n], image=b"")
    return folder


@pytest.mark.parametrize(
    "stated, message",
    [
        (5, "keys 1 to 4 are the images, but key 5 is an image"),
        (8, "keys 1 to 7 are the images, but key 7 is no image"),
    ],
)
def test_a_face_set_with_another_number_of_images_than_its_header_says(tmp_path, stated, message):
    with pytest.raises(DataError, match=message):
        open_records(make_face_set(tmp_path / "set", stated))
    assert len(open_records(make_face_set(tmp_path / "whole", 7))) == 6


def test_a_rec_cut_between_two_records_is_damaged_by_its_index(tmp_path):
    folder = make_rec(tmp_path / "set")
    offsets = [int(text.split()[1]) for text in (folder / "train.idx").read_text().splitlines()]
    os.truncate(folder / "train.rec", offsets[4])
    records = open_records(folder, recover=True)
    assert len(records) == 4
    assert "names 6 records, of which 2 were not found" in records.damage
    (folder / "train.idx").unlink()
    assert open_records(folder, recover=True).damage is None


def test_a_second_archive_behind_a_tars_end_is_told_of(tmp_path):
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            add(tar, f"{name}.png", IMAGES[0])
            add(tar, f"{name}.cls", b"0")
    (tmp_path / "all.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    with pytest.raises(DataError, match="more comes after its end; were several joined by cat"):
        open_records(tmp_path / "all.tar")


def test_a_preview_in_a_tar_is_no_second_image(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for suffix, data in (("png", IMAGES[0]), ("gif", b"GIF89a"), ("cls", b"3")):
            add(tar, f"a.{suffix}", data)
    assert open_records(tmp_path / "a.tar")[0] == (IMAGES[0], 3)


@pytest.mark.parametrize("fields", [{"label": "3"}, {"label": 3.0}, {"label": None, "cls": 3}, {"cls": 3}])
def test_classes_of_tar_as_json_has_them(tmp_path, fields):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.png", IMAGES[0])
        add(tar, "a.json", json.dumps(fields).encode())
    assert open_records(tmp_path / "a.tar").labels.tolist() == [3]


@pytest.mark.parametrize("name", ["part.tsv", "part.csv"])
def test_base64_parts_are_known_whatever_their_suffix(tmp_path, name):
    (tmp_path / name).write_text(line(0, label_first=False) + line(2, label_first=False))
    assert open_records(tmp_path / name).labels.tolist() == [0, 1]


def test_a_base64_line_is_read_by_the_columns_it_has(tmp_path):
    first = line(0, label_first=True)
    image = first.split()[1]
    (tmp_path / "part").write_text(f"{first}0\x0b{image}\t\n0\t{image}\t{image}\n")
    records = open_records(tmp_path / "part")
    assert [records[n].image for n in (0, 1)] == [IMAGES[0]] * 2
    with pytest.raises(DataError, match="line 3: got 3 columns, expected a label and an image"):
        records[2]


def test_a_list_without_labels_is_no_list_of_parts(tmp_path):
    (tmp_path / "1.jpg").write_bytes(IMAGES[0])
    (tmp_path / "both.txt").write_text("1.jpg\n")
    with pytest.raises(DataError, match="line 1: got '1.jpg', expected an image path and a label"):
        open_records(tmp_path / "both.txt")


def test_labels_too_large_for_any_class_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array([0, 2**63], np.uint64))
    with pytest.raises(DataError, match="label 1 is 9223372036854775808, expected 0 or more"):
        open_records(tmp_path / "a.npz")


def test_damaged_tars_and_tables_end_in_errors_of_ours(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "n" * 200 + ".png", IMAGES[0])
        add(tar, "n" * 200 + ".cls", b"0")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[124:136] = b"\x80" + (1 << 70).to_bytes(11, "big")  # the size of the long name
    checksum = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    data[148:156] = b"%06o\0 " % checksum
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match="damaged, cut off or no tar"):
        open_records(tmp_path / "a.tar")


def test_marks_of_byte_order_are_passed_over(tmp_path):
    folder = make_rec(tmp_path / "set")
    (folder / "train.idx").write_text((folder / "train.idx").read_text(), encoding="utf-8-sig")
    (folder / "property").write_text("3,4,5", encoding="utf-8-sig")
    assert (len(open_records(folder)), open_records(folder).num_classes) == (6, 3)
    (tmp_path / "part").write_text(line(0, label_first=False))
    (tmp_path / "file_list.txt").write_text("part\n", encoding="utf-8-sig")
    assert len(open_records(tmp_path / "file_list.txt")) == 1


def test_inspect_says_once_what_is_wrong_and_what_kind_images_are(tmp_path):
    result = run("inspect", tmp_path / "nosuch.rec")
    assert "nosuch.rec' does not exist" in str(result.exception) and not result.output
    source = make_list(tmp_path / "set")
    (source / "images" / "0.png").write_bytes(cv2.imencode(".ras", np.full((8, 8, 3), 9, np.uint8))[1].tobytes())
    (source / "images" / "1.png").write_bytes(b"P6 1 1 255\n\1\2\3")
    assert inspect(open_records(source)).encodings == {"other": 1, "ppm": 1, "png": 4}


def test_pictures_that_cannot_be_written_are_an_error_of_ours(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    records = open_records(make_list(tmp_path / "set"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="cannot be written to"):
        plot(records, tmp_path / "p")
    monkeypatch.undo()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(DataError, match="the pictures cannot be written: No space left"):
        plot(records, tmp_path / "p")


def test_a_file_that_may_not_be_read_is_said_to_be_so(tmp_path, monkeypatch):
    def shut(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", shut)
    with pytest.raises(DataError, match="label.txt cannot be read: Permission denied"):
        open_records(tmp_path / "shut" / "label.txt")


def test_a_list_of_synthetic_numbers_is_held_to_ascii():
    for name in ("synthetic:5:²", "synthetic:5:" + "9" * 5000):
        with pytest.raises(DataError, match="expected 'synthetic:CLASSES:IMAGES'"):
            open_records(name)


def test_large_files_are_read_whole(tmp_path):
    data = os.urandom(300_001)
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_image(tmp_path / "a.jpg") == data
