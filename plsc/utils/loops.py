"""Loops over numbers, which Numba compiles: one pass over memory where NumPy needs several.

A caller asks for `compiled_loops()`, and has a form in NumPy for where Numba is not installed. Both give the same bits,
but for `weighted_products`, whose sums NumPy makes in another order. A compiled loop does not check its indices: the
caller answers for the shapes.

b rows of D numbers; M classes of K rows of G numbers.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

log = logging.getLogger("plsc")

_HALF = np.uint32(16)
_UPPER = np.uint32(0xFFFF0000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


def widen(bits: Any, out: Any) -> None:
    """The float32 of bfloat16.

    Args:
        bits: [b, D] uint16.
        out: [b, D], the bits of float32 as uint32.
    """
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            out[i, j] = np.uint32(bits[i, j]) << _HALF


def round_to_bfloat16(bits: Any, noise: Any, out: Any, keeps_rounded: bool) -> None:
    """bfloat16 of float32, rounded stochastically.

    Args:
        bits: [b, D], those of float32 as uint32.
        noise: [b, D] int32, of 16 bits.
        out: [b, D] uint16.
        keeps_rounded: set `bits` to what `out` holds of them.
    """
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            rounded = bits[i, j] + np.uint32(noise[i, j])
            out[i, j] = np.uint16(rounded >> _HALF)
            if keeps_rounded:
                bits[i, j] = rounded & _UPPER


def unpack_int8(integers: Any, scales: Any, out: Any) -> None:
    """The first D of integers [b, W] int8, times scales [b, 1]: [b, D] float32."""
    for i in range(out.shape[0]):
        scale = scales[i, 0]
        for j in range(out.shape[1]):
            out[i, j] = np.float32(integers[i, j]) * scale


def greatest_magnitudes(bits: Any, out: Any) -> None:
    """Of each row of float32 the greatest magnitude.

    Args:
        bits: [b, D], as uint32, whose order is that of the magnitudes; NaN is the greatest.
        out: [b, 1], like `bits`.
    """
    for i in range(bits.shape[0]):
        greatest = np.uint32(0)
        for j in range(bits.shape[1]):
            greatest = max(greatest, bits[i, j] & _MAGNITUDE)
        out[i, 0] = greatest


def round_to_int8(values: Any, factors: Any, noise: Any, out: Any) -> None:
    """values [b, D] times factors [b, 1], numbers with 16 binary places, as int8, rounded stochastically.

    Args:
        values: float32.
        factors: float32, which bring each row between -127 and 127, times 2^16.
        noise: [b, D] int32, of 16 bits.
        out: [b, W] int8, whose first D are set.
    """
    for i in range(values.shape[0]):
        factor = factors[i, 0]
        for j in range(values.shape[1]):
            out[i, j] = np.int8((np.int32(values[i, j] * factor) + noise[i, j]) >> 16)


def greatest(rows: Any, scale: Any, best: Any, which: Any) -> None:
    """Of the K rows of each class, times their scale, the greatest in each column, the first one at ties.

    Args:
        rows: [M, K, G].
        scale: [M, K].
        best: [M, G].
        which: [M, G] uint8, the number of the row.
    """
    for i in range(rows.shape[0]):
        for n in range(rows.shape[2]):
            best[i, n] = rows[i, 0, n] * scale[i, 0]
            which[i, n] = 0
        for k in range(1, rows.shape[1]):
            factor = scale[i, k]
            for n in range(rows.shape[2]):
                value = rows[i, k, n] * factor
                is_greater = value > best[i, n] or value != value  # NaN stays
                which[i, n] = k if is_greater else which[i, n]
                best[i, n] = value if is_greater else best[i, n]


def spread_over(values: Any, which: Any, scale: Any, out: Any) -> None:
    """values [M, G] times scale [M, K] in the rows that `greatest` found, 0 in the others: [M, K, G]."""
    for i in range(out.shape[0]):
        given, found = values[i], which[i]
        for k in range(out.shape[1]):
            row, factor, number = out[i, k], scale[i, k], np.uint8(k)
            zero = scale.dtype.type(0)
            for n in range(len(row)):
                row[n] = factor * given[n] if found[n] == number else zero


def weighted_products(rows: Any, others: Any, weights: Any, out: Any) -> None:
    """The sums over n of rows [M, K, G], others [M, G] and weights [G] multiplied: [M, K]."""
    for i in range(out.shape[0]):
        other = others[i]
        for k in range(out.shape[1]):
            row, total = rows[i, k], rows.dtype.type(0)
            for n in range(len(row)):
                total += row[n] * (other[n] * weights[n])
            out[i, k] = total


_LOOPS: tuple[Callable[..., None], ...] = (
    widen,
    round_to_bfloat16,
    unpack_int8,
    greatest_magnitudes,
    round_to_int8,
    greatest,
    spread_over,
    weighted_products,
)
# Allows several numbers at once in a sum.
_ANY_ORDER = {"reassoc", "contract"}


@functools.cache
def compiled_loops() -> SimpleNamespace | None:
    """The loops of this module as attributes, each compiled at its first call; None where Numba cannot be loaded.

    What was compiled is kept in `__pycache__`, or in `NUMBA_CACHE_DIR`. Loading Numba takes half a second.
    """
    try:
        import numba
    except ImportError as error:  # also where it does not work with this version of NumPy
        if not isinstance(error, ModuleNotFoundError):
            log.warning("Numba cannot be loaded, so NumPy takes its place and steps take longer: %s", error)
        return None

    def compiled(loop: Callable[..., None], **options: Any) -> Callable[..., None]:
        order = _ANY_ORDER if loop is weighted_products else False
        found: Callable[..., None] = numba.njit(loop, nogil=True, fastmath=order, **options)
        return found

    try:
        return SimpleNamespace(**{loop.__name__: compiled(loop, cache=True) for loop in _LOOPS})
    except RuntimeError:  # no folder can be written where Numba looks for one
        return SimpleNamespace(**{loop.__name__: compiled(loop) for loop in _LOOPS})
