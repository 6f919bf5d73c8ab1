"""Digests of what a checkpoint holds, by xxHash: it finds damage, not an attacker's change."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

ALGORITHM = "xxh3_64"
"""As `xxhsum -H3 FILE` prints it for a whole file."""
DIGEST_PATTERN = r"[0-9a-f]{16}"


class Hasher:
    """The digest of bytes that come in pieces.

    Example:
        >>> hasher = Hasher()
        >>> hasher.update(b"one piece")
        >>> hasher.hexdigest()
    """

    def __init__(self) -> None:
        self._state = xxhash.xxh3_64()

    def update(self, piece: bytes | memoryview) -> None:
        """Add bytes; Python's global lock is free meanwhile."""
        self._state.update(piece)

    def hexdigest(self) -> str:
        """16 hexadecimal digits."""
        return str(self._state.hexdigest())


def digest_of(piece: bytes | memoryview) -> str:
    """The digest of bytes, 16 hexadecimal digits."""
    return str(xxhash.xxh3_64(piece).hexdigest())


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array, as bytes."""
    return array.reshape(-1).view(np.uint8).data
