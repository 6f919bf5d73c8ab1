"""A copy of what a rank saves, made between two steps, so that training goes on while it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint import Part, block_rows


class Snapshot:
    """Memory for one copy of this rank's parts.

    It is kept between saves: to touch new memory takes several times as long as to copy into memory that was used
    before.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def reserve(self, parts: Sequence[Part]) -> None:
        """Take the memory for a copy of `parts`, and give back what other parts had.

        Raises:
            MemoryError: there is not so much.
        """
        wanted = {part.name: (tuple(part.data.shape), part.data.dtype) for part in parts}
        held = {name: array for name, array in self._arrays.items() if wanted.get(name) == (array.shape, array.dtype)}
        self._arrays = held
        for name, (shape, dtype) in wanted.items():
            if name not in held:
                held[name] = np.empty(shape, dtype)

    def copy(self, parts: Sequence[Part]) -> list[Part]:
        """The same parts with a copy of their data, which the next call overwrites. `reserve` was called for them."""
        return [dataclasses.replace(part, data=self._fill(part)) for part in parts]

    def _fill(self, part: Part) -> NDArray[Any]:
        array = self._arrays[part.name]
        rows, size = np.atleast_1d(array), block_rows(part.row_bytes)
        for start in range(0, part.num_rows, size):
            stop = min(start + size, part.num_rows)
            rows[start:stop] = part.read(start, stop)
        return array
