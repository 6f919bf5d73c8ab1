"""JSON as every reader takes it. Python writes NaN and Infinity, which JSON does not have."""

from __future__ import annotations

import codecs
import json
import math
from typing import Any


def to_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """`value` as JSON text, with null for each number that is not finite.

    Args:
        value: what `json.dumps` takes.
        indent: blanks per level; by default one line.
        ensure_ascii: whether characters outside ASCII are escaped.

    Example:
        >>> to_json({"accuracy": float("nan")})
        '{"accuracy": null}'
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that an encoding lacks: their escapes in JSON, which `backslashreplace` has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


# Name of this rule for the argument `errors` of streams.
JSON_ESCAPES = "plsc_json_escapes"
codecs.register_error(JSON_ESCAPES, _escape)
