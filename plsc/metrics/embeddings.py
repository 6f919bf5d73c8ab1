"""Embeddings as the metrics take them: checked, brought to unit length, in blocks of rows.

D is the embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc.errors import DataError

# The zero embedding is divided by this instead of 0: it stays zero, and its cosine with every embedding is 0.
EPSILON = 1e-12
# The least divisor of a class center. Initial centers have a length of 0.01 sqrt(D).
CENTER_FLOOR = 1e-4
# Rows that are converted to float64 at a time: a few dozen MiB.
BLOCK_ROWS = 1 << 14

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def check_embeddings(embeddings: Array, name: str) -> Array:
    """Return `embeddings` as an array [rows, D].

    Args:
        embeddings: [rows, D] of a real type.
        name: what messages call them.

    Raises:
        DataError: another shape or type, or a value that is not finite.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: got shape {list(embeddings.shape)} of {embeddings.dtype}, expected [rows, D] of numbers"
        )
    for first, block in zip(range(0, len(embeddings), BLOCK_ROWS), blocks(embeddings)):
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise DataError(
                f"{name}: row {first + int(bad.argmax())} holds NaN or infinity, expected finite numbers; "
                f"the network has diverged or its weights are damaged"
            )
    return embeddings


def blocks(array: Array, rows: int | None = None) -> Iterator[Array]:
    """Consecutive blocks of `rows` rows, by default `BLOCK_ROWS`; the last block may be shorter."""
    rows = rows or BLOCK_ROWS
    return (array[start : start + rows] for start in range(0, len(array), rows))


def to_unit_length(embeddings: Array) -> tuple[Float64, Float64]:
    """(rows [B, D] brought to unit length, their lengths [B, 1] before), both float64."""
    wide = embeddings.astype(np.float64)
    lengths: Float64 = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.maximum(lengths, EPSILON), lengths
