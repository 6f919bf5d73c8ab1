"""Many strings in two arrays, which worker processes share.

A Python list of paths takes about 100 bytes an entry, and reading an entry writes its reference count, so that each
forked worker copies the list page by page. Arrays hold no reference counts and stay shared.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from plsc.data.sources.reading import check_index


class StringTable:
    """An immutable sequence of strings.

    Args:
        strings: in order. Names that are not UTF-8 (surrogate escapes, as `os` gives them) are kept.

    Attributes:
        text: all strings as UTF-8, one after the other, [bytes] uint8.
        ends: string i is text[ends[i]:ends[i + 1]]; [n + 1] int64, the first 0.

    Example:
        >>> list(StringTable(["a/1.jpg", "b/2.jpg"]))
        ['a/1.jpg', 'b/2.jpg']
    """

    def __init__(self, strings: Iterable[str]) -> None:
        packed, ends = bytearray(), array("q", [0])
        for string in strings:
            packed += string.encode("utf-8", "surrogateescape")
            ends.append(len(packed))
        self.text: npt.NDArray[np.uint8] = np.frombuffer(bytes(packed), np.uint8)
        self.ends: npt.NDArray[np.int64] = np.asarray(ends, np.int64)

    @classmethod
    def from_arrays(cls, text: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> StringTable:
        """The table with these attributes, without a copy."""
        table = cls([])
        table.text, table.ends = text, ends
        return table

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        count = len(self)
        check_index(index, count)
        index %= count
        start, stop = self.ends.item(index), self.ends.item(index + 1)
        return self.text[start:stop].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


def number_names(names: Iterable[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Number classes that are named by strings: the names in sorted order are classes 0 ... C - 1.

    Returns:
        labels [n] int64, and the C names.
    """
    unique, labels = np.unique(np.asarray(list(names), dtype=str), return_inverse=True)
    return labels.reshape(-1).astype(np.int64), unique.tolist()
