"""JPEGs: decoding gives the pixels of OpenCV, damaged files included, and tells what libjpeg knows of the damage."""

from __future__ import annotations

import io
import random

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plsc.data.images import decode
from plsc.data.jpeg import decode_jpeg
from plsc.errors import DataError

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
    image, faults = turned(orientation), []
    assert np.array_equal(decode_jpeg(image, on_damage=faults.append), by_opencv(image)) and not faults
    assert by_opencv(image).shape == ((33, 47, 3) if orientation < 5 else (47, 33, 3))


def test_exif_data_behind_other_segments_are_found():
    image = turned(6)
    start = image.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(image[start + 2 : start + 4], "big")
    segment, rest = image[start:end], image[:start] + image[end:]
    comment = b"\xff\xfe\x00\x06\xff\xda\xff\xda"  # looks like the start of a scan
    later = rest[:2] + comment + b"\xff\xff" + segment[1:] + rest[2:]
    assert np.array_equal(decode_jpeg(later), by_opencv(later))
    assert by_opencv(later).shape == (47, 33, 3)


def test_exif_data_behind_a_mark_without_length_are_found():
    image = turned(6)
    start = image.index(b"\xff\xe1")
    # Taken for the length of the mark before it, the segment's own mark would lead into what is no segment.
    marked = image[:2] + b"\xff\x01" + image[start:]
    assert np.array_equal(decode_jpeg(marked), by_opencv(marked))
    assert by_opencv(marked).shape == (47, 33, 3)


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0",
        KINDS[0][:100],
        KINDS[0][: len(KINDS[0]) // 2],
    ],
)
def test_what_opencv_refuses_is_refused(image):
    assert decode_jpeg(image, on_damage=pytest.fail) is None


def with_sampling(image: bytes, sampling: int) -> bytes:
    """The image with another sampling of its first color in the header, for example 0x42."""
    frame = image.index(b"\xff\xc0")
    return image[: frame + 11] + bytes([sampling]) + image[frame + 12 :]


@pytest.mark.parametrize(
    "image",
    [
        *KINDS,
        jpeg(noise(), "CMYK"),
        jpeg(noise(1024, 1025)),
        with_sampling(jpeg(noise(16, 16), subsampling=0), 0x42),  # simplejpeg does not know 4:1:0
        jpeg(noise()) + b"anything behind the end",
    ],
)
def test_a_whole_image_has_no_damage(image, capfd):
    faults: list[str] = []
    pixels = decode_jpeg(image, on_damage=faults.append)
    assert np.array_equal(pixels, by_opencv(image))
    # Changing the sampling of a written image damages it.
    assert bool(faults) == bool(capfd.readouterr().err)


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


def photograph(rng: np.random.Generator, height: int = 48, width: int = 64) -> np.ndarray:
    return cv2.resize(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), (width, height))


def test_the_damage_of_an_image_whose_data_are_partly_zeros_is_told():
    whole = cv2.imencode(".jpg", photograph(np.random.default_rng(0)))[1].tobytes()
    faults: list[str] = []
    decode(whole[: len(whole) // 2] + bytes(30) + whole[len(whole) // 2 + 30 :], on_damage=faults.append)
    assert faults == ["Corrupt JPEG data: 99 extraneous bytes before marker 0xd9"]


def with_marker(image: bytes) -> bytes:
    """The image with a restart marker in the middle of its data."""
    middle = image.rindex(b"\xff\xda") // 2 + len(image) // 2
    return image[:middle] + b"\xff\xd3" + image[middle + 2 :]


@pytest.mark.parametrize(
    "image",
    [
        cv2.imencode(".jpg", photograph(np.random.default_rng(0)))[1].tobytes(),
        jpeg(noise(), progressive=True),
        jpeg(noise(), "CMYK"),
        turned(6),
        jpeg(noise(1024, 1025)),
    ],
    ids=["the usual", "progressive", "four colors", "turned by Exif data", "more than a megapixel"],
)
def test_libjpegs_word_on_a_damaged_image_comes_with_its_pixels_and_not_on_standard_error(image, capfd):
    damaged, faults = with_marker(image), []
    pixels = decode(damaged, on_damage=faults.append)
    assert len(faults) == 1 and faults[0].startswith("Corrupt JPEG data")
    assert np.array_equal(decode(damaged), pixels)
    assert capfd.readouterr() == ("", "")
    assert np.array_equal(pixels, by_opencv(damaged))
    assert "Corrupt JPEG data" in capfd.readouterr().err  # what OpenCV alone prints


def share_of_wrong_pixels(pixels: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(pixels.astype(int) - expected) > 8).any(axis=2).mean())


def test_of_images_with_eight_bytes_overwritten_all_are_told_that_libjpeg_knows(capfd):
    rng = np.random.default_rng(0)
    accepted = told = 0
    for _ in range(300):
        whole = cv2.imencode(".jpg", photograph(rng))[1].tobytes()
        image = bytearray(whole)
        for place in rng.integers(2, len(image), 8):
            image[place] = rng.integers(256)
        image, faults = bytes(image), []
        expected = by_opencv(image)
        is_known = bool(capfd.readouterr().err)
        if expected is None:
            continue
        assert np.array_equal(decode(image, on_damage=faults.append), expected)
        assert bool(faults) >= is_known
        is_wrong = expected.shape != (48, 64, 3) or share_of_wrong_pixels(expected, by_opencv(whole)) > 0.05
        accepted += is_wrong
        told += is_wrong and bool(faults)
    # 157 of 164. The others decode to a whole image of other pixels: a JPEG holds no checksum.
    assert accepted > 150 and told > 0.9 * accepted
    assert capfd.readouterr().err == ""
