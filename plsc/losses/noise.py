"""The noise of stochastic rounding: a number of 16 bits for each element of a tensor in each step.

It depends on the seed, the step, the tensor, the global number of the row and the column, and on nothing else: whoever
rounds an element gets the same bits, on any number of ranks, by chunk or by sample, in one run or resumed.

A step draws a table of T + K rows. Rows are numbered in tiles of T; tile i of tensor t begins at row h(i, t) < K of the
table, with h a hash of the step. So the noise of consecutive rows lies together in memory and costs no arithmetic, and
the elements of a tile are independent. Those of two tiles have numbers in common, in other pairs in each step.

b rows of a block, D their length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.utils.ranges import Range
from plsc.utils.seeding import derive_seed

# Both small, so that the table stays in the second-level cache beside the rows it is added to.
_TILE_BITS = 7
_TILE, _STARTS = 1 << _TILE_BITS, 128


class Noise:
    """The noise of one step.

    Args:
        seed: of the run.
        step: number of the update.
        width: D.
        rows: the global numbers of the rows that are asked for.
    """

    def __init__(self, seed: int, step: int, *, width: int, rows: Range) -> None:
        key = derive_seed(seed, step)
        words = np.random.PCG64(key).random_raw(-(-(_TILE + _STARTS) * width // 4))
        table = words.view("<u2")[: (_TILE + _STARTS) * width].reshape(-1, width)
        self._table: NDArray[np.int32] = table.astype(np.int32)
        self._key, self._rows = key, rows
        self._starts: dict[int, NDArray[np.int64]] = {}
        self._device_table: paddle.Tensor | None = None
        self._device_starts: dict[int, paddle.Tensor] = {}

    def pieces(self, rows: Range, *, tensor: int) -> list[tuple[slice, NDArray[np.int32]]]:
        """(rows of the block, [their number, D]) for consecutive rows, without a copy.

        Args:
            rows: global numbers.
            tensor: number of the tensor that is rounded.
        """
        found, starts, first = [], self._starts_of(tensor), self._rows.start >> _TILE_BITS
        at = rows.start
        while at < rows.stop:
            stop = min((at | (_TILE - 1)) + 1, rows.stop)
            start = int(starts[(at >> _TILE_BITS) - first]) + (at & (_TILE - 1))
            found.append((slice(at - rows.start, stop - rows.start), self._table[start : start + stop - at]))
            at = stop
        return found

    def take(self, rows: NDArray[Any], *, tensor: int) -> NDArray[np.int32]:
        """[b, D] for rows of the global numbers `rows` [b]."""
        return np.take(self._table, self._places(rows, tensor), axis=0)

    def on_device(self, rows: paddle.Tensor, *, tensor: int) -> paddle.Tensor:
        """`take` for tensors, by the operators of the device."""
        if tensor not in self._device_starts:
            self._device_starts[tensor] = paddle.to_tensor(self._starts_of(tensor), place=rows.place)
        if self._device_table is None:
            self._device_table = paddle.to_tensor(self._table, place=rows.place)
        tile = rows // _TILE
        places = paddle.index_select(self._device_starts[tensor], tile - (self._rows.start >> _TILE_BITS))
        return paddle.index_select(self._device_table, places + (rows - tile * _TILE))

    def _places(self, rows: NDArray[Any], tensor: int) -> NDArray[np.int64]:
        first = self._rows.start >> _TILE_BITS
        places: NDArray[np.int64] = self._starts_of(tensor)[(rows >> _TILE_BITS) - first] + (rows & (_TILE - 1))
        return places

    def _starts_of(self, tensor: int) -> NDArray[np.int64]:
        """Where each tile of the rows begins in the table."""
        if tensor not in self._starts:
            tiles = np.arange(self._rows.start >> _TILE_BITS, (self._rows.stop >> _TILE_BITS) + 1, dtype=np.uint64)
            mixed = tiles + np.uint64(derive_seed(self._key, tensor) * 0x9E3779B97F4A7C15 % 2**64)
            # The finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
            self._starts[tensor] = ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(_STARTS)).astype(np.int64)
        return self._starts[tensor]
