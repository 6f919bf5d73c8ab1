"""No sample is lost, invented, renamed or relabeled in silence, whatever users' files are like."""

from __future__ import annotations

import base64
import logging
import os
import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image

from plsc.data.convert.conversion import convert, convert_split
from plsc.data.convert.inspection import plot
from plsc.data.convert.preprocessing import Preprocessing
from plsc.data.loader import ReaderLoader
from plsc.data.pairs import make_verification_set
from plsc.data.records import DatasetRecords, open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.data.subset import SelectedRecords, split_identities, without_classes_of
from plsc.data.transforms import decode
from plsc.errors import DataError
from tests._support.sources import IMAGES, LABELS, add, make_list


def test_identities_numbered_with_zeros_are_known_again(tmp_path):
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


@pytest.mark.parametrize(
    "line, path, label",
    [
        ("images/1.png 1 # duplicate of 70", "images/1.png", 1),
        ("a 7 b.png 3", "a 7 b.png", 3),
        ("a b.png\t12  #", "a b.png", 12),
        ("#1/a#2.png 4", None, None),
        ("x/a#2.png 4", "x/a#2.png", 4),
    ],
)
def test_comments_of_a_list_are_no_part_of_it(tmp_path, line, path, label):
    (tmp_path / "label.txt").write_text(f"first.png 0\n{line}\n")
    records = open_records(tmp_path / "label.txt")
    if path is None:
        assert len(records) == 1
    else:
        assert (records.labels[1], records._paths[1]) == (label, path)


def pack(path, files, links=()):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            add(tar, name, data)
        for name, kind in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, files[0][0]
            tar.addfile(member)


def test_tar_samples_with_dots_in_their_names(tmp_path):
    names = ["0", "img.001", "img.002", "v1.0/a.b"]
    pack(
        tmp_path / "a.tar",
        [
            file
            for number, name in enumerate(names)
            for file in (
                (f"{name}.png", IMAGES[number]),
                (f"{name}.cls", str(number).encode()),
                (f"{name}.seg.txt", b""),
            )
        ],
    )
    records = open_records(tmp_path / "a.tar")
    assert [(record.image, record.label) for record in records] == [(IMAGES[n], n) for n in range(4)]


def test_further_files_of_a_tar_sample_are_no_samples(tmp_path):
    pack(tmp_path / "a.tar", [("x.cls", b"3"), ("x.jpg", IMAGES[0]), ("x.seg.png", IMAGES[1]), ("x.depth.png", b"")])
    assert list(open_records(tmp_path / "a.tar")) == [(IMAGES[0], 3)]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_tar_shards_are_refused(tmp_path, kind):
    pack(tmp_path / "a.tar", [("0.png", IMAGES[0]), ("0.cls", b"0")], [("1.png", kind)])
    with pytest.raises(DataError, match="1.png is a link; pack the files themselves"):
        open_records(tmp_path / "a.tar")


def test_two_classes_of_one_tar_sample_are_refused(tmp_path):
    pack(tmp_path / "a.tar", [("0.png", IMAGES[0]), ("0.cls", b"0"), ("0.cls", b"1")])
    with pytest.raises(DataError, match="sample '0' has two classes"):
        open_records(tmp_path / "a.tar")


def test_class_folders_through_links_and_what_lies_outside(tmp_path, caplog):
    real, root = tmp_path / "elsewhere", tmp_path / "set"
    for folder in (real, root / "a", root / "b" / "deep", root / "empty"):
        folder.mkdir(parents=True)
    for number, folder in enumerate((real, root / "a", root / "b" / "deep", root)):
        (folder / f"{number}.PNG").write_bytes(IMAGES[number])
    (root / "a" / "linked").symlink_to(real)
    (root / "b" / "up").symlink_to(root / "b")
    (root / "c").symlink_to(real)
    with caplog.at_level(logging.WARNING, "plsc"):
        records = open_records(root)
    assert records.class_names == ["a", "b", "c"] and records.labels.tolist() == [0, 0, 1, 2]
    assert "1 images that lie in no class folder, 3.PNG the first" in caplog.text
    assert "1 folders hold no image and are no classes: ['empty']" in caplog.text


def test_a_class_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def scandir(folder):
        if str(folder).endswith("a"):
            raise PermissionError(13, "Permission denied")  # as nobody's rights are to root
        return scan(folder)

    scan = os.scandir
    monkeypatch.setattr("plsc.data.sources.folders.os.scandir", scandir)
    with pytest.raises(DataError, match="a: the folder cannot be read: Permission denied"):
        open_records(tmp_path)


def test_a_folder_with_a_tsv(tmp_path):
    folder = make_list(tmp_path / "set")
    (folder / "label.txt").unlink()
    (folder / "x.tsv").write_text("image\tlabel\n" + "".join(f"images/{n}.png\t{LABELS[n]}\n" for n in range(6)))
    assert open_records(folder).labels.tolist() == list(LABELS)


@pytest.mark.parametrize("label", [[0, 0, 1], 1.7, np.float32("nan"), "b", ["1", "2"], None])
def test_a_label_that_is_no_number_is_refused(label):
    with pytest.raises(DataError, match="expected a class of 0 or more: label .* is no whole number"):
        DatasetRecords([(IMAGES[0], label)])[0]
    loader = ReaderLoader(lambda: iter([[(np.zeros((3, 8, 8), np.float32), label)]]), (3, 8, 8), 5)
    with pytest.raises(DataError, match="train_reader, batch 0"):
        list(loader.epoch(0))


def test_a_label_may_be_a_text_or_a_float_that_is_whole():
    assert [DatasetRecords([(IMAGES[0], label)])[0].label for label in ("5", 5.0, [5], np.int8(5))] == [5] * 4


def test_images_with_channels_last_are_not_scrambled():
    loader = ReaderLoader(lambda: iter([[(np.zeros((8, 8, 3), np.float32), 0)]]), (3, 8, 8), 5)
    with pytest.raises(DataError, match=r"expected a list of \(image \[3, 8, 8\].*got an image \[8, 8, 3\]"):
        list(loader.epoch(0))
    flat = ReaderLoader(lambda: iter([[(np.arange(192.0), [1])]]), (3, 8, 8), 5)
    assert next(flat.epoch(0)).images.reshape(-1).tolist() == list(range(192))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pillow_images_of_any_mode(mode):
    image = Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).convert(mode)
    assert DatasetRecords([(image, 2)])[0].image.tolist() == np.full((4, 4, 3), 255).tolist()


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


def test_a_third_column_of_base64_is_no_label(tmp_path):
    text = base64.b64encode(IMAGES[0]).decode()
    for wrong in (f"{text}\t1\t99", f"{text} 1 99"):
        (tmp_path / "part").write_text(f"{text}\t1\n{wrong}\n")
        with pytest.raises(DataError, match="line 2: got .* expected 'base64-image<TAB>label'"):
            open_records(tmp_path / "part")


def test_a_split_does_not_go_on_with_other_labels(tmp_path):
    folder = make_list(tmp_path / "set")
    (tmp_path / "out.partial" / "held_out").mkdir(parents=True)
    with pytest.raises(DataError, match="no conversion that could go on"):
        convert_split(open_records(folder), tmp_path / "out", to="list", held_out=1)
    (tmp_path / "out.partial" / "held_out").rmdir()
    broken = open_records(folder)
    bad = folder / "images" / "5.png"
    kept = bad.read_bytes()
    bad.write_bytes(b"")
    with pytest.raises(DataError, match="the image is empty"):
        convert_split(broken, tmp_path / "out", to="list", held_out=1)
    bad.write_bytes(kept)
    lines = (folder / "label.txt").read_text().splitlines()
    lines[0] = lines[0].rsplit(" ", 1)[0] + f" {max(LABELS) - LABELS[0]}"
    (folder / "label.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="another conversion was begun there .it differs in labels"):
        convert_split(open_records(folder), tmp_path / "out", to="list", held_out=1)


def test_pairs_hold_no_image_that_cannot_be_decoded(tmp_path):
    folder = make_list(tmp_path / "set")
    for number in range(6):
        (folder / "images" / f"{number}.png").write_bytes(IMAGES[number][:40] if number == 3 else IMAGES[number])
    with pytest.raises(DataError, match="3.png .*label.txt, line 4.: 40 bytes that are no image"):
        for seed in range(20):
            make_verification_set(open_records(folder), 4, 1, seed)


def test_another_array_file_is_not_taken_for_images_npy(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 4, 4, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(2))
    np.save(tmp_path / "val_images.npy", np.ones((2, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="val_images.npy: expected images.npy"):
        open_records(tmp_path / "val_images.npy")
    assert len(open_records(tmp_path / "labels.npy")) == 2


def test_damaged_array_files_give_own_errors(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((3, 4, 4, 3), np.uint8), labels=np.arange(3))
    whole, rng = (tmp_path / "a.npz").read_bytes(), np.random.default_rng(0)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match="one.npz: holds one array"):
        ArrayRecords.load(tmp_path / "one.npz")
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        (tmp_path / "c.npz").write_bytes(damaged)
        try:
            ArrayRecords.load(tmp_path / "c.npz")
        except DataError:
            refused += 1
    assert refused > 20


def test_names_of_classes_survive_marks_and_odd_letters(tmp_path):
    folder = make_list(tmp_path / "set")
    (folder / "classes.txt").write_bytes("\ufeffb\r\nx\u2028y\r\nc\r\n".encode())
    assert open_records(folder).class_names == ["b", "x\u2028y", "c"]


def test_a_class_name_that_is_no_text_is_refused_before_the_work(tmp_path):
    for name in (b"caf\xe9", b"tea"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"set", name))
        with open(os.path.join(os.fsencode(tmp_path), b"set", name, b"a.png"), "wb") as file:
            file.write(IMAGES[0])
    with pytest.raises(DataError, match="is not UTF-8, so classes.txt cannot hold it"):
        convert(open_records(tmp_path / "set"), tmp_path / "out", to="rec")
    assert not (tmp_path / "out.partial").exists()


def test_an_image_too_wide_for_jpeg_is_named():
    with pytest.raises(DataError, match="70000 x 1 pixels cannot be written as JPEG"):
        Preprocessing(encoding="jpg").encode(np.zeros((1, 70000, 3), np.uint8))


def test_a_truncated_jpeg_is_no_image():
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
    with pytest.raises(DataError, match="no image"):
        decode(whole[: len(whole) // 2])


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b"\n", b"\xef\xbb\xbf\n  \n"])
def test_base64_behind_a_mark_or_a_blank_line(tmp_path, head):
    (tmp_path / "part").write_bytes(head + b"".join(base64.b64encode(image) + b"\t7\n" for image in IMAGES[:2]))
    records = open_records(tmp_path / "part")
    assert [(record.image, record.label) for record in records] == [(image, 7) for image in IMAGES[:2]]


@pytest.mark.parametrize("held_out", [1.5, float("inf"), float("nan"), -1, 0])
def test_a_share_that_is_none_is_refused(tmp_path, held_out):
    with pytest.raises(DataError, match="held_out="):
        split_identities(open_records(make_list(tmp_path / "set")), held_out)


def test_a_plot_into_no_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        plot(open_records(make_list(tmp_path / "set")), tmp_path / "none" / "p")


def test_sets_that_have_no_class_in_common_are_told_of(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    named = ArrayRecords(np.zeros([6, 4, 4, 3], np.uint8), np.arange(6) // 2)
    named.class_names, other = ["ann", "bob", "cid"], ArrayRecords(np.zeros([2, 4, 4, 3], np.uint8), np.arange(2))
    other.class_names = ["ann", "dan"]
    assert len(without_classes_of(named, other)) == 4
    assert "1 of 3 classes occur in the other set and are left out" in caplog.text
    other.class_names = ["eve", "dan"]
    caplog.clear()
    assert len(without_classes_of(named, other)) == 6
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "0 of 3 classes occur in the other set" in record.getMessage()


def test_a_split_that_cannot_be_leaves_no_folder(tmp_path):
    records = ArrayRecords(np.zeros([6, 4, 4, 3], np.uint8), np.arange(6) // 2)
    with pytest.raises(DataError, match="held_out=7"):
        convert_split(records, tmp_path / "new", to="rec", held_out=7)
    assert not list(tmp_path.iterdir())
