"""Images from clients: decoded, or an error of status 4xx."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests._support.images import damaged_jpeg
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


@pytest.mark.parametrize("image", [progressive(200), progressive(0, 200)])
def test_a_jpeg_of_many_segments_is_refused_before_it_is_read(image):
    assert decode_images([progressive(0, 3)], card(False), max_pixels=10_000).shape == (1, *SHAPE)
    with pytest.raises(HTTPError, match="a JPEG of more than 100 scans or EXIF segments"):
        decode_images([image], card(False), max_pixels=10_000)


def test_a_damaged_image_is_decoded_and_counted(caplog, capfd):
    faults: list[str] = []
    decode_images([damaged_jpeg(), make_image(0)], card(False), max_pixels=10_000, on_damage=faults.append)
    assert len(faults) == 1 and not caplog.messages and capfd.readouterr() == ("", "")
