"""A vector that is added to the gradients by the directions of all rows alike, as label smoothing does.

The gradient of row c gets q / |w_c|, from which the part along w_c is removed, since lengths do not count:

    q / |w_c| - <q, w_c> / |w_c|^3 w_c

The second part is a multiple of the row, which the second pass has anyway; the first is a matrix of rank one.

G gathered batch, D embedding, S rows of this shard, B rows of a chunk, b of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import paddle

from plsc.losses.ops import add_, add_matmul_, matmul, multiply, split_rows
from plsc.losses.row_sums import RowSums


class Spread:
    """What is added to the gradients by the rows and by the bias.

    Args:
        vector: q [D].
        inverse: 1 / |w_c|, one [B] per chunk; 1 for softmax.
        is_unit: whether rows count by their directions.
        sums: the samples by the row of their class.
        own: [G, D], what each sample adds to the row of its class.
        along: [G, D], the part of `own` along that row; None for none.
        bias: (what is added to all of the bias, 0-d; what each sample adds to that of its class, [G]); None without a
            bias.
    """

    def __init__(
        self,
        vector: paddle.Tensor,
        inverse: list[paddle.Tensor],
        *,
        is_unit: bool,
        sums: RowSums,
        own: paddle.Tensor,
        along: paddle.Tensor | None,
        bias: tuple[paddle.Tensor, paddle.Tensor] | None,
    ) -> None:
        self._vector, self._row, self._inverse = vector, vector.unsqueeze(0), inverse
        self._is_unit, self._sums, self._own, self._along, self._bias = is_unit, sums, own, along, bias
        self._totals: paddle.Tensor | None = None

    def parts(self, k: int, sizes: list[int]) -> Iterator[tuple[paddle.Tensor, paddle.Tensor | None]]:
        """What `multiples` and `add_to_` take for each block of chunk k, in their order."""
        inverse = self._inverse[k]
        columns = split_rows(inverse.unsqueeze(1), sizes=sizes)
        if not self._is_unit:
            return zip(columns, [None] * len(columns))
        cubes = -multiply(inverse, multiply(inverse, inverse))
        return zip(columns, split_rows(cubes, sizes=sizes))

    def multiples(self, rows: paddle.Tensor, part: tuple[paddle.Tensor, paddle.Tensor | None]) -> paddle.Tensor | None:
        """[b]: the multiples of the rows of a block that remove the parts of q along them; None for none."""
        cubes = part[1]
        return None if cubes is None else multiply(matmul(rows, self._vector), cubes)

    def add_to_(
        self,
        gradient: paddle.Tensor,
        part: tuple[paddle.Tensor, paddle.Tensor | None],
        *,
        first: int,
        with_along: bool,
    ) -> None:
        """Add q / |w_c| to the gradient [b, D] of the rows from `first` on, and what their own samples add.

        Args:
            gradient: of these rows.
            part: of `parts`.
            first: the number of the first row.
            with_along: the parts of `own` along the rows are added, too; the same in all calls.
        """
        if self._totals is None:
            own = self._own if with_along or self._along is None else self._own - self._along
            self._totals = self._sums.totals(own)
        add_matmul_(gradient, part[0], b=self._row)
        self._sums.add_(gradient, self._totals, first=first)

    def add_to_bias_(self, gradient: paddle.Tensor) -> None:
        """Add to the gradient [S] by the bias."""
        if self._bias is not None:
            every, own = self._bias
            add_(gradient, every.expand([gradient.shape[0]]))
            self._sums.add_(gradient, self._sums.totals(own))
