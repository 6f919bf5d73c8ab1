"""Conversion: every sample arrives, in any format, also when the work is interrupted."""

from __future__ import annotations

import fcntl
import importlib.util
import json

import cv2
import numpy as np
import pytest

from plsc.data.alignment import TEMPLATE, align
from plsc.data.convert.conversion import Redraw, convert
from plsc.data.convert.inspection import inspect, plot
from plsc.data.convert.writers import SINKS
from plsc.data.images import decode
from plsc.data.records import Record, Records
from plsc.data.sources import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.errors import ConfigError, DataError

FORMATS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "parquet" and not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed"
        ),
    )
    for name in SINKS
]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (23, 6, 7, 3), np.uint8)
LABELS = np.append(np.arange(22) % 5, 4)


class Images(Records):
    """Encoded images in memory; those of `broken` cannot be read, and one may end the process's work."""

    format = "images"

    def __init__(self, encoding: str = ".png", class_names=None, broken=(), stop_at=None) -> None:
        self.images = [cv2.imencode(encoding, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes() for image in PIXELS]
        self.labels, self.num_classes, self.class_names = LABELS, 5, class_names
        self.broken, self.stop_at = broken, stop_at

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        if index in self.broken:
            return Record(self.broken[index], int(self.labels[index]))
        return Record(self.images[index], int(self.labels[index]))

    def describe(self, index):
        return f"image {index}"


def content(records) -> list:
    """Pixels and labels, in an order that class folders do not change."""
    return sorted((decode(records[n].image).tobytes(), records[n].label) for n in range(len(records)))


def files_of(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("encoding", [".png", ".jpg"])
def test_every_sample_arrives_in_every_format(to, encoding, tmp_path):
    source = Images(encoding)
    done = convert(source, tmp_path / "new", to, parts=3 if to in ("base64", "tar") else 1)
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
    convert(Images(class_names=list("abcde")), tmp_path / "one", source)
    convert(open_records(tmp_path / "one"), tmp_path / "other", to)
    found = open_records(tmp_path / "other")
    assert content(found) == content(Images())
    assert found.class_names == list("abcde")


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


def test_class_names_make_the_folders_and_are_kept_beside(tmp_path):
    names = ["ada", "bo", "cy", "dee", "zoë"]
    convert(Images(class_names=names), tmp_path / "new", "folders")
    assert open_records(tmp_path / "new").class_names == names
    assert (tmp_path / "new" / "classes.txt").read_text(encoding="utf-8").split() == names
    convert(Images(class_names=["b", "a", "c/d", "..", "e"]), tmp_path / "odd", "folders")
    assert sorted(path.name for path in (tmp_path / "odd").iterdir() if path.is_dir()) == list("01234")
    assert open_records(tmp_path / "odd").class_names == ["b", "a", "c/d", "..", "e"]
    assert content(open_records(tmp_path / "odd")) == content(Images())


def test_pixels_are_kept_without_loss_unless_drawn_anew(tmp_path):
    convert(ArrayRecords(PIXELS, LABELS), tmp_path / "rec", "rec")
    assert content(open_records(tmp_path / "rec")) == content(Images())
    assert (tmp_path / "rec" / "property").read_text() == "5,6,7"
    convert(Images(), tmp_path / "jpg", "list", Redraw(image_size=12, quality=90))
    image = open_records(tmp_path / "jpg")[3].image
    assert image.startswith(b"\xff\xd8")
    assert decode(image).shape == (12, 12, 3)
    convert(Images(".jpg"), tmp_path / "png", "rec", Redraw(encoding="png"))
    assert content(open_records(tmp_path / "png")) == content(Images(".jpg"))


def test_aligned_images_are_those_of_align(tmp_path):
    marks = np.stack([TEMPLATE / 16 + shift / 10 for shift in range(23)]).astype(np.float32)
    convert(Images(), tmp_path / "new", "npy", Redraw(landmarks=marks))
    records = open_records(tmp_path / "new")
    assert records[0].image.shape == (112, 112, 3)
    assert np.array_equal(records[4].image, align(PIXELS[4], marks[4]))


def test_images_that_cannot_be_read_stop_or_are_left_out_and_counted(tmp_path, caplog):
    source = Images(broken={3: b"no image", 7: b""})
    with pytest.raises(DataError, match=r"image 3: 8 bytes that are no image.*; 3 images are done, in .*new.partial"):
        convert(source, tmp_path / "new", "rec", Redraw(image_size=4))
    # As the message advises: the same again, but for the flag.
    done = convert(source, tmp_path / "new", "rec", Redraw(image_size=4), skip_bad_images=True)
    assert (done.images, done.skipped) == (21, 2)
    assert "left out: image 7: the image is empty" in caplog.text
    assert len(open_records(tmp_path / "new")) == 21
    done = convert(source, tmp_path / "as they are", "rec", skip_bad_images=True)
    assert (done.images, done.skipped) == (21, 2)
    with pytest.raises(DataError, match="image 7: the image is empty"):
        convert(Images(broken={7: b""}), tmp_path / "third", "list")
    with pytest.raises(DataError, match="image 3: 8 bytes that are no image"):
        convert(source, tmp_path / "fourth", "base64")
    with pytest.raises(DataError, match="none of the 23 images could be read"):
        convert(Images(broken=dict.fromkeys(range(23), b"")), tmp_path / "fifth", "rec", skip_bad_images=True)


def test_nothing_is_overwritten_and_no_two_write_at_once(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="there exists already; nothing is overwritten"):
        convert(Images(), tmp_path / "there", "rec")
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="new.partial is not empty and no conversion"):
        convert(Images(), tmp_path / "new", "rec")
    assert (tmp_path / "new.partial" / "mine.txt").read_text() == "x"
    (tmp_path / "busy.partial").mkdir()
    with open(tmp_path / "busy.partial" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is converting there now"):
            convert(Images(), tmp_path / "busy", "rec")
    (tmp_path / "odd.partial").mkdir()
    (tmp_path / "odd.partial" / ".progress.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="progress.json cannot be read"):
        convert(Images(), tmp_path / "odd", "rec")


def test_what_a_format_cannot_hold_is_refused_first(tmp_path):
    source = Images()
    source.num_classes = 7
    with pytest.raises(DataError, match="2 of 7 classes have no image, and class folders cannot hold them"):
        convert(source, tmp_path / "new", "folders")
    mixed = ArrayRecords(PIXELS, LABELS)
    mixed.__class__ = type(
        "Mixed", (ArrayRecords,), {"__getitem__": lambda self, n: Record(PIXELS[n][: 6 - n % 2], int(LABELS[n]))}
    )
    with pytest.raises(DataError, match=r"the image is \[5, 7, 3\], the first was \[6, 7, 3\]"):
        convert(mixed, tmp_path / "new", "npy")
    for options, message in (
        ({"to": "zip"}, "format 'zip' is unknown, expected one of rec, list"),
        ({"to": "tar", "parts": 24}, "got 24 parts, expected 1 to 23"),
        ({"to": "rec", "parts": 2}, "format 'rec' has no parts"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(Images(), tmp_path / "new", **options)
    with pytest.raises(ConfigError, match="encoding: got 'gif'"):
        Redraw(encoding="gif")


# Inspection


def test_an_inspection_counts_and_names_what_is_damaged():
    source = Images(broken={3: b"no image", 7: b""})
    source.num_classes = 6
    found = inspect(source)
    assert (found.images, found.classes, found.empty_classes, found.num_damaged) == (23, 6, 1, 2)
    assert found.images_per_class == (4, 5.0, 4.6, 5)
    assert found.encodings == {"png": 21}
    assert found.sizes == [(7, 6, 21)]
    assert found.damaged[1] == "image 7: the image is empty (0 bytes)"
    assert "classes           6, 1 of them without an image" in str(found)
    assert inspect(source, limit=5).looked_at == 5


def test_an_inspection_tells_labels_beyond_the_stated_classes():
    source = Images()
    source.num_classes = 4
    found = inspect(source)
    assert found.damage == "5 labels are beyond the 4 classes that the set states, the first 4 at image 4"
    assert found.empty_classes == 0


def test_plots_are_saved_and_overwrite_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    paths = plot(Images(broken={3: b""}), tmp_path / "set")
    assert [cv2.imread(str(path)) is not None for path in paths] == [True, True]
    with pytest.raises(DataError, match="set-classes.png exists already"):
        plot(Images(), tmp_path / "set")
