"""JSON without NaN and Infinity."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from plsc.utils.json_text import JSON_ESCAPES, to_json


def test_numbers_that_are_not_finite_are_null_at_any_depth():
    value = {"a": math.nan, "b": [1.5, (-math.inf, {"c": np.float64("inf")})], "d": "NaN", "e": None, "f": True, "g": 3}
    read = json.loads(to_json(value), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN", "e": None, "f": True, "g": 3}
    assert to_json({"a": 1}, indent=1) == '{\n "a": 1\n}'
    assert to_json("ü") == '"\\u00fc"' and to_json("ü", ensure_ascii=False) == '"ü"'


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_characters_that_an_encoding_lacks_are_escaped_as_json_has_it(encoding):
    text = "a é 中 \U0001f600 \udcd5\udcd5"  # the last is a name of bytes that are no UTF-8
    written = to_json(text, ensure_ascii=False).encode(encoding, JSON_ESCAPES)
    assert json.loads(written.decode(encoding)) == text
