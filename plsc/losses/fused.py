"""The sharded softmax of `plsc.losses.reference`, its gradients and the update of the shard, chunk by chunk.

The definition is in `plsc.losses.reference`; this computes the same and touches memory as little as it can.
G gathered batch, D embedding, S classes of this shard, B classes of a chunk.

For x_n the unit features, w_c the rows as they are, r_cn = <w_c, x_n> and t_n the share of a sample,

    e_cn = exp(s * r_cn / |w_c|) / |w_c|         so that  sum_c |w_c| e_cn  is the sum of exponentials,
    sum_c e_cn w_c  and  sum_n t_n e_cn x_n      are the gradients without their radial parts.

One pass of `forward` over the chunks makes r, e, the sums and the feature gradient, which needs no
division until the end. One pass of `backward` makes e again from r, and of each block of rows the
gradient, which the update rule takes at once: no gradient of the whole weight ever exists.

- Targets are taken out of the chunks (their e is 0) and added to the sums exactly. The gradient of a
  target, p - 1, is then minus the sum of the others: nothing cancels, however sure the network is.
- The part of a center's gradient along the center, which normalization removes, is a multiple of the
  row, as is weight decay. Both are one coefficient per row: gradient = coefficient * w + e^T X.
- Two modes: 'store' keeps r [S, G] between the passes, 'recompute' multiplies again.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle

from plsc.errors import ConfigError
from plsc.losses.margins.combined import Margin
from plsc.losses.ops import exp_
from plsc.losses.precision import Products
from plsc.losses.reference import NORM_EPSILON, Alone, Reducer, Targets, tangent, unit_rows
from plsc.losses.shard import Chunk, Shard

_C = paddle._C_ops  # the same operators as paddle.*, without the checks that cost as much as a small operator

# Up to this scale no maximum is needed to keep the exponentials in float32's range, e^-87 to e^88, with
# exponents lowered by _SHIFT: a sum of 1e8 classes is at most e^(64 - 8 + 18.4) = e^74.4, its product with
# 1e4 samples e^83.6; the least exponential is e^-72. Either leaves the norms of rows a factor of 1e4 at least.
SAFE_SCALE = 64.0
_SHIFT = 8.0
# Added to r where the class is the sample's own. Its exponential is 0, and 0 times it is still 0.
_EXCLUDED = -1e20
_LOWEST = -1e15  # under any logit, over any excluded one


class Logits:
    """The products r of each chunk: S rows in all ('store') or one chunk's again and again ('recompute')."""

    def __init__(self, shard: Shard, samples: int, store: bool) -> None:
        self.samples, self.store, self.size, self.chunk_rows = samples, store, shard.size, shard.chunk_rows
        rows = shard.size if store else min(shard.chunk_rows, shard.size)
        self._memory = paddle.empty([rows, samples], shard.weight.dtype)
        self.rows, self.channels, self.flat = [], [], []
        for start in range(0, shard.size, shard.chunk_rows):
            count = min(shard.chunk_rows, shard.size - start)
            rows = self._memory[start : start + count] if store else self._memory[:count]
            self.rows.append(rows)
            self.channels.append(rows.view([1, count, 1, samples]))
            self.flat.append(rows.view([count * samples]))

    def fits(self, shard: Shard, samples: int) -> bool:
        return (self.samples, self.size, self.chunk_rows) == (samples, shard.size, shard.chunk_rows)


class Places(NamedTuple):
    """Where the targets lie in the flat logits of each chunk.

    Attributes:
        inside: [chunks, G], whether the target is in the chunk.
        index: per chunk, [G]: its place, or some other. No two are the same: they are of different samples.
        excluded: per chunk, [G], what takes the targets out of it.
        some: per chunk, whether it may have any target inside.
    """

    inside: paddle.Tensor
    index: list[paddle.Tensor]
    excluded: list[paddle.Tensor]
    some: list[bool]


class RowTerms(NamedTuple):
    """Per class, cut by chunk: e = exp(scale * r + offset), weighted in the sum by `weight`."""

    scale: list[paddle.Tensor]
    offset: list[paddle.Tensor]
    weight: list[paddle.Tensor]
    plain: list[paddle.Tensor]  # the offset of a logit
    radial: paddle.Tensor | None  # [S], -s / |w|^2


class TargetTerms(NamedTuple):
    """Per sample, of its own class; only meaningful where it is owned.  All [G], rows [G, D]."""

    rows: paddle.Tensor
    product: paddle.Tensor  # r
    plain: paddle.Tensor  # logit without margin
    logit: paddle.Tensor
    slope: paddle.Tensor  # d psi / d cos over |w|, or 1
    owned: paddle.Tensor  # 1 or 0


class FusedState(NamedTuple):
    """What `backward` needs of `forward`; `loss` and `above` as in `plsc.losses.reference.State`."""

    loss: paddle.Tensor
    above: paddle.Tensor | None
    feature_gradient: paddle.Tensor  # [G, D], partial over shards
    features: paddle.Tensor
    share: paddle.Tensor  # t, [G]
    peak: paddle.Tensor | None
    terms: RowTerms
    targets: Targets
    places: Places
    target: TargetTerms
    entry: paddle.Tensor  # e of the targets, [G], negative: p - 1 in the unit of e


class FusedSoftmax:
    """The loss over one shard of the classes, with the update of the shard in `backward`.

    Args:
        margin: the margin on the target cosine; None for the softmax kind (raw products, optional bias).
        scale: s; has no part in the softmax kind.
        reducer: reductions over the ranks that hold the other shards.
        mode: 'store' or 'recompute'.
        products: how matrices are multiplied.
    """

    def __init__(
        self,
        margin: Margin | None,
        scale: float = 64.0,
        reducer: Reducer | None = None,
        mode: str = "store",
        products: Products | None = None,
    ) -> None:
        if mode not in ("store", "recompute"):
            raise ConfigError(f"logits mode '{mode}'; expected 'store' or 'recompute'")
        self.margin, self.reducer, self.mode = margin, reducer or Alone(), mode
        self.scale, self.products = scale if margin else 1.0, products or Products()
        self._safe = margin is not None and scale <= SAFE_SCALE and not self.products.narrow
        self._logits: Logits | None = None

    @paddle.no_grad()
    def forward(
        self, features: paddle.Tensor, labels: paddle.Tensor, shard: Shard, count_above: bool = False
    ) -> FusedState:
        """The loss, and the features' gradient; the shard stays as it is. Arguments as in `ShardedSoftmax`."""
        samples = features.shape[0]
        x, x_rate = unit_rows(features) if self.margin else (features, None)
        transposed = x.t().contiguous()
        targets = shard.locate(labels)
        target, terms = self._terms(x, targets, shard)
        places = _places(targets, shard, samples)
        if self._logits is None or not self._logits.fits(shard, samples):
            self._logits = None  # free the old before there is a new
            self._logits = Logits(shard, samples, self.mode == "store")
        known = self._count_threshold(target) if count_above else None
        total, peak, gradient, above = self._sweep(transposed, shard, terms, places, known)
        shift = paddle.full([], _SHIFT, x.dtype)
        if not self._safe:
            shift = self.reducer.all_reduce_max(peak.clone())
            correction = paddle.exp(peak - shift)
            total, gradient = total * correction, gradient * correction.unsqueeze(1)
        both = self.reducer.all_reduce_sum(paddle.stack([total, target.logit * target.owned], axis=1))
        others, logit = both[:, 0], both[:, 1]
        excess = paddle.log(others) + shift - logit
        if self.products.narrow:
            # Halfway from the greatest exponential, 1, to their sum, which the targets bring: both fit into float16.
            middle = paddle.sqrt(paddle.clip(others, min=1.0))
            shift = shift + paddle.log(middle)
            others, gradient = others / middle, gradient / middle.unsqueeze(1)
        losses = paddle.clip(excess, min=0.0) + paddle.log1p(paddle.exp(-excess.abs()))
        share = paddle.exp(shift - logit - losses) / samples
        entry = -others * target.slope * target.owned
        gradient += entry.unsqueeze(1) * target.rows
        gradient *= (share * self.scale).unsqueeze(1)
        if self.margin:
            gradient = tangent(gradient, x, x_rate)
        above = None if above is None else self.reducer.all_reduce_sum(above)
        return FusedState(
            losses.mean(),
            above,
            gradient,
            x,
            share,
            None if self._safe else shift,
            terms,
            targets,
            places,
            target,
            entry,
        )

    @paddle.no_grad()
    def backward(self, state: FusedState, shard: Shard, rate: float) -> paddle.Tensor:
        """Update the shard in place by the gradient of the loss that `forward` returned.

        Args:
            rate: learning rate.

        Returns:
            The features' gradient [G, D], partial over shards.
        """
        shard.step += 1
        rule, logits = shard.rule, self._logits
        prepared = rule.prepare(rate, shard.step, shard.weight.dtype)
        x = self.products.operand(state.features * (state.share * self.scale).unsqueeze(1))
        transposed = state.features.t().contiguous()
        coefficients, radial = self._coefficients(state, shard)
        entries = _spread(state.entry, state.places.inside)
        squares, bias_gradient, size = [], [], transposed.shape[0]
        for k, chunk in enumerate(shard.chunks):
            shard.fetch_rows(k)
            if not logits.store:
                self._multiply(k, chunk, transposed, state.places)
            e = self._exponentials(k, state.terms, state.peak)
            coefficient = coefficients[k]
            if self.margin:
                along = _C.matmul(_C.multiply(e, logits.rows[k]), state.share, False, False)
                coefficient = _C.add(coefficient, _C.multiply(radial[k], along))
            if state.places.some[k]:
                _C.index_add_(_C.reshape(e, [-1]), state.places.index[k], entries[k], 0)
            if shard.bias is not None:
                bias_gradient.append(paddle.matmul(e, state.share))
            # Splitting copies, and still takes half the time of slicing.
            parts = zip(_C.split(coefficient, chunk.sizes, 0), _C.split(e, chunk.sizes, 0), chunk.blocks)
            for part, e_rows, block in parts:
                shard.fetch_state(block)
                gradient = _C.reshape(_C.affine_channel(block.channels, part, block.zeros, "NCHW"), [-1, size])
                self.products.add_rows(gradient, e_rows, x)
                rule.apply(block.rows, gradient, block.state, prepared)
                shard.give_back(block)
                if self.margin:
                    squares.append(shard.block_squares(block))
        shard.keep_squares(squares)
        if bias_gradient:
            gradient = paddle.concat(bias_gradient) + shard.bias * rule.l2
            rule.apply(shard.bias, gradient, shard.slots("bias"), prepared)
        return state.feature_gradient

    def _terms(self, x: paddle.Tensor, targets: Targets, shard: Shard) -> tuple[TargetTerms, RowTerms]:
        owned = targets.owned.astype(x.dtype)
        if not shard.size:
            nothing = paddle.zeros([x.shape[0]], x.dtype)
            return TargetTerms(x, *[nothing] * 5), RowTerms([], [], [], [], None)
        rows = shard.rows_of(targets)
        product = (rows * x).sum(axis=1)
        if not self.margin:
            one, zero = paddle.ones([shard.size], x.dtype), paddle.zeros([shard.size], x.dtype)
            offset = zero if shard.bias is None else shard.bias
            logit = product + paddle.index_select(offset, targets.row)
            ones, offset = shard.cut(one), shard.cut(offset)
            return (
                TargetTerms(rows, product, logit, logit, paddle.ones_like(product), owned),
                RowTerms(ones, offset, ones, offset, None),
            )
        lengths = -0.5 * paddle.log(shard.squares(targets.row, rows) + NORM_EPSILON)  # -log |w|
        inverse = paddle.exp(lengths)
        # The rows at hand, not the norms kept: the margin is steep where a cosine is near 1.
        row_inverse = unit_rows(rows)[1].squeeze(1)
        cosine = product * row_inverse
        psi, slope = self.margin(cosine)
        zero = paddle.zeros_like(lengths)
        offset = lengths - _SHIFT if self._safe else lengths
        return (
            TargetTerms(rows, product, cosine * self.scale, psi * self.scale, slope * row_inverse, owned),
            RowTerms(
                shard.cut(inverse * self.scale),
                shard.cut(offset),
                shard.cut(1.0 / inverse),
                shard.cut(zero),
                inverse * inverse * -self.scale,
            ),
        )

    def _count_threshold(self, target: TargetTerms) -> paddle.Tensor:
        return self.reducer.all_reduce_sum(target.plain * target.owned)

    def _sweep(
        self, transposed: paddle.Tensor, shard: Shard, terms: RowTerms, places: Places, threshold: paddle.Tensor | None
    ) -> tuple[paddle.Tensor, ...]:
        """Over all chunks: (sum of e [G], its peak [G], sum of e w [G, D], classes over the threshold [G])."""
        size, samples = transposed.shape
        total, peak = paddle.zeros([samples], transposed.dtype), paddle.full([samples], _LOWEST, transposed.dtype)
        gradient = paddle.zeros([samples, size], transposed.dtype)
        part = paddle.empty_like(gradient)
        above = None if threshold is None else paddle.zeros([samples], "int64")
        for k, chunk in enumerate(shard.chunks):
            shard.fetch_rows(k)
            self._multiply(k, chunk, transposed, places)
            if threshold is not None:
                above += self._count_above(k, terms, threshold)
            if not self._safe:
                # The sums so far are moved to the new peak, as in online softmax (Milakov and Gimelshein, 2018).
                old, peak = peak, paddle.maximum(peak, self._exponents(k, terms).max(axis=0))
                correction = paddle.exp(old - peak)
                total *= correction
                gradient *= correction.unsqueeze(1)
            e = self._exponentials(k, terms, None if self._safe else peak)
            _C.add_(total, _C.matmul(terms.weight[k], e, False, False))
            self.products.features(e, chunk.rows, part)
            _C.add_(gradient, part)
        return total, peak, gradient, above

    def _coefficients(self, state: FusedState, shard: Shard) -> tuple[list[paddle.Tensor], list[paddle.Tensor]]:
        """(of each row in its gradient, without the excluded samples [S]; of the sums over the others [S]), cut."""
        coefficient = paddle.full([shard.size], shard.rule.l2, state.features.dtype)
        if not self.margin or not shard.size:
            return shard.cut(coefficient), []
        radial, target = state.terms.radial, state.target
        along = state.share * state.entry * target.product
        along *= paddle.index_select(radial, state.targets.row)
        _C.index_add_(coefficient, state.targets.row, along, 0)
        return shard.cut(coefficient), shard.cut(radial)

    def _count_above(self, k: int, terms: RowTerms, threshold: paddle.Tensor) -> paddle.Tensor:
        """[G]: classes of the chunk whose logit without margin is greater than the threshold [G]."""
        logits = _C.affine_channel(self._logits.channels[k], terms.scale[k], terms.plain[k], "NCHW")
        return (_C.reshape(logits, [-1, self._logits.samples]) > threshold).astype("int64").sum(axis=0)

    def _multiply(self, k: int, chunk: Chunk, transposed: paddle.Tensor, places: Places) -> None:
        """r of a chunk into its buffer, targets excluded."""
        logits = self._logits
        self.products.logits(chunk.rows, transposed, logits.rows[k])
        if places.some[k]:
            _C.index_add_(logits.flat[k], places.index[k], places.excluded[k], 0)

    def _exponents(self, k: int, terms: RowTerms) -> paddle.Tensor:
        exponents = _C.affine_channel(self._logits.channels[k], terms.scale[k], terms.offset[k], "NCHW")
        return _C.reshape(exponents, [-1, self._logits.samples])

    def _exponentials(self, k: int, terms: RowTerms, peak: paddle.Tensor | None) -> paddle.Tensor:
        """e [B, G] of a chunk from its r, over e^peak."""
        exponents = self._exponents(k, terms)
        return exp_(exponents if peak is None else _C.subtract_(exponents, peak))


def _places(targets: Targets, shard: Shard, samples: int) -> Places:
    starts = paddle.arange(0, shard.size, shard.chunk_rows, dtype="int64").unsqueeze(1)
    row = targets.row.unsqueeze(0) - starts
    inside = (row >= 0) & (row < shard.chunk_rows) & targets.owned.unsqueeze(0)
    index = paddle.where(inside, row, paddle.zeros_like(row)) * samples + paddle.arange(samples, dtype="int64")
    excluded = paddle.full([samples], _EXCLUDED, shard.weight.dtype)
    # On a CPU it is worth looking: few chunks have a target. On a GPU looking would mean waiting.
    look = shard.size and inside.place.is_cpu_place()
    some = inside.any(axis=1).tolist() if look else [True] * inside.shape[0]
    return Places(inside, paddle.unbind(index) if shard.size else [], _spread(excluded, inside), some)


def _spread(values: paddle.Tensor, inside: paddle.Tensor) -> list[paddle.Tensor]:
    """Per chunk [G]: the values [G] of the targets inside it, 0 for the others."""
    return paddle.unbind(paddle.where(inside, values, paddle.zeros_like(values))) if inside.shape[0] else []
