"""PNGs without their compressed text."""

from __future__ import annotations

import zlib

import pytest

from plsc.data.png import without_text
from tests._support.odd_images import ODD, chunk

PNG = ODD["png"]
TEXTS = (
    chunk(b"zTXt", b"a\0\0" + zlib.compress(b"text")),
    chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"text")),
    chunk(b"zTXt", b"no such text"),
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_left_out_wherever_it_is(text):
    for at in (8, 33, len(PNG) - 12, len(PNG)):
        assert without_text(PNG[:at] + text + PNG[at:]) == PNG


def test_all_else_stays_and_a_truncated_file_stays_truncated():
    assert without_text(PNG) is PNG
    with_name = PNG[:33] + chunk(b"tEXt", b"a\0zTXt") + PNG[33:] + b"zTXt"
    assert without_text(with_name) == with_name
    for at in range(len(PNG) - 30, len(PNG)):
        assert without_text(PNG[:33] + TEXTS[0] + PNG[33:at]) == PNG[:at]
    for at in range(34, 33 + len(TEXTS[0])):
        assert PNG[:33] == without_text((PNG[:33] + TEXTS[0] + PNG[33:])[:at])[:33]
