"""Warnings of damaged images: each image once, a bounded number of lines."""

from __future__ import annotations

import pytest

from plsc.data.damage import DamageLog, refuse
from plsc.errors import DataError


def test_an_image_is_warned_of_once_and_the_number_of_lines_is_bounded(caplog):
    damaged = DamageLog(lambda index: f"line {index}")
    for _ in range(2):
        for index in range(50):
            damaged.warn(index, "Corrupt JPEG data")
        damaged.summarize()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "line 0: damaged, a part of its pixels may be wrong: Corrupt JPEG data"
    assert len(lines) == 22 and "more images are damaged" in lines[20] and lines[21].startswith("50 damaged images")
    assert damaged.count == 50


def test_without_damage_nothing_is_logged(caplog):
    DamageLog().summarize()
    assert not caplog.records


def test_refusal_is_an_error_with_the_words_of_the_decoder():
    with pytest.raises(DataError, match="the image is damaged.*: Corrupt JPEG data"):
        refuse("Corrupt JPEG data")
