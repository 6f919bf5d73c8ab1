"""Sums over the samples of one class, in an order that is always the same.

A class may be the label of several samples. Adding their numbers to its row one by one is an atomic operation on GPUs,
in an order that differs from run to run. Here the samples are sorted by row, those of a row are summed in a fixed
order, and each row is written once, or several times with the same numbers.

G samples.
"""

from __future__ import annotations

from bisect import bisect_left

import paddle

from plsc.losses.ops import put_rows


class RowSums:
    """Samples grouped by the row of their class.

    Args:
        row: [G] int64, any row for a sample whose numbers are 0.

    Example:
        >>> sums = RowSums(paddle.to_tensor([4, 1, 4]))
        >>> totals = sums.totals(paddle.to_tensor([1.0, 2.0, 3.0]))
        >>> sums.add_(target, totals)  # 2 to row 1 and 4 to row 4
    """

    def __init__(self, row: paddle.Tensor) -> None:
        self._order = paddle.argsort(row, stable=True)
        self._row = paddle.index_select(row, self._order)
        self._first = paddle.searchsorted(self._row, self._row)
        self._entries = paddle.arange(row.shape[0], dtype="int64")
        # Few blocks of rows hold a target, and on a CPU it costs little to look. On a GPU the host would wait.
        self._on_host = self._row.tolist() if row.place.is_cpu_place() else None

    def totals(self, values: paddle.Tensor) -> paddle.Tensor:
        """[G, ...] in the order of `add_`: for each sample the sum of `values` over all samples of its row."""
        values = paddle.index_select(values, self._order)
        reach = 1
        while reach < len(self._row):
            # Each entry holds the sum of the next `reach` of its row, itself included; this doubles them.
            same = (self._row[reach:] == self._row[:-reach]).reshape([-1] + [1] * (values.ndim - 1))
            later = paddle.where(same, values[reach:], paddle.zeros_like(values[reach:]))
            values = paddle.concat([values[:-reach] + later, values[-reach:]])
            reach *= 2
        return paddle.index_select(values, self._first)

    def add_(self, target: paddle.Tensor, totals: paddle.Tensor, *, first: int = 0) -> None:
        """target [b, ...], which are the rows from `first` on, plus what `totals` holds for these rows; in place."""
        last = first + target.shape[0]
        if self._on_host is not None:
            start, stop = bisect_left(self._on_host, first), bisect_left(self._on_host, last)
            if start < stop:
                row = self._row[start:stop] - first
                put_rows(target, row, values=paddle.index_select(target, row) + totals[start:stop])
            return
        # Comparisons with numbers, since a tensor of `first` and `last` would have to be copied to the device.
        low, high = (self._row < first).sum(), (self._row < last).sum()
        is_any, zero = high > low, paddle.zeros_like(low)
        # The same number of entries whatever the labels are: those of other rows repeat the nearest that is inside.
        entry = paddle.where(is_any, paddle.maximum(paddle.minimum(self._entries, high - 1), low), zero)
        row = paddle.where(is_any, paddle.index_select(self._row, entry) - first, zero)
        added = paddle.index_select(totals, entry)
        added = paddle.where(is_any, added, paddle.zeros_like(added))
        put_rows(target, row, values=paddle.index_select(target, row) + added)
