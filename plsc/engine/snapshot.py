"""A copy of what a rank saves, made between two steps, so that training goes on while it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint import Part

_BLOCK_BYTES = 16 << 20


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
        if array.ndim == 0 or isinstance(part.data, np.ndarray):
            array[...] = part.data if isinstance(part.data, np.ndarray) else part.data.read(0, 1)
            return array
        rows = max(1, _BLOCK_BYTES // max(array[:1].nbytes, 1))
        for start in range(0, len(array), rows):
            stop = min(start + rows, len(array))
            array[start:stop] = part.data.read(start, stop)
        return array
