"""Preprocessing: images are aligned, resized and encoded anew only where asked."""

from __future__ import annotations

import numpy as np
import pytest

from plsc.data.alignment import TEMPLATE, align
from plsc.data.convert.conversion import convert
from plsc.data.convert.preprocessing import Preprocessing
from plsc.data.images import decode
from plsc.data.sources import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.errors import ConfigError, DataError
from tests._support.conversion import LABELS, PIXELS, Images, content


def test_pixels_are_kept_without_loss_unless_drawn_anew(tmp_path):
    convert(ArrayRecords(PIXELS, LABELS), tmp_path / "rec", to="rec")
    assert content(open_records(tmp_path / "rec")) == content(Images())
    assert (tmp_path / "rec" / "property").read_text() == "5,6,7"
    convert(Images(), tmp_path / "jpg", to="list", preprocessing=Preprocessing(image_size=12, quality=90))
    image = open_records(tmp_path / "jpg")[3].image
    assert image.startswith(b"\xff\xd8")
    assert decode(image).shape == (12, 12, 3)
    convert(Images(".jpg"), tmp_path / "png", to="rec", preprocessing=Preprocessing(encoding="png"))
    assert content(open_records(tmp_path / "png")) == content(Images(".jpg"))


def test_aligned_images_are_those_of_align(tmp_path):
    marks = np.stack([TEMPLATE / 16 + shift / 10 for shift in range(23)]).astype(np.float32)
    convert(Images(), tmp_path / "new", to="npy", preprocessing=Preprocessing(landmarks=marks))
    records = open_records(tmp_path / "new")
    assert records[0].image.shape == (112, 112, 3)
    assert np.array_equal(records[4].image, align(PIXELS[4], marks[4]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"encoding": "gif"}, "encoding: got 'gif', expected 'jpg' or 'png'"),
        ({"quality": 0}, "quality: got 0, expected 1 to 100"),
        ({"quality": 101}, "quality: got 101, expected 1 to 100"),
        ({"image_size": 0}, "image_size: got 0, expected 1 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**arguments)


def test_an_image_too_wide_for_jpeg_is_named():
    with pytest.raises(DataError, match="70000 x 1 pixels cannot be written as JPEG"):
        Preprocessing(encoding="jpg").encode(np.zeros((1, 70000, 3), np.uint8))
