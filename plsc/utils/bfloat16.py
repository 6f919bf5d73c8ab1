"""bfloat16 in NumPy, which has no such type: the upper half of a float32, as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def widen(bits: NDArray[np.uint16], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The numbers of these bits, exactly; in `out`, where that is given."""
    target: NDArray[np.float32] = np.empty(bits.shape, np.float32) if out is None else out
    whole = target.view(np.uint32)
    np.copyto(whole, bits)  # these two need half the time of one shift with a conversion
    np.left_shift(whole, np.uint32(16), out=whole)
    return target


def narrow(numbers: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each number, the even one at ties. NaN stays NaN."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    found: NDArray[np.uint16] = (np.where(np.isnan(numbers), bits | np.uint32(0x400000), rounded) >> 16).astype(
        np.uint16
    )
    return found
