"""The two passes of the fused step over the chunks of a shard; `plsc.losses.fused` has the equations and the letters.

The first pass makes r, e, the sums of e and the feature gradient. The second makes the gradient of one block of rows
after the other, in one of two ways: `ByLogits` and `ByRows`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import paddle

from plsc.losses.negatives import Negatives, drop_all_
from plsc.losses.ops import (
    RowNumbers,
    add,
    add_,
    add_at_,
    exp_,
    greatest,
    matmul,
    multiply,
    multiply_,
    row_products,
    row_products_of_groups,
    scale_rows,
    split_rows,
    spread_over,
)
from plsc.losses.precision import Factor, Precision
from plsc.losses.reference import Targets
from plsc.losses.row_sums import RowSums
from plsc.losses.shard import Block, Shard
from plsc.losses.shift import Shift
from plsc.losses.spread import Spread

# Added to r where the class is the sample's own: its exponential is 0, and so is that times this.
_EXCLUDED = -1e20


class LogitBuffer:
    """Memory for r of each chunk: S rows in all where r is stored, or those of one chunk at a time.

    Attributes:
        chunks: r [B, G] of each chunk.
    """

    def __init__(self, shard: Shard, samples: int, *, store: bool) -> None:
        self._shape = (samples, shard.size, shard.chunk_rows)
        rows = shard.size if store else min(shard.chunk_rows, shard.size)
        memory = paddle.empty([rows, samples], shard.dtype)
        self.chunks: list[paddle.Tensor] = []
        for start in range(0, shard.size, shard.chunk_rows):
            count = min(shard.chunk_rows, shard.size - start)
            self.chunks.append(memory[start : start + count] if store else memory[:count])

    def fits(self, shard: Shard, samples: int) -> bool:
        return self._shape == (samples, shard.size, shard.chunk_rows)


class RowTerms(NamedTuple):
    """What turns r of a chunk into e = exp(scale * r + offset), per class; lists hold one [B] per chunk.

    Attributes:
        scale: s / |w|.
        inverse: 1 / |w|.
        offset: -log |w|, minus the constant part of the shift.
        weight: |w|, the factor of e in the sum of exponentials.
        logit_offset: the offset of a logit z = scale * r + logit_offset.
        radial: [S], -1 / |w|^2; None for softmax.
        of_cosine: two of [1], scale and offset where a cosine is in r's place; of meaning where all classes have these.
    """

    scale: list[paddle.Tensor]
    inverse: list[paddle.Tensor]
    offset: list[paddle.Tensor]
    weight: list[paddle.Tensor]
    logit_offset: list[paddle.Tensor]
    radial: paddle.Tensor | None
    of_cosine: tuple[paddle.Tensor, paddle.Tensor]


class TargetIndex(NamedTuple):
    """Where the targets lie in r [B, G] of each chunk.

    Attributes:
        inside: [chunks, G], whether the target is in the chunk.
        flat: per chunk, [G] offsets in the flattened r, in column n for sample n: the target's row where it is in the
            chunk, else row 0. Each offset is in its own column, so no two are equal.
        own: `flat` of each of the K rows of the target's class; one list of chunks per sub-center.
        classes: per chunk, as `flat` in a matrix with a row per class.
        excluded: per chunk, [G], what is added to r to exclude the targets.
        may_hold: per chunk, whether it may hold a target.
    """

    inside: paddle.Tensor
    flat: list[paddle.Tensor]
    own: list[list[paddle.Tensor]]
    classes: list[paddle.Tensor]
    excluded: list[paddle.Tensor]
    may_hold: list[bool]

    @classmethod
    def of(cls, targets: Targets, shard: Shard) -> TargetIndex:
        samples = targets.row.shape[0]
        starts = paddle.arange(0, shard.size, shard.chunk_rows, dtype="int64").unsqueeze(1)
        row = targets.row.unsqueeze(0) - starts
        inside = (row >= 0) & (row < shard.chunk_rows) & targets.owned.unsqueeze(0)
        column, zeros = paddle.arange(samples, dtype="int64"), paddle.zeros_like(row)
        flat = _split_rows(paddle.where(inside, row, zeros) * samples + column)
        own, classes = [flat], flat
        if shard.subcenters > 1:
            first = paddle.where(inside, row - row % shard.subcenters, zeros)
            own = [_split_rows((first + j) * samples + column) for j in range(shard.subcenters)]
            classes = _split_rows(first // shard.subcenters * samples + column)
        excluded = paddle.full([samples], _EXCLUDED, shard.dtype)
        # Few chunks hold a target, and on a CPU it costs little to look. On a GPU the host would wait for the device.
        look = shard.size and inside.place.is_cpu_place()
        may_hold = inside.any(axis=1).tolist() if look else [True] * inside.shape[0]
        return cls(inside, flat, own, classes, _spread(excluded, inside), may_hold)

    def add_(self, k: int, matrix: paddle.Tensor, values: list[paddle.Tensor]) -> None:
        """Add values[k] [G] to the targets' entries of chunk k's matrix [B, G]."""
        if self.may_hold[k]:
            add_at_(matrix, self.flat[k], values=values[k])

    def exclude_(self, k: int, matrix: paddle.Tensor, *, by_class: bool = False) -> None:
        """Make the entries of the targets' classes so low that their exponentials are 0.

        In chunk k's matrix [B, G], or in one of [B / K, G] with a row per class.
        """
        if self.may_hold[k]:
            for flat in [self.classes] if by_class else self.own:
                add_at_(matrix, flat[k], values=self.excluded[k])

    def spread(self, values: paddle.Tensor) -> list[paddle.Tensor]:
        """Per chunk [G]: the values [G] of the targets inside it, 0 for the others."""
        return _spread(values, self.inside)


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


class Nearest(NamedTuple):
    """Of each class of a chunk the sub-center that counts; all that is needed of r, and a K-th of it.

    Attributes:
        cosine: [B / K, G], the greatest of the class's sub-centers.
        which: [B / K, G], its number.
    """

    cosine: paddle.Tensor
    which: RowNumbers


# r [B, G] of a chunk, or what is made of it.
Products: TypeAlias = "paddle.Tensor | Nearest"


class Exponents(NamedTuple):
    """Of a chunk.

    Attributes:
        values: [B, G], or [B / K, G] with one row per class.
        slope: like them, what e is multiplied by in the products; None for 1.
        which: [B / K, G], the number of each class's nearest sub-center; None where `values` are [B, G].
    """

    values: paddle.Tensor
    slope: paddle.Tensor | None = None
    which: RowNumbers | None = None


class Exponentials:
    """Makes r and e of each chunk.

    Args:
        shard: the class centers.
        features: x [G, D].
        rows: terms per class.
        index: where the targets are.
        shift: of the exponents.
        precision: of the products.
        buffer: memory for r; None for new memory for each chunk.
        negatives: what is done to the cosines before they become exponents; None for nothing.
        target: [G], psi of all samples, which negatives are compared with; None where they are not.
    """

    def __init__(
        self,
        shard: Shard,
        features: paddle.Tensor,
        *,
        rows: RowTerms,
        index: TargetIndex,
        shift: Shift,
        precision: Precision,
        buffer: LogitBuffer | None,
        negatives: Negatives | None = None,
        target: paddle.Tensor | None = None,
    ) -> None:
        self.shard, self.features, self.rows, self.index = shard, features, rows, index
        self.shift, self.precision, self.buffer = shift, precision, buffer
        self._negatives, self._target = negatives, target
        self._by_class = is_by_class(shard, precision)
        self._expanded: dict[int, tuple[paddle.Tensor, paddle.Tensor]] = {}
        self._features_t = precision.factor(features.t().contiguous())

    def factor_of(self, k: int) -> Factor:
        """The rows of chunk k, which is loaded, for products."""
        return self.precision.factor(self.shard.chunks[k].rows, self.shard.kept_rows(k))

    def logits(self, k: int, chunk_rows: Factor) -> paddle.Tensor:
        """r of chunk k, targets excluded."""
        out = None if self.buffer is None else self.buffer.chunks[k]
        r = self.precision.logits(chunk_rows, self._features_t, out=out)
        self.index.exclude_(k, r)
        return r

    def counted(self, k: int, r: paddle.Tensor) -> Products:
        """What e is made of: r, of sub-centers only the nearest of each class."""
        if not self._by_class:
            return r
        return Nearest(*greatest(r, scale=self.rows.inverse[k], group=self.shard.subcenters))

    def first(self, k: int, products: Products, *, total: paddle.Tensor, gradient: paddle.Tensor) -> paddle.Tensor:
        """e [B, G] in the first pass: its sum is added to total [G], and both sums follow the shift."""
        exponents, slope, which = self._exponents(k, products)
        self.shift.follow(exponents, total=total, gradient=gradient)
        e = exp_(self.shift.subtract_(exponents))
        add_(total, matmul(self.rows.weight[k] if which is None else paddle.ones(e.shape[:1], e.dtype), e))
        return self._by_row(k, e if slope is None else multiply_(e, slope), which)

    def again(self, k: int, products: Products) -> paddle.Tensor:
        """e [B, G] in the second pass."""
        return self._by_row(k, *self._made_again(k, products, at=None))

    def as_first(self, k: int, products: Products) -> paddle.Tensor:
        """e [B, G] in the second pass as `first` returned it, which `factor` brings to that of `again`."""
        return self._by_row(k, *self._made_again(k, products, at=k))

    def factor(self, k: int) -> paddle.Tensor | None:
        """[G], of e of chunk k as the first pass kept it; None for 1."""
        return self.shift.factor(k)

    def _made_again(self, k: int, products: Products, *, at: int | None) -> tuple[paddle.Tensor, RowNumbers | None]:
        exponents, slope, which = self._exponents(k, products)
        e = exp_(self.shift.subtract_(exponents, at))
        return e if slope is None else multiply_(e, slope), which

    def _by_row(self, k: int, e: paddle.Tensor, which: RowNumbers | None) -> paddle.Tensor:
        """[B, G] of what `_exponents` made of one row per class."""
        return e if which is None else spread_over(e, which, scale=self.rows.inverse[k])

    def _exponents(self, k: int, products: Products) -> Exponents:
        """log e_cn [B, G], but for the part of the shift that is not in the offset."""
        if isinstance(products, Nearest):
            return self._of_classes(k, products)
        if self._negatives is None:
            return Exponents(scale_rows(products, scale=self.rows.scale[k], offset=self.rows.offset[k]))
        return self._of_rows(self._negatives, k, products)

    def _of_rows(self, negatives: Negatives, k: int, r: paddle.Tensor) -> Exponents:
        inverse = self.rows.inverse[k]
        cosine = scale_rows(r, scale=inverse, offset=paddle.zeros_like(inverse))
        masks = negatives.dropped(cosine)
        if negatives.margin is None:
            exponents = scale_rows(r, scale=self.rows.scale[k], offset=self.rows.offset[k])
            return Exponents(drop_all_(exponents, masks))
        value, slope = negatives.values(cosine, self._target)
        scale = self.rows.scale[k] / inverse
        exponents = scale_rows(value, scale=scale, offset=self.rows.offset[k])
        self.index.exclude_(k, exponents)  # the change may have brought them near 0
        return Exponents(drop_all_(exponents, masks), slope)

    def _of_classes(self, k: int, nearest: Nearest) -> Exponents:
        """With a row for each class: a K-th of the exponentials. What they are divided by is put in by `_by_row`."""
        assert self._negatives is not None
        negatives, cosine = self._negatives._replace(subcenters=1), nearest.cosine
        masks = negatives.dropped(cosine)
        value, slope = negatives.values(cosine, self._target)
        scale, offset = self._of_cosine(cosine.shape[0])
        exponents = scale_rows(value, scale=scale, offset=offset)
        if negatives.margin is not None:
            self.index.exclude_(k, exponents, by_class=True)
        return Exponents(drop_all_(exponents, masks), slope, nearest.which)

    def _of_cosine(self, classes: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Scale and offset of so many classes. All chunks but the last have as many."""
        if classes not in self._expanded:
            scale, offset = self.rows.of_cosine
            self._expanded[classes] = scale.expand([classes]), offset.expand([classes])
        return self._expanded[classes]


def is_by_class(shard: Shard, precision: Precision) -> bool:
    """Whether of sub-centers only the nearest of each class are kept, and go into exponentials.

    A center near zero has an e / |w| of 10,000. It is within float16's range where |w| is in the exponent, and so in
    each row.
    """
    return shard.subcenters > 1 and not precision.needs_half_range


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
        self._sums = RowSums(self._own.row) if shard.subcenters > 1 else None
        self._own_sums = None if self._sums is None else self._sums.totals(own_parts * self._row_factor)
        if self._spread is not None:
            self._x = self._work.precision.operand(self._spread.with_row(self._x.values))
        self._plain = shard.split_by_chunk(paddle.full([shard.size], self._l2, self._row_factor.dtype))
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
            sums = self._sums_of_classes(k, e, products)
        else:
            parts = multiply(e, products)
            self._work.index.add_(k, parts, self._parts)
            sums = matmul(parts, self._row_factor)
        return add(self._plain[k], multiply(self._radial[k], sums))

    def _sums_of_classes(self, k: int, e: paddle.Tensor, nearest: Nearest) -> paddle.Tensor:
        """The sums [B] of t_n e_cn r_cn over the samples; e is 0 where a row is not the nearest of its class."""
        work = self._work
        sums = multiply(row_products_of_groups(e, nearest.cosine * self._row_factor), work.rows.weight[k])
        assert self._sums is not None
        self._sums.add_(sums, self._own_sums, first=k * work.shard.chunk_rows)
        return sums

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


def _split_rows(matrix: paddle.Tensor) -> list[paddle.Tensor]:
    return list(paddle.unbind(matrix)) if matrix.shape[0] else []


def _spread(values: paddle.Tensor, inside: paddle.Tensor) -> list[paddle.Tensor]:
    return list(paddle.unbind(paddle.where(inside, values, paddle.zeros_like(values)))) if inside.shape[0] else []
