"""bfloat16 in NumPy, which has no such type: the upper half of a float32, as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_HALF = np.uint32(16)
_ROWS = 128  # worked on at a time, in the cache


def widen(bits: NDArray[np.uint16], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The numbers of these bits, exactly; in `out`, where that is given."""
    target: NDArray[np.float32] = np.empty(bits.shape, np.float32) if out is None else out
    whole = target.view(np.uint32)
    for start in range(0, len(bits), _ROWS):
        piece = whole[start : start + _ROWS]
        np.copyto(piece, bits[start : start + _ROWS])
        np.left_shift(piece, _HALF, out=piece)  # apart, which takes half the time of a shift that converts
    return target


def narrow(numbers: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each number, the even one at ties. NaN stays NaN."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    found: NDArray[np.uint16] = (np.where(np.isnan(numbers), bits | np.uint32(0x400000), rounded) >> 16).astype(
        np.uint16
    )
    return found
