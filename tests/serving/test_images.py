"""Images from clients: decoded, or an error of status 4xx."""

from __future__ import annotations

import random
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.errors import DataError
from tests._support.images import damaged_jpeg
from tests._support.odd_images import ODD, chunk, mutate_head
from tests._support.servers import make_image
from tests._support.serving_fuzz import QUICK, SHAPE, card, mutate, only_4xx, seeds

pytest.importorskip("orjson", reason="orjson is not installed")

from plsc.serving.http_error import HTTPError
from plsc.serving.images import decode_images


@QUICK
@given(seeds, st.sampled_from([".png", ".jpg", ".bmp", ".webp"]), st.binary(max_size=100))
def test_images(seed, suffix, noise):
    rng = random.Random(seed)
    for image in (mutate(make_image(seed % 5, 9, suffix), rng), noise):
        found = only_4xx(decode_images, [image], card(False), max_pixels=1000)
        assert found is None or found.shape == (1, *SHAPE)


def progressive(scans, segments=0):
    """A JPEG header with so many scans and EXIF segments; what decodes or reads them all takes minutes."""
    whole = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    first = whole.index(b"\xff\xda")
    scan = whole[first : whole.index(b"\xff", first + 2)]
    return whole[:2] + b"\xff\xe1\x00\x08Exif\0\0" * segments + whole[2:-2] + scan * scans + whole[-2:]


@pytest.mark.parametrize(
    "image, message",
    [(progressive(200), "a JPEG of more than 100 scans"), (progressive(0, 20_000), "a header that is whole")],
    ids=["scans", "segments"],
)
def test_a_jpeg_of_many_segments_is_refused_before_it_is_read(image, message):
    assert decode_images([progressive(0, 3)], card(False), max_pixels=10_000).shape == (1, *SHAPE)
    with pytest.raises(HTTPError, match=message):
        decode_images([image], card(False), max_pixels=10_000)


@pytest.mark.parametrize("name, image", ODD.items(), ids=ODD)
def test_whatever_the_library_takes_whole_is_served_with_the_same_pixels(name, image):
    faults: list[str] = []
    expected = card(False).prepare(image, on_damage=faults.append)
    assert not faults
    assert (decode_images([image], card(False), max_pixels=10_000)[0] == expected).all()


@QUICK
@given(seeds, st.sampled_from(sorted(ODD)))
def test_of_changed_files_too(seed, name):
    image, faults = mutate_head(ODD[name], random.Random(seed)), list[str]()
    try:
        expected = card(False).prepare(image, on_damage=faults.append)
    except DataError:
        return
    try:
        found = decode_images([image], card(False), max_pixels=1 << 28)
    except HTTPError as error:
        assert faults or error.status == 413 or "scans" in error.reason, error.reason
    else:
        assert (found[0] == expected).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_named_so_by_what_its_decoder_refuses(suffix):
    whole = make_image(0, 64, suffix)
    for cut in (whole[:-1], whole[:-200], whole[: len(whole) // 2]):
        with pytest.raises(HTTPError, match=f"image 0: no image: a truncated (PNG|JPEG) of {len(cut)} bytes"):
            decode_images([cut], card(False), max_pixels=10_000)


def test_text_that_unpacks_to_gigabytes_costs_nothing():
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(7_900_000), 9))
    begin = time.monotonic()
    decode_images([ODD["png"][:33] + text * 300 + ODD["png"][33:]], card(False), max_pixels=10_000)
    assert time.monotonic() - begin < 5  # unpacked, it takes half a minute


def test_a_damaged_image_is_decoded_and_counted(caplog, capfd):
    faults: list[str] = []
    decode_images([damaged_jpeg(), make_image(0)], card(False), max_pixels=10_000, on_damage=faults.append)
    assert len(faults) == 1 and not caplog.messages and capfd.readouterr() == ("", "")
