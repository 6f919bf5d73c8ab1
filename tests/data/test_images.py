"""Images: decoding gives the pixels of OpenCV, whatever the file, damaged files included."""

from __future__ import annotations

import io
import random

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from plsc.data.images import (
    IMAGE_KINDS,
    IMAGE_STARTS,
    IMAGE_SUFFIXES,
    SERVED_FORMATS,
    decode,
    decode_jpeg,
    is_image_name,
    suffix_of,
)
from plsc.errors import DataError
from tests._support.images import encode_as

RNG = np.random.default_rng(0)


def noise(height: int = 33, width: int = 47) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8))


def jpeg(image: Image.Image, mode: str = "RGB", **options) -> bytes:
    encoded = io.BytesIO()
    image.convert(mode).save(encoded, "JPEG", **options)
    return encoded.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(noise(), exif=exif)


def by_opencv(image: bytes):
    try:
        return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None


# Sampling of colors 4:1:1 and 4:4:0 is nothing that Pillow writes.
WIDE_SAMPLING = [
    cv2.imencode(".jpg", np.asarray(noise()), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])[1].tobytes()
    for factor in (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440)
]


KINDS = [
    *(
        jpeg(noise(), mode, subsampling=sampling, progressive=progressive, restart_marker_blocks=blocks)
        for mode in ("RGB", "L")
        for sampling in (0, 1, 2)
        for progressive in (False, True)
        for blocks in (0, 2)
    ),
    jpeg(noise(), keep_rgb=True),
    *WIDE_SAMPLING,
]


@pytest.mark.parametrize("image", KINDS)
def test_pixels_are_those_of_opencv(image):
    assert np.array_equal(decode_jpeg(image), by_opencv(image))


@pytest.mark.parametrize("size", [(1, 2), (8, 16), (112, 112), (160, 160), (224, 224)])
def test_no_row_of_an_even_width_begins_where_it_would_be_written_past_the_caches(size):
    pixels = decode_jpeg(jpeg(noise(*size)))
    assert pixels.shape == (*size, 3) and pixels.flags.c_contiguous
    assert all(row.ctypes.data % 2 == 1 for row in pixels)


def test_images_do_not_share_memory():
    first, second = decode_jpeg(KINDS[0]), decode_jpeg(KINDS[0])
    second[:] = 0
    assert first.max() > 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_set_upright(orientation):
    image = turned(orientation)
    assert decode_jpeg(image) is None
    assert np.array_equal(decode(image), by_opencv(image))


def test_exif_data_behind_other_segments_are_found():
    image = turned(6)
    start = image.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(image[start + 2 : start + 4], "big")
    segment, rest = image[start:end], image[:start] + image[end:]
    comment = b"\xff\xfe\x00\x06\xff\xda\xff\xda"  # looks like the start of a scan
    later = rest[:2] + comment + b"\xff\xff" + segment[1:] + rest[2:]
    assert decode_jpeg(later) is None
    assert decode(later).shape == by_opencv(later).shape == (47, 33, 3)


def test_exif_data_behind_a_mark_without_length_are_found():
    image = turned(6)
    start = image.index(b"\xff\xe1")
    # Taken for the length of the mark before it, the segment's own mark would lead into what is no segment.
    marked = image[:2] + b"\xff\x01" + image[start:]
    assert decode_jpeg(marked) is None
    assert np.array_equal(decode(marked), by_opencv(marked))


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0",
        KINDS[0][:100],
        KINDS[0][: len(KINDS[0]) // 2],
        jpeg(noise(), "CMYK"),
        cv2.imencode(".png", np.asarray(noise()))[1].tobytes(),
        jpeg(noise(1024, 1025)),
    ],
)
def test_other_images_are_left_to_opencv(image):
    assert decode_jpeg(image) is None


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([*KINDS, turned(3)]), st.integers(0, 2**32), st.integers(1, 4))
def test_damaged_images_give_the_pixels_or_the_error_of_opencv(image, seed, changes):
    chance, image = random.Random(seed), bytearray(image)
    for _ in range(changes):
        at = chance.randrange(min(len(image), chance.choice((700, len(image)))))
        image[at : at + chance.choice((0, 1, 1, 9))] = chance.choice(
            (b"", b"\xff", b"\xff\xe1", b"\xff\xd9", b"\xff\x01", bytes([chance.randrange(256)]))
        )
    image = bytes(image)
    expected = by_opencv(image) if image else None
    if expected is None:
        with pytest.raises(DataError):
            decode(image)
    else:
        assert np.array_equal(decode(image), expected)


def test_a_truncated_jpeg_is_no_image():
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
    with pytest.raises(DataError, match="no image"):
        decode(whole[: len(whole) // 2])


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


@pytest.mark.parametrize("kind", IMAGE_KINDS, ids=lambda kind: kind.suffixes[0])
def test_a_file_of_each_kind_is_recognized_by_name_and_by_first_bytes_and_decoded(kind):
    image = encode_as(kind)
    assert suffix_of(image, "unknown") == kind.suffixes[0] and is_image_name(f"a.b{kind.suffixes[0].upper()}")
    assert decode(image).shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_each_suffix_is_of_the_kind_that_opencv_writes_under_it(suffix):
    if suffix in (".jfif", ".j2k"):
        pytest.skip("OpenCV writes these formats under another suffix only")
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
