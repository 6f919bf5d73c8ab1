"""The size that a file states is that of the pixels which its decoder gives."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data.image_size import stated_size
from plsc.data.images import decode, kind_of
from plsc.errors import DataError
from tests._support.odd_images import ODD, mutate_head


def check(image):
    kind = kind_of(image)
    try:
        pixels = decode(image)
    except DataError:
        return
    assert kind is not None and kind.served
    size = stated_size(image, kind.name)
    assert size is not None and sorted(size) == sorted(pixels.shape[:2]), image[:60]


@pytest.mark.parametrize("image", ODD.values(), ids=ODD)
def test_of_unusual_files(image):
    check(image)


@settings(max_examples=400)
@given(st.integers(0, 2**32), st.sampled_from([name for name, image in ODD.items() if len(image) < 50_000]))
def test_of_changed_files(seed, name):
    check(mutate_head(ODD[name], random.Random(seed)))


@pytest.mark.parametrize(
    "image, kind",
    [
        (b"", "PPM"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"BM", "BMP"),
        (b"RIFF\0\0\0\0WAVE", "WEBP"),
        (b"P6\n64", "PPM"),
        (b"P6\nx 4", "PPM"),
        (b"\xff\xd8", "JPEG"),
        (b"\xff\xd8\xff\xc0\0", "JPEG"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 20_000, "JPEG"),
    ],
)
def test_a_header_that_is_not_whole_states_none(image, kind):
    assert stated_size(image, kind) is None
