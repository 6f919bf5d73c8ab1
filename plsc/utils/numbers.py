"""Numbers of any kind as Python floats."""

from __future__ import annotations

import math
from typing import Any


def as_number(value: Any) -> float:
    """A number of any kind, or an array or a tensor of one element, as a float; NaN for everything else.

    Numbers are those of Python, NumPy and Paddle, `Fraction` and `Decimal`. True, text, bytes and complex numbers are
    none.
    """
    try:
        if hasattr(value, "item"):  # waits for the device where it is a tensor there
            value = value.item()
        # float() also parses text and bytes, and counts True as 1.
        return math.nan if isinstance(value, (bool, str, bytes, bytearray)) else float(value)
    except Exception:  # an object of any kind may refuse in its own way
        return math.nan
