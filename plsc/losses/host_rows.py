"""Rows that lie in the memory of the host while a GPU computes: they travel as they are kept.

A read is one gather and one copy to the device, and what was copied is widened there. A write rounds on the device, and
is one copy and one scatter. Rows that lie together are copied from where they lie.

What is copied between a host and a GPU here was never run on one. S rows, W elements of each, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.losses.location import PageLockedMemory, host_bytes
from plsc.losses.ops import Array
from plsc.losses.storage import Buffer, Places, Rounding, Rows, RowStore
from plsc.utils.ranges import Range


class HostRows:
    """A store of rows of the host for steps on a GPU.

    Args:
        kept: [S, W] in host memory.
        make: the store of rows on the device, of a tensor [b, W].
    """

    in_place, may_copy = False, True

    def __init__(self, kept: paddle.Tensor, make: Callable[[paddle.Tensor], RowStore]) -> None:
        self.kept, self._make = kept, make
        self._array = _array_of(kept)
        self._gathered: Array = self._array[:0]
        self._host = make(kept)
        self.width, self.rounds = self._host.width, self._host.rounds

    def view(self, rows: Range) -> paddle.Tensor | None:
        return None

    def read(self, rows: Rows, *, out: Buffer) -> None:
        self._make(self.take(rows, place=out.tensor.place)).read(Range(0, int(out.tensor.shape[0])), out=out)

    def write(self, rows: Rows, values: Buffer, *, rounding: Rounding | None) -> None:
        count = int(values.tensor.shape[0])
        part = self.on_device(count)
        part.write(Range(0, count), values, rounding=None if rounding is None else rounding.of(rows))
        self.give(rows, part.kept)

    def on_device(self, rows: int) -> RowStore:
        """A store of so many rows on the device, of any content."""
        return self._make(paddle.empty([rows, *self.kept.shape[1:]], self.kept.dtype))

    def take(self, rows: Rows, *, place: Any) -> paddle.Tensor:
        """[b, W]: rows as they are kept, on the device."""
        if isinstance(rows, Range):
            source = self._array[rows.start : rows.stop]
        else:
            index = rows.numpy()
            source = np.take(self._array, index, axis=0, out=self._scratch(len(index)), mode="clip")
        moved = paddle.to_tensor(source, place=place)
        return moved.view("bfloat16") if self.kept.dtype == paddle.bfloat16 else moved

    def give(self, rows: Rows, values: paddle.Tensor) -> None:
        """Keep the values [b, W] of rows, which are those of a store on the device."""
        # Paddle passes bfloat16 as uint16.
        self._array[slice(rows.start, rows.stop) if isinstance(rows, Range) else rows.numpy()] = values.numpy()

    def put(self, places: Places, rows: NDArray[Any]) -> None:
        self._host.put(places, rows)

    def _scratch(self, rows: int) -> Array:
        """[rows, W] in page-locked memory, kept from one call to the next."""
        if len(self._gathered) < rows:
            self._gathered = _array_of(PageLockedMemory().zeros([rows, *self.kept.shape[1:]], self.kept.dtype))
        return self._gathered[:rows]


def _array_of(kept: paddle.Tensor) -> Array:
    """The memory of a tensor of the host; bfloat16 as uint16."""
    dtype: np.dtype[Any] = paddle.empty([0], kept.dtype).numpy().dtype
    return host_bytes(kept).view(dtype).reshape(kept.shape) if kept.size else np.zeros(kept.shape, dtype)
