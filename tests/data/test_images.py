"""Images: the table of kinds, and what decoding says of bytes that are no image."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, features

from plsc.data.images import (
    IMAGE_KINDS,
    IMAGE_STARTS,
    IMAGE_SUFFIXES,
    SERVED_FORMATS,
    decode,
    is_image_name,
    suffix_of,
)
from plsc.errors import DataError
from tests._support.images import encode_as

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


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_file_that_was_cut_short_is_told_from_one_that_is_damaged(suffix):
    encoded = cv2.imencode(suffix, np.asarray(noise()))[1].tobytes()
    with pytest.raises(DataError, match=r"^no image: a truncated (JPEG|PNG) of 40 bytes, whose end is missing$"):
        decode(encoded[:40])
    with pytest.raises(DataError, match=r"or a damaged one \(they begin with [^)]*\)$"):
        decode(encoded[:40] + encoded[-40:])


def test_an_image_of_more_pixels_than_opencv_decodes_is_named_as_that():
    encoded = bytearray(cv2.imencode(".png", np.asarray(noise()))[1].tobytes())
    encoded[16:24] = (50_000).to_bytes(4, "big") + (40_000).to_bytes(4, "big")
    with pytest.raises(DataError, match="^50000 x 40000 pixels, more than OpenCV decodes"):
        decode(bytes(encoded))


def test_colors_come_out_in_rgb_order_from_any_encoding():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes blue, green, red
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        pixels = decode(cv2.imencode(suffix, red)[1].tobytes())
        assert pixels[..., 0].min() > 250
        assert pixels[..., 1:].max() < 5


@pytest.mark.parametrize("kind", IMAGE_KINDS, ids=lambda kind: kind.suffixes[0])
def test_a_file_of_each_kind_is_recognized_by_name_and_by_first_bytes_and_decoded(kind):
    image = encode_as(kind)
    assert suffix_of(image, "unknown") == kind.suffixes[0] and is_image_name(f"a.b{kind.suffixes[0].upper()}")
    assert decode(image).shape == (40, 60, 3)


# OpenCV writes the formats of these two under another suffix only.
@pytest.mark.parametrize("suffix", [suffix for suffix in IMAGE_SUFFIXES if suffix not in (".jfif", ".j2k")])
def test_each_suffix_is_of_the_kind_that_opencv_writes_under_it(suffix):
    gray = suffix in (".pgm", ".pbm")
    try:
        done, encoded = cv2.imencode(suffix, np.full((40, 60) if gray else (40, 60, 3), 255, np.uint8))
    except cv2.error:
        done = False
    if not done:
        pytest.skip(f"this OpenCV writes no {suffix}")
    kind = next(kind for kind in IMAGE_KINDS if suffix in kind.suffixes)
    assert encoded.tobytes().startswith(kind.starts)


@pytest.mark.parametrize("magic", ["P1", "P2", "P3", "P4", "P5", "P6"])
@pytest.mark.parametrize("blank", ["\n", " ", "\t"])
def test_every_portable_map_is_recognized(magic, blank):
    data = b"1 0 0 1 0 1 1 0 1 0 0 1 " if magic in ("P1", "P2", "P3") else bytes(12)
    most = "" if magic in ("P1", "P4") else "255\n"
    image = f"{magic}{blank}2 2\n{most}".encode() + data
    assert decode(image).shape == (2, 2, 3)
    assert suffix_of(image, "unknown") == {"1": ".pbm", "2": ".pgm", "3": ".ppm"}[str((int(magic[1]) - 1) % 3 + 1)]


def test_big_tiff_and_a_bare_code_stream_of_jpeg_2000_are_recognized():
    pixels = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    tiff = io.BytesIO()
    pixels.save(tiff, "TIFF", big_tiff=True)
    assert suffix_of(tiff.getvalue(), "unknown") == ".tif" and decode(tiff.getvalue()).shape == (40, 60, 3)
    if features.check("jpg_2000"):
        stream = io.BytesIO()
        pixels.save(stream, "JPEG2000", no_jp2=True)
        assert suffix_of(stream.getvalue(), "unknown") == ".jp2" and decode(stream.getvalue()).shape == (40, 60, 3)


def test_the_table_serves_every_place_and_the_server_decodes_fewer_kinds():
    assert SERVED_FORMATS == ("JPEG", "PNG", "BMP", "WEBP", "PPM")
    assert {".jpe", ".dib", ".gif", ".jp2", ".pgm", ".ppm", ".pbm"} < set(IMAGE_SUFFIXES)
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES) and len(set(IMAGE_STARTS)) == len(IMAGE_STARTS)
    assert suffix_of(b"no image") == ".jpg" and not is_image_name("notes.txt")
