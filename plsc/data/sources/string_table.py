"""Many strings in two arrays, so that worker processes can share them.

A Python list of paths costs some 100 bytes an entry, and each forked worker gets a copy of its own page by
page: reading an entry writes its reference count. Arrays have no such counts and stay shared.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """An immutable sequence of strings, held as UTF-8 in one array `bytes` with their ends in `ends`.

    Args:
        strings: in order. Names that are not UTF-8 (surrogate escapes, as `os` gives them) are kept.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        packed, ends = bytearray(), array("q", [0])
        for string in strings:
            packed += string.encode("utf-8", "surrogateescape")
            ends.append(len(packed))
        self.bytes, self.ends = np.frombuffer(bytes(packed), np.uint8), np.asarray(ends, np.int64)

    @classmethod
    def from_arrays(cls, packed: np.ndarray, ends: np.ndarray) -> PackedStrings:
        """The strings whose `bytes` and `ends` these are."""
        strings = cls([])
        strings.bytes, strings.ends = packed, ends
        return strings

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"index {index} is out of range, expected {-count} to {count - 1}")
        index %= count
        start, stop = self.ends.item(index), self.ends.item(index + 1)
        return self.bytes[start:stop].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


def number_names(names: Iterable[str | int]) -> tuple[np.ndarray, list[str]]:
    """Classes named by strings as numbers: the names in sorted order are classes 0 ... C - 1.

    Returns:
        labels [n] int64, and the C names.
    """
    unique, labels = np.unique(np.asarray(list(names), dtype=str), return_inverse=True)
    return labels.reshape(-1).astype(np.int64), unique.tolist()
