"""Numbers that are not finite, found in arrays of any size without a large temporary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 18  # elements looked at together; they fit in a cache


def find_nonfinite(array: npt.NDArray[Any], limit: float = math.inf) -> tuple[tuple[int, ...], float] | None:
    """The first element that is NaN or whose absolute value is not below `limit`.

    Args:
        array: of floats; uint16 counts as the bits of bfloat16, as which Paddle passes it. Another type has none.
        limit: by default infinity, so that NaN and the infinities are found.

    Returns:
        (index, value); None where all elements are in order.
    """
    if array.dtype.kind != "f" and array.dtype != np.uint16:
        return None
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = _as_floats(flat[start : start + _BLOCK])
        with np.errstate(over="ignore", invalid="ignore"):
            # One pass; a sum of squares is finite only where all elements are.
            if limit == math.inf and np.isfinite(np.dot(block, block)):
                continue
            bad = ~(np.abs(block) < limit)
        if bad.any():
            place = int(bad.argmax())
            index = tuple(int(axis) for axis in np.unravel_index(start + place, array.shape))
            return index, float(block[place])
    return None


def _as_floats(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if block.dtype != np.uint16:
        return block
    return (block.astype(np.uint32) << 16).view(np.float32)
