"""Class centers that other libraries' ranks have written, joined to one tensor of any range of rows.

S classes of a shard, R ranks, C classes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import CheckpointError
from plsc.pretrained.tensors import StoredTensor
from plsc.utils.plural import counted
from plsc.utils.ranges import Range, shard_ranges


class JoinedRows:
    """Shards one below the other: [S_0 + ... + S_(R-1), ...] float32. Rows are read from the files when they are used.

    Args:
        shards: [S_r, ...] each, in the order of their classes.
        rows: of the joined tensor; by default all.

    Raises:
        CheckpointError: the shards differ in their columns.
    """

    is_view = False  # each block is read from the files
    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, shards: Sequence[StoredTensor], rows: Range | None = None) -> None:
        columns = [shard.shape[1:] for shard in shards]
        if any(shape != columns[0] for shape in columns) or not all(shard.shape for shard in shards):
            raise CheckpointError(f"the shards have rows of {columns}, expected the same of all")
        self._shards, starts = list(shards), [0]
        for shard in shards:
            starts.append(starts[-1] + shard.shape[0])
        self._ranges = [Range(start, stop) for start, stop in zip(starts, starts[1:])]
        self._rows = Range(0, starts[-1]) if rows is None else rows
        self.shape = [self._rows.size, *columns[0]]

    def cut(self, rows: Range) -> JoinedRows:
        """The rows in a range of the whole."""
        return JoinedRows(self._shards, rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        wanted = Range(start, stop).shift(self._rows.start)
        pieces = [
            shard.read(inside.start - own.start, inside.stop - own.start)
            for shard, own in zip(self._shards, self._ranges)
            if (inside := own.overlap(wanted)).size
        ]
        return np.concatenate([piece.astype(np.float32, copy=False) for piece in pieces])


def check_sizes(sizes: Sequence[int], *, by: str) -> None:
    """Refuse shards that no run has written together: one is missing, or they are of different runs.

    Args:
        sizes: rows of each shard, in the order of the ranks.
        by: 'evenly': the first C mod R ranks have one class more. 'rounded up': each has C / R rounded up, and the last
            what is left.

    Raises:
        CheckpointError: the sizes are others.
    """
    expected = [own.size for own in shard_ranges(sum(sizes), len(sizes))]
    is_right = list(sizes) == expected if by == "evenly" else len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]
    if not is_right:
        raise CheckpointError(
            f"the shards have {', '.join(map(str, sizes))} classes, which {counted(len(sizes), 'rank')} of one run "
            f"do not have together; give all files of one run"
        )


def check_ranks(ranks: Sequence[int], *, what: str) -> None:
    """Refuse files of ranks that are not 0, 1, ... up to the last.

    Raises:
        CheckpointError: one is missing.
    """
    missing = sorted(set(range(max(ranks) + 1)) - set(ranks))
    if missing:
        raise CheckpointError(
            f"{what} of rank {', '.join(map(str, missing))} is missing; put the files of all ranks there"
        )
