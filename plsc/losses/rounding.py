"""Rows of host memory to float32 and back, in one pass where Numba is installed, else in NumPy; with the same bits.

What is made of float32 is rounded stochastically, by noise that is added below the last digit that is kept.

b rows of a block, D numbers of each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plsc.utils import row_types
from plsc.utils.loops import compiled_loops

_HALF = np.uint32(16)


def widen(bits: NDArray[np.uint16], *, out: NDArray[np.float32]) -> None:
    """The float32 of bfloat16 [b, D]."""
    loops = compiled_loops()
    if loops is not None:
        loops.widen(bits, out.view(np.uint32))
    else:
        row_types.widen(bits, out)


def round_to_bfloat16(
    values: NDArray[np.float32], noise: NDArray[np.int32], *, out: NDArray[np.uint16], keeps_rounded: bool
) -> None:
    """bfloat16 of float32 [b, D], which are overwritten, by what `out` holds of them if `keeps_rounded`."""
    bits, loops = values.view(np.uint32), compiled_loops()
    # A carry out of the lower half rounds up in magnitude. NaN stays NaN: the lower half of one made by an operation
    # is 0.
    if loops is not None:
        loops.round_to_bfloat16(bits, noise, out, keeps_rounded)
        return
    signed = bits.view(np.int32)
    np.add(signed, noise, out=signed)
    np.right_shift(bits, _HALF, out=bits)  # apart from the copy, since a shift that converts writes slowly
    np.copyto(out, bits, casting="unsafe")
    if keeps_rounded:
        np.left_shift(bits, _HALF, out=bits)


def unpack_int8(packed: NDArray[np.int8], *, out: NDArray[np.float32]) -> None:
    """The float32 [b, D] of rows [b, W] of integers and their scale."""
    scales, loops = packed.view(np.float32)[:, -1:], compiled_loops()
    if loops is not None:
        loops.unpack_int8(packed, scales, out)
        return
    np.copyto(out, packed[:, : out.shape[1]])
    with np.errstate(invalid="ignore"):
        np.multiply(out, scales, out=out)


def round_to_int8(
    values: NDArray[np.float32], noise: NDArray[np.int32], *, out: NDArray[np.int8], scratch: NDArray[np.int32]
) -> None:
    """Rows of integers and their scale [b, W], of float32 [b, D], which are overwritten.

    Args:
        values: what is kept.
        noise: like `values`.
        out: the rows.
        scratch: like `values`; what it holds is lost.
    """
    scales, loops = out.view(np.float32)[:, -1:], compiled_loops()
    if loops is None:
        fixed, scales[:] = row_types.fixed_point(values, scratch)
        np.add(fixed, noise, out=fixed)
        np.right_shift(fixed, np.int32(16), out=fixed)
        out[:, : values.shape[1]] = fixed
        return
    greatest = np.empty([len(values), 1], np.uint32)
    loops.greatest_magnitudes(values.view(np.uint32), greatest)
    factors, scales[:] = row_types.factor_and_scale(greatest.view(np.float32))
    loops.round_to_int8(values, factors, noise, out)
