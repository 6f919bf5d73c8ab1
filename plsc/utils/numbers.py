"""Numbers of any kind as those of Python."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

import numpy as np
import numpy.typing as npt


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


def as_count(value: Any) -> int | None:
    """A whole number of 1 or more, of Python, NumPy or Paddle, as an int; None for everything else.

    A number beyond what Python can count to becomes the largest that it can.
    """
    try:
        count = operator.index(value)
    except TypeError:
        return None
    return min(count, sys.maxsize) if count >= 1 and not isinstance(value, bool) else None


def as_array(value: Any) -> npt.NDArray[Any]:
    """A value of any kind as an array. What has no one shape, as a list of rows of two lengths, becomes an array of one
    object, for the caller's check of the type to refuse.
    """
    try:
        return np.asarray(value)
    except Exception:  # rows of two lengths are a ValueError; a tensor of a GPU may refuse in its own way
        found: npt.NDArray[Any] = np.empty((), object)
        found[()] = value
        return found
