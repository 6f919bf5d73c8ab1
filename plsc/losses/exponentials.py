"""From the products r of a chunk to its exponentials e; `plsc.losses.fused` has the equations and the letters."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import paddle

from plsc.losses.logit_ops import RowNumbers, greatest, spread_over
from plsc.losses.negatives import Negatives, drop_all_
from plsc.losses.ops import add_, add_at_, exp_, matmul, multiply_, scale_rows
from plsc.losses.precision import Factor, Precision
from plsc.losses.reference import Targets
from plsc.losses.shard import Shard
from plsc.losses.shift import Shift

# Added to r where the class is the sample's own: its exponential is 0, and so is that times this.
_EXCLUDED = -1e20


class LogitBuffer:
    """Memory for r of each chunk: S rows in all where r is stored, or those of one chunk at a time.

    Args:
        shard: the class centers.
        samples: G.
        stored: what is kept of all chunks: 'r', 'nearest', or 'nothing'.

    Attributes:
        chunks: r [B, G] of each chunk.
        nearest: what was made of r of each chunk in the last step, whose memory the next one uses; None for nothing.
    """

    def __init__(self, shard: Shard, samples: int, *, stored: str) -> None:
        self._shape = (samples, shard.size, shard.chunk_rows)
        self._stores_nearest = stored == "nearest"
        rows = shard.size if stored == "r" else min(shard.chunk_rows, shard.size)
        memory = paddle.empty([rows, samples], shard.dtype)
        self.chunks: list[paddle.Tensor] = []
        for start in range(0, shard.size, shard.chunk_rows):
            count = min(shard.chunk_rows, shard.size - start)
            self.chunks.append(memory[start : start + count] if stored == "r" else memory[:count])
        self.nearest: list[Nearest | None] = [None] * len(self.chunks)

    def fits(self, shard: Shard, samples: int) -> bool:
        return self._shape == (samples, shard.size, shard.chunk_rows)

    def keep(self, k: int, nearest: Nearest) -> Nearest:
        """Keep what was made of r of chunk k, where that is stored; returns it."""
        if self._stores_nearest:
            self.nearest[k] = nearest
        return nearest


class CosineTerms(NamedTuple):
    """Scale, offset and weight of `RowTerms` where a cosine is in r's place; [1] for all classes, or one per class."""

    scale: paddle.Tensor
    offset: paddle.Tensor
    weight: paddle.Tensor


class RowTerms(NamedTuple):
    """What turns r of a chunk into e = exp(scale * r + offset), per class; lists hold one [B] per chunk.

    Attributes:
        scale: s / |w|.
        inverse: 1 / |w|.
        offset: -log |w|, minus the constant part of the shift.
        weight: |w|, the factor of e in the sum of exponentials.
        logit_offset: the offset of a logit z = scale * r + logit_offset.
        radial: [S], -1 / |w|^2; None for softmax.
        of_cosine: [1] each; of meaning where all classes have these.
    """

    scale: list[paddle.Tensor]
    inverse: list[paddle.Tensor]
    offset: list[paddle.Tensor]
    weight: list[paddle.Tensor]
    logit_offset: list[paddle.Tensor]
    radial: paddle.Tensor | None
    of_cosine: CosineTerms


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

    Attributes:
        is_by_class: whether `counted` gives the nearest sub-center of each class.
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
        self.is_by_class = is_by_class(shard, precision)
        self._expanded: dict[int, CosineTerms] = {}
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
        if not self.is_by_class:
            return r
        earlier = None if self.buffer is None else self.buffer.nearest[k]
        found = Nearest(*greatest(r, scale=self.rows.inverse[k], group=self.shard.subcenters, out=earlier))
        return found if self.buffer is None else self.buffer.keep(k, found)

    def first(self, k: int, products: Products, *, total: paddle.Tensor, gradient: paddle.Tensor) -> paddle.Tensor:
        """e [B, G] in the first pass: its sum is added to total [G], and both sums follow the shift."""
        exponents, slope, which = self._exponents(k, products)
        self.shift.follow(exponents, total=total, gradient=gradient)
        e = exp_(self.shift.subtract_(exponents))
        add_(total, matmul(self.rows.weight[k] if which is None else self._of_cosine(e.shape[0]).weight, e))
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
        if which is None:
            return e
        out = None if self.buffer is None else self.buffer.chunks[k]  # of r, which is needed no more
        return spread_over(e, which, scale=self.rows.inverse[k], out=out)

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
        terms = self._of_cosine(cosine.shape[0])
        exponents = scale_rows(value, scale=terms.scale, offset=terms.offset)
        if negatives.margin is not None:
            self.index.exclude_(k, exponents, by_class=True)
        return Exponents(drop_all_(exponents, masks), slope, nearest.which)

    def _of_cosine(self, classes: int) -> CosineTerms:
        """For so many classes. All chunks but the last have as many."""
        if classes not in self._expanded:
            self._expanded[classes] = CosineTerms(*(term.expand([classes]) for term in self.rows.of_cosine))
        return self._expanded[classes]


def is_by_class(shard: Shard, precision: Precision) -> bool:
    """Whether of sub-centers only the nearest of each class are kept, and go into exponentials.

    A center near zero has an e / |w| of 10,000. It is within float16's range where |w| is in the exponent, and so in
    each row.
    """
    return shard.subcenters > 1 and not precision.needs_half_range


def _split_rows(matrix: paddle.Tensor) -> list[paddle.Tensor]:
    return list(paddle.unbind(matrix)) if matrix.shape[0] else []


def _spread(values: paddle.Tensor, inside: paddle.Tensor) -> list[paddle.Tensor]:
    return list(paddle.unbind(paddle.where(inside, values, paddle.zeros_like(values)))) if inside.shape[0] else []
