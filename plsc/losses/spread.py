"""A vector that is added to the gradients by the directions of all rows alike, as label smoothing does.

The gradient of row c gets q / |w_c|, from which the part along w_c is removed, since lengths do not count:

    q / |w_c| - <q, w_c> / |w_c|^3 w_c

The second part is a multiple of the row, which the second pass has anyway; the first is a matrix of rank one.

G gathered batch, D embedding, S rows of this shard, B rows of a chunk, b of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import paddle

from plsc.losses.ops import add, add_, add_matmul_, matmul, multiply, split_rows
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

    # By logits: a product with one column more adds the matrix of rank one, and multiples of the rows are known before.

    def with_column(self, k: int, e: paddle.Tensor) -> paddle.Tensor:
        """[B, G + 1]: e [B, G] of chunk k, whose product with `with_row(x)` has q / |w_c| in addition."""
        return paddle.concat([e, self._inverse[k].unsqueeze(1)], axis=1)

    def with_row(self, x: paddle.Tensor) -> paddle.Tensor:
        """[G + 1, D] of x [G, D]."""
        return paddle.concat([x, self._row])

    def coefficient(self, k: int, coefficient: paddle.Tensor, rows: paddle.Tensor) -> paddle.Tensor:
        """[B]: `coefficient` of the rows of chunk k, with the multiples that remove the parts of q along them."""
        if not self._is_unit:
            return coefficient
        inverse = self._inverse[k]
        minus_cubes = -multiply(inverse, multiply(inverse, inverse))
        return add(coefficient, multiply(matmul(rows, self._vector), minus_cubes))

    def add_own_(self, gradient: paddle.Tensor, *, first: int) -> None:
        """Add what their own samples add to the gradient [b, D] of the rows from `first` on."""
        if self._totals is None:
            self._totals = self._sums.totals(self._own if self._along is None else self._own - self._along)
        self._sums.add_(gradient, self._totals, first=first)

    # By rows: the parts along the rows are removed from the whole gradient afterwards.

    def columns(self, k: int, sizes: list[int]) -> Iterator[paddle.Tensor]:
        """1 / |w_c| [b, 1] of each block of chunk k."""
        return iter(split_rows(self._inverse[k].unsqueeze(1), sizes=sizes))

    def add_to_(self, gradient: paddle.Tensor, column: paddle.Tensor, *, first: int) -> None:
        """Add q / |w_c| to the gradient [b, D] of the rows from `first` on, and what their own samples add."""
        if self._totals is None:
            self._totals = self._sums.totals(self._own)
        add_matmul_(gradient, column, b=self._row)
        self._sums.add_(gradient, self._totals, first=first)

    def add_to_bias_(self, gradient: paddle.Tensor) -> None:
        """Add to the gradient [S] by the bias."""
        if self._bias is not None:
            every, own = self._bias
            add_(gradient, every.expand([gradient.shape[0]]))
            self._sums.add_(gradient, self._sums.totals(own))
