"""The two passes of the fused step over the chunks of a shard; `plsc.losses.fused` has the equations and the letters.

The first pass makes r, e, the sums of e and the feature gradient. The second makes the gradient of one block of rows
after the other, in one of two ways: `ByLogits` and `ByRows`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import paddle

from plsc.losses.exponentials import Exponentials, Nearest, Products
from plsc.losses.logit_ops import row_products_of_groups
from plsc.losses.ops import add, add_, matmul, multiply, row_products, scale_rows, split_rows
from plsc.losses.precision import Factor
from plsc.losses.row_sums import RowSums
from plsc.losses.shard import Block
from plsc.losses.spread import Spread


class OwnTerms(NamedTuple):
    """Of each sample's own class, for the second pass; all [G].

    Attributes:
        row: its row in the shard, any row where the class is not one of this shard's.
        term: e_yn; 0 where it is not.
        product: r_yn.
    """

    row: paddle.Tensor
    term: paddle.Tensor
    product: paddle.Tensor


class FirstPass:
    """Sums over all chunks.

    Args:
        work: of the chunks.
        threshold: [G], also count the classes with a greater logit; None for no count.
        keep: keep r or e.
        sum_rows: also sum the directions of the rows.

    Attributes:
        total: others_n [G].
        gradient: sum_c e_cn w_c [G, D].
        greater: [G] int64, number of classes whose logit exceeds the threshold; None without one.
        row_sum: [D], the sum of w_c / |w_c| over the classes of this shard; None if not asked for.
        kept: of each chunk, what the second pass needs: what e is made of, or e as the matrix products take it where
            there is no buffer; empty if not asked for.
    """

    def __init__(
        self, work: Exponentials, *, threshold: paddle.Tensor | None, keep: bool, sum_rows: bool = False
    ) -> None:
        x = work.features
        self._work, self._threshold, self._keep = work, threshold, keep
        self.total, self.gradient = paddle.zeros(x.shape[:1], x.dtype), paddle.zeros_like(x)
        self._part = paddle.empty_like(x)
        self.greater = None if threshold is None else paddle.zeros(x.shape[:1], "int64")
        self.row_sum = paddle.zeros(x.shape[1:], x.dtype) if sum_rows else None
        self.kept: list[Products] = []
        for k, chunk in enumerate(work.shard.chunks):
            work.shard.load_chunk(k)
            self._add(k, work.factor_of(k))
            if self.row_sum is not None:
                add_(self.row_sum, matmul(work.rows.inverse[k], chunk.rows))

    def _add(self, k: int, rows: Factor) -> None:
        # A method of its own, so that the memory of one chunk is free before the next.
        work = self._work
        r = work.logits(k, rows)
        if self.greater is not None:
            self.greater += self._count_greater(k, r)
        products = work.counted(k, r)
        e = work.first(k, products, total=self.total, gradient=self.gradient)
        kept = products if work.buffer is not None else None
        del r, products  # their memory may serve the cast
        e = work.precision.cast(e)
        add_(self.gradient, work.precision.feature_gradient(e, rows, out=self._part))
        if self._keep:
            self.kept.append(e if kept is None else kept)

    def _count_greater(self, k: int, r: paddle.Tensor) -> paddle.Tensor:
        terms = self._work.rows
        greater = scale_rows(r, scale=terms.scale[k], offset=terms.logit_offset[k]) > self._threshold
        if self._work.shard.subcenters > 1:  # a class counts once
            greater = greater.reshape([-1, self._work.shard.subcenters, greater.shape[1]]).any(axis=1)
        return greater.astype("int32").sum(axis=0, dtype="int32").astype("int64")


Gradients = Iterator[tuple[Block, paddle.Tensor]]


class SecondPass(ABC):
    """The gradient of each block of rows, and of the bias; one of two ways.

    Args:
        work: of the chunks, as the first pass left it.
        own: of the own classes.
        row_factor: s t_n [G].
        l2: this multiple of each row is added to its gradient.
        bias_l2: this multiple of the bias is added to its gradient.
        kept: what the first pass kept of each chunk; empty to multiply again.
        spread: added to the gradients of all rows; None for nothing.
    """

    def __init__(
        self,
        work: Exponentials,
        own: OwnTerms,
        *,
        row_factor: paddle.Tensor,
        l2: float,
        bias_l2: float,
        kept: list[Products],
        spread: Spread | None = None,
    ) -> None:
        self._work, self._own, self._row_factor, self._kept = work, own, row_factor, kept
        self._l2, self._bias_l2, self._spread = l2, bias_l2, spread
        self._x = work.precision.operand(work.features * row_factor.unsqueeze(1))
        self._bias_gradient: list[paddle.Tensor] = []

    def run(self) -> Gradients:
        """(block, gradient) of each block."""
        shard = self._work.shard
        for k in range(len(shard.chunks)):
            shard.load_chunk(k)
            # A generator of its own for each chunk, so that the memory of one is free before the next.
            yield from self._gradients(k)
        if self._bias_gradient:
            block = shard.bias_block
            gradient = add(paddle.concat(self._bias_gradient), block.rows * self._bias_l2)
            self._complete_bias(gradient)
            if self._spread is not None:
                self._spread.add_to_bias_(gradient)
            yield block, gradient

    @abstractmethod
    def _gradients(self, k: int) -> Gradients:
        """Those of chunk k, whose rows are loaded."""

    @abstractmethod
    def _complete_bias(self, gradient: paddle.Tensor) -> None:
        """Add to the bias's gradient [S] what the chunks did not."""


class ByLogits(SecondPass):
    """From r, with the targets in e."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        index, shard, radial = self._work.index, self._work.shard, self._work.rows.radial
        own_parts = self._own.term * self._own.product
        self._terms, self._parts = index.spread(self._own.term), index.spread(own_parts)
        if self._spread is not None:
            self._x = self._work.precision.operand(self._spread.with_row(self._x.values))
        plain = paddle.full([shard.size], self._l2, self._row_factor.dtype)
        self._sums: list[paddle.Tensor] = []  # memory, by class
        if radial is not None and shard.size and self._work.is_by_class:
            plain = add(plain, multiply(radial, self._own_sums(own_parts * self._row_factor)))
            self._sums = shard.split_by_chunk(paddle.empty_like(plain))
        self._plain = shard.split_by_chunk(plain)
        self._radial = None if radial is None else shard.split_by_chunk(radial)

    def _gradients(self, k: int) -> Gradients:
        work, chunk = self._work, self._work.shard.chunks[k]
        products = self._kept[k] if self._kept else work.counted(k, work.logits(k, work.factor_of(k)))
        e = work.again(k, products)
        coefficient = self._coefficient(k, e, products)
        work.index.add_(k, e, self._terms)
        if work.shard.bias is not None:
            self._bias_gradient.append(matmul(e, self._row_factor))
        first = k * work.shard.chunk_rows
        if self._spread is not None:
            coefficient = self._spread.coefficient(k, coefficient, chunk.rows)
            e = self._spread.with_column(k, e)
        pieces = zip(chunk.blocks, split_rows(coefficient, sizes=chunk.sizes), split_rows(e, sizes=chunk.sizes))
        for block, factor, e_rows in pieces:
            gradient = scale_rows(block.rows, scale=factor, offset=block.zeros)
            work.precision.add_row_gradient(gradient, e_rows, x=self._x)
            if self._spread is not None:
                self._spread.add_own_(gradient, first=first)
            first += block.rows.shape[0]
            yield block, gradient

    def _coefficient(self, k: int, e: paddle.Tensor, products: Products) -> paddle.Tensor:
        """l2 - radial_c [B]."""
        if self._radial is None:
            return self._plain[k]
        if isinstance(products, Nearest):
            # e is 0 where a row is not the nearest of its class; the targets' part is in `_plain`.
            sums = row_products_of_groups(e, products.cosine, weights=self._row_factor, out=self._sums[k])
            sums = multiply(sums, self._work.rows.weight[k])
        else:
            parts = multiply(e, products)
            self._work.index.add_(k, parts, self._parts)
            sums = matmul(parts, self._row_factor)
        return add(self._plain[k], multiply(self._radial[k], sums))

    def _own_sums(self, values: paddle.Tensor) -> paddle.Tensor:
        """[S]: of each row the sum of the values [G] of the samples whose class it is."""
        sums, out = RowSums(self._own.row), paddle.zeros([self._work.shard.size], values.dtype)
        sums.add_(out, sums.totals(values))
        return out

    def _complete_bias(self, gradient: paddle.Tensor) -> None:
        pass


class ByRows(SecondPass):
    """From e as the products take it; the targets' part is added to the rows."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sums, own_factor = RowSums(self._own.row), self._row_factor * self._own.term
        self._own_rows = self._sums.totals(own_factor.unsqueeze(1) * self._work.features)
        self._own_bias = None if self._work.shard.bias is None else self._sums.totals(own_factor)

    def _gradients(self, k: int) -> Gradients:
        work, chunk, precision = self._work, self._work.shard.chunks[k], self._work.precision
        e, factor = precision.spread(self._kept[k] if self._kept else self._made_again(k), work.factor(k))
        row_factor = self._row_factor if factor is None else self._row_factor * factor
        x = self._x if factor is None else precision.operand(work.features * row_factor.unsqueeze(1))
        if work.shard.bias is not None:
            self._bias_gradient.append(matmul(e.astype(row_factor.dtype), row_factor))
        columns = None if self._spread is None else self._spread.columns(k, chunk.sizes)
        first = k * work.shard.chunk_rows
        for block, e_rows in zip(chunk.blocks, split_rows(e, sizes=chunk.sizes)):
            gradient = precision.row_gradient(e_rows, x)
            self._sums.add_(gradient, self._own_rows, first=first)
            if self._spread is not None and columns is not None:
                self._spread.add_to_(gradient, next(columns), first=first)
            add_(gradient, self._multiple(block, gradient, first))
            first += block.rows.shape[0]
            yield block, gradient

    def _multiple(self, block: Block, gradient: paddle.Tensor, first: int) -> paddle.Tensor:
        """(l2 - radial_c) w_c [b, D], of the block whose first row is `first`."""
        radial, coefficient = self._work.rows.radial, block.zeros + self._l2
        if radial is not None:
            along = row_products(gradient, block.rows, ones=self._work.shard.ones)
            coefficient = add(coefficient, multiply(radial[first : first + block.rows.shape[0]], along))
        return scale_rows(block.rows, scale=coefficient, offset=block.zeros)

    def _made_again(self, k: int) -> paddle.Tensor:
        """e of chunk k as the first pass kept it."""
        work = self._work
        products = work.counted(k, work.logits(k, work.factor_of(k)))
        return work.precision.cast(work.as_first(k, products))

    def _complete_bias(self, gradient: paddle.Tensor) -> None:
        self._sums.add_(gradient, self._own_bias)
