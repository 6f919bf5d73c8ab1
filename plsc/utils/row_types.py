"""The types in which rows of numbers are kept in few bytes, in NumPy.

bfloat16, which NumPy has no type for, is the upper half of a float32, as uint16. A row in int8 is D integers from -127
to 127, 0 to 3 bytes without a meaning, and the float32 that they are multiplied with: its greatest magnitude / 127.

D numbers of a row, b rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 127
SCALE_BYTES = 4
# Shorter rows are kept as zeros: the reciprocal of their scale would be infinite.
LEAST_MAGNITUDE = 1e-30
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


def int8_width(width: int) -> int:
    """W, the bytes of a row of D integers and their scale."""
    return width + -width % SCALE_BYTES + SCALE_BYTES


def fixed_point(values: NDArray[np.float32], out: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(values [b, D] / scale with 16 binary places, toward 0, in `out`; scale [b, 1]). The values are overwritten."""
    bits = out.view(np.uint32)
    np.bitwise_and(values.view(np.uint32), np.uint32(0x7FFFFFFF), out=bits)  # the order of magnitudes is that of bits
    greatest = bits.max(axis=1, keepdims=True, initial=0).view(np.float32)
    factor, scale = factor_and_scale(greatest)
    with np.errstate(invalid="ignore", over="ignore"):  # the judgment of the step finds it
        np.multiply(values, factor, out=values)
        np.copyto(out, values, casting="unsafe")
    return out, scale


def factor_and_scale(greatest: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What brings rows between -127 and 127, times 2^16; and what brings such integers back.

    Args:
        greatest: [b, 1], the greatest magnitude of each row.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        factor = np.float32(LIMIT * 65536.0) / np.where(greatest > LEAST_MAGNITUDE, greatest, np.float32(np.inf))
        return factor, greatest / np.float32(LIMIT)


def packed(values: NDArray[Any]) -> NDArray[np.int8]:
    """[..., W] int8, of numbers [..., D], which are rounded to the nearest."""
    rows = np.array(values, np.float32).reshape(-1, values.shape[-1])  # a copy, which is overwritten
    fixed, scale = fixed_point(rows, np.empty(rows.shape, np.int32))
    found = np.zeros([len(rows), int8_width(rows.shape[1])], np.int8)
    found[:, : rows.shape[1]] = (fixed + (1 << 15)) >> 16
    found[:, -SCALE_BYTES:] = scale.view(np.int8)
    return found.reshape(*values.shape[:-1], -1)


def decoded(rows: NDArray[Any], width: int) -> NDArray[Any]:
    """Rows of any of these types as float32 or float64 [..., D]; the array itself where it is that already.

    Args:
        rows: [..., W] float32 or float64; uint16, the bits of bfloat16; int8.
        width: D.
    """
    if rows.dtype == np.int8:
        return rows[..., :width] * np.ascontiguousarray(rows[..., -SCALE_BYTES:]).view(np.float32)
    return widen(rows) if rows.dtype == np.uint16 else rows
