"""Images: the table of kinds, and what decoding says of bytes that are no image."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from plsc.data.images import (
    BASE64_STARTS,
    IMAGE_KINDS,
    IMAGE_SUFFIXES,
    SERVED_FORMATS,
    TAR_SUFFIXES,
    decode,
    is_image_name,
    suffix_of,
)
from plsc.errors import DataError

RNG = np.random.default_rng(0)


def noise(height: int = 33, width: int = 47) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    "image, message",
    [
        (b"", r"the image is empty \(0 bytes\)"),
        (b"GIF89a nothing", "14 bytes that are no image known to OpenCV"),
        (np.zeros((4, 4), np.uint8), r"got an array \[4, 4\] of uint8, expected \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float64), "of float64, expected"),
        (np.zeros((0, 4, 3), np.uint8), r"got an array \[0, 4, 3\]"),
    ],
)
def test_bytes_that_are_no_image_are_named(image, message):
    with pytest.raises(DataError, match=message):
        decode(image)


def test_colors_come_out_in_rgb_order_from_any_encoding():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes blue, green, red
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        pixels = decode(cv2.imencode(suffix, red)[1].tobytes())
        assert pixels[..., 0].min() > 250
        assert pixels[..., 1:].max() < 5


@pytest.mark.parametrize("kind", [kind for kind in IMAGE_KINDS if kind.name != "JPEG2000"], ids=lambda kind: kind.name)
def test_a_file_of_each_kind_is_recognized_by_name_and_by_first_bytes_and_decoded(kind):
    encoded, suffix = io.BytesIO(), kind.suffixes[0]
    noise().convert("L" if suffix == ".pgm" else "RGB").save(encoded, kind.name)
    assert suffix_of(encoded.getvalue(), "unknown") == suffix and is_image_name(f"a.b{suffix.upper()}")
    assert decode(encoded.getvalue()).shape == (33, 47, 3)


def test_each_use_takes_the_kinds_that_it_took_before_there_was_one_table():
    assert SERVED_FORMATS == ("JPEG", "PNG", "BMP", "WEBP", "PPM")
    assert TAR_SUFFIXES == (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
    assert set(IMAGE_SUFFIXES) == {*TAR_SUFFIXES, ".gif", ".jp2", ".pgm", ".ppm"}
    assert b"P6" not in BASE64_STARTS and b"GIF8" in BASE64_STARTS
    assert suffix_of(b"no image") == ".jpg" and not is_image_name("notes.txt")
