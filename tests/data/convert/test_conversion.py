"""Conversion: every sample arrives, in any format, also when the work is interrupted."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest

from plsc.data.convert.conversion import convert, convert_split
from plsc.data.convert.inspection import inspect
from plsc.data.convert.preprocessing import Preprocessing
from plsc.data.images import IMAGE_KINDS, decode
from plsc.data.sources import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.errors import ConfigError, DataError
from tests._support import sources
from tests._support.conversion import FORMATS, LABELS, Images, content, files_of
from tests._support.images import damaged_jpeg, encode_as
from tests._support.sources import IMAGES, make_folders, make_list, run


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("encoding", [".png", ".jpg"])
def test_every_sample_arrives_in_every_format(to, encoding, tmp_path):
    source = Images(encoding)
    done = convert(source, tmp_path / "new", to=to, parts=3 if to in ("base64", "tar") else 1)
    assert (done.images, done.skipped) == (23, 0)
    records = open_records(tmp_path / "new")
    assert content(records) == content(source)
    assert records.num_classes == 5
    if to != "folders":
        assert records.labels.tolist() == LABELS.tolist()
    if to not in ("folders", "npy"):
        assert [records[n].image for n in range(23)] == source.images
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_any_format_becomes_any_other(source, to, tmp_path):
    convert(Images(class_names=list("abcde")), tmp_path / "one", to=source)
    convert(open_records(tmp_path / "one"), tmp_path / "other", to=to)
    found = open_records(tmp_path / "other")
    assert content(found) == content(Images())
    assert found.class_names == list("abcde")


@pytest.mark.parametrize("to", FORMATS)
def test_every_kind_of_image_comes_back_from_every_format(to, tmp_path):
    images = {}
    for kind in IMAGE_KINDS:
        with contextlib.suppress(pytest.skip.Exception):  # this OpenCV may not write every kind
            images[kind.suffixes[0]] = encode_as(kind)
    assert len(images) >= 10
    for number, (suffix, image) in enumerate(images.items()):
        (tmp_path / "set" / f"{number:02d}").mkdir(parents=True)
        (tmp_path / "set" / f"{number:02d}" / f"x{suffix.upper()}").write_bytes(image)
    source = open_records(tmp_path / "set")
    convert(source, tmp_path / "there", to=to)
    there = open_records(tmp_path / "there")
    convert(there, tmp_path / "back", to="folders")
    back = open_records(tmp_path / "back")
    for found in (there, back):
        assert found.labels.tolist() == list(range(len(images)))
        if to == "npy":
            assert all((decode(found[n].image) == decode(source[n].image)).all() for n in range(len(source)))
        else:
            assert [record.image for record in found] == list(images.values())
            kinds = {suffix[1:]: 1 for suffix in images}
            assert inspect(found).encodings == kinds and inspect(found).num_damaged == 0


def test_classes_named_as_parts_or_leftovers_become_numbered_folders(tmp_path):
    for names in (
        ["dev", "eval", "test", "train", "val"],
        [".a", "b", "c", "d", "e"],
        ["#recycle", "b", "c", "d", "e"],
    ):
        target = tmp_path / names[0]
        convert(Images(class_names=names), target, to="folders")
        assert open_records(target).class_names == names and content(open_records(target)) == content(Images())


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("stop_at", [2, 5, 9, 22])
def test_an_interrupted_conversion_goes_on_and_ends_the_same(to, stop_at, tmp_path):
    options = {"to": to, "every": 5, "parts": 4 if to in ("base64", "tar") else 1}
    convert(Images(), tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        convert(Images(stop_at=stop_at), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
    read = []
    source = Images()
    source.__class__ = type(
        "Watched", (Images,), {"__getitem__": lambda self, index: read.append(index) or Images.__getitem__(self, index)}
    )
    convert(source, tmp_path / "new", **options)
    assert min(read) == stop_at // 5 * 5
    assert files_of(tmp_path / "new") == files_of(tmp_path / "whole")


def test_images_that_cannot_be_read_stop_or_are_left_out_and_counted(tmp_path, caplog):
    source = Images(broken={3: b"no image", 7: b""})
    with pytest.raises(DataError, match=r"image 3: 8 bytes that are no.*; done so far: 3 images, in .*new.partial"):
        convert(source, tmp_path / "new", to="rec", preprocessing=Preprocessing(image_size=4))
    # As the message advises: the same again, but for the flag.
    done = convert(source, tmp_path / "new", to="rec", preprocessing=Preprocessing(image_size=4), skip_bad_images=True)
    assert (done.images, done.skipped) == (21, 2)
    assert "left out: image 7: the image is empty" in caplog.text
    assert len(open_records(tmp_path / "new")) == 21
    done = convert(source, tmp_path / "as they are", to="rec", skip_bad_images=True)
    assert (done.images, done.skipped) == (21, 2)
    with pytest.raises(DataError, match="image 7: the image is empty"):
        convert(Images(broken={7: b""}), tmp_path / "third", to="list")
    with pytest.raises(DataError, match="image 3: 8 bytes that are no image"):
        convert(source, tmp_path / "fourth", to="base64")
    with pytest.raises(DataError, match="of 23 images none could be read"):
        convert(Images(broken=dict.fromkeys(range(23), b"")), tmp_path / "fifth", to="rec", skip_bad_images=True)


def test_a_target_within_class_folders_is_refused(tmp_path):
    root = make_folders(tmp_path / "set")
    for command in (("convert",), ("split", "--held-out", "1"), ("shuffle",)):
        result = run(command[0], root, root / "out", *command[1:])
        assert isinstance(result.exception, DataError) and "lies within the class folders" in str(result.exception)
    assert sorted(path.name for path in root.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a\x85b", "a\u2028b", "a\x0bb"])
def test_names_with_odd_breaks_are_kept(tmp_path, name):
    records = open_records(make_list(tmp_path / "set"))
    records.class_names = [name, "b", "c"]
    convert(records, tmp_path / "out", to="rec")
    assert open_records(tmp_path / "out").class_names == [name, "b", "c"]
    records.class_names = ["a\rb", "b", "c"]
    with pytest.raises(DataError, match="holds a line break"):
        convert(records, tmp_path / "again", to="rec")


def test_what_a_conversion_cannot_do_is_refused_first(tmp_path):
    for options, message in (
        ({"to": "zip"}, "format 'zip' is unknown, expected one of rec, list"),
        ({"to": "tar", "parts": 24}, "got 24 parts, expected 1 to 23"),
        ({"to": "rec", "parts": 2}, "format 'rec' has no parts"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(Images(), tmp_path / "new", **options)


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
    lines[0] = lines[0].rsplit(" ", 1)[0] + f" {max(sources.LABELS) - sources.LABELS[0]}"
    (folder / "label.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="another conversion was begun there .it differs in labels"):
        convert_split(open_records(folder), tmp_path / "out", to="list", held_out=1)


def test_a_class_name_that_is_no_text_is_refused_before_the_work(tmp_path):
    for name in (b"caf\xe9", b"tea"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"set", name))
        with open(os.path.join(os.fsencode(tmp_path), b"set", name, b"a.png"), "wb") as file:
            file.write(IMAGES[0])
    with pytest.raises(DataError, match="is not UTF-8, so classes.txt cannot hold it"):
        convert(open_records(tmp_path / "set"), tmp_path / "out", to="rec")
    assert not (tmp_path / "out.partial").exists()


def test_a_split_that_cannot_be_leaves_no_folder(tmp_path):
    records = ArrayRecords(np.zeros([6, 4, 4, 3], np.uint8), np.arange(6) // 2)
    with pytest.raises(DataError, match="held_out=7"):
        convert_split(records, tmp_path / "new", to="rec", held_out=7)
    assert not list(tmp_path.iterdir())


def test_damaged_images_are_written_with_a_warning_and_counted_and_refused_where_images_are_strict(tmp_path, caplog):
    source = Images(broken={3: damaged_jpeg(), 7: damaged_jpeg(seed=1)})
    for preprocessing in (None, Preprocessing(image_size=4)):
        caplog.clear()
        done = convert(source, tmp_path / f"new {preprocessing}", to="rec", preprocessing=preprocessing)
        assert (done.images, done.skipped, done.damaged) == (23, 0, 2)
        assert [line[:16] for line in caplog.messages if "Corrupt JPEG data" in line] == [
            "image 3: damaged",
            "image 7: damaged",
        ]
    with pytest.raises(DataError, match="image 3: the image is damaged.*Corrupt JPEG data.*fix the image"):
        convert(source, tmp_path / "strict", to="rec", strict_images=True)
    done = convert(source, tmp_path / "strict", to="rec", strict_images=True, skip_bad_images=True)
    assert (done.images, done.skipped, done.damaged) == (21, 2, 0)


def test_a_continued_conversion_goes_on_counting_damaged_images(tmp_path):
    source = Images(broken={3: damaged_jpeg(), 7: b"no image", 9: damaged_jpeg()})
    with pytest.raises(DataError, match="image 7"):
        convert(source, tmp_path / "new", to="rec")
    assert convert(source, tmp_path / "new", to="rec", skip_bad_images=True).damaged == 2
