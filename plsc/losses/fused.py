"""The sharded softmax of `plsc.losses.reference`, chunk by chunk: the same numbers with little memory traffic.

G gathered batch, D embedding, S classes of this shard, B classes of a chunk, b of a block. For sample n with label y:

    x_n    unit feature                                  w_c    class center as stored; |w_c| read as 1e-4 at least
    r_cn = <w_c, x_n>                                    z_cn = s r_cn / |w_c|
    z_yn = s psi_n, the logit with margin                shift_n: see plsc.losses.shift

    e_cn     = exp(z_cn - shift_n) / |w_c|               for every class but the sample's own, where e_yn = 0
    others_n = sum_c |w_c| e_cn                          the exponentials of all classes but the own
    Z_n      = others_n + exp(z_yn - shift_n)
    t_n      = omega_n / (G Z_n)                         omega_n: 1, less for short features; see `reference`
    loss_n   = log(others_n + exp(z_yn - shift_n)) + shift_n - z_yn

The own class enters once, exactly. Its gradient dL/dz_yn = omega_n (p_yn - 1) / G = -others_n t_n is a sum of positive
numbers, so nothing cancels however small the loss is. With the target term

    e_yn     = -others_n dpsi / |w_y|                    dpsi = d psi_n / d cos

in y's place, both gradients are plain products of e, from which the parts along x_n and along w_c are removed, since
lengths do not count:

    dL/dx_n = s t_n sum_c e_cn w_c                       then `by_rows`; + (d psi_n / d |x_n|) (-s t_n others_n) x_n
    g_c     = s sum_n t_n e_cn x_n
    dL/dw_c = g_c - radial_c w_c                         radial_c = <g_c, w_c> / |w_c|^2

L2 regularization is a multiple of the row too: the gradient of a row is g_c + (l2 - radial_c) w_c.

Softmax is the same with x_n the feature as it is, z_cn = r_cn + b_c, |w_c| read as 1 and radial_c = 0.

The first pass over the chunks makes r, e, others and the feature gradient, which needs the factor t_n only at the end.
The second pass makes the gradient of one block of rows after the other; the gradient of the whole weight never exists.
It has two ways, and takes the one that moves fewer numbers through memory:

    by logits   on CPUs, where a chunk stays in the cache, and where G < D: radial_c = s / |w_c|^2 sum_n t_n e_cn r_cn.
                'store' keeps r [S, G], of which the second pass makes e again; the target terms are put into e. Of
                sub-centers it keeps the nearest of each class, [S / K, G].
    by rows     on GPUs where G >= D, and with half-precision products: radial_c is the product of g_c and w_c. 'store'
                keeps e [S, G] as the products take it, and no exponential is made twice. The target terms' part of g_c
                is added in float32: beside e, which is 1 at most for float16, e_yn may be beyond float16.

'recompute' keeps neither and multiplies again, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import paddle

from plsc.errors import ConfigError
from plsc.losses.exponentials import (
    CosineTerms,
    Exponentials,
    LogitBuffer,
    Products,
    RowTerms,
    TargetIndex,
    is_by_class,
)
from plsc.losses.margins import Margin
from plsc.losses.negatives import Negatives, NegativesMargin
from plsc.losses.ops import no_grad
from plsc.losses.passes import ByLogits, ByRows, FirstPass, OwnTerms
from plsc.losses.precision import Precision
from plsc.losses.reference import (
    Directions,
    Reducer,
    SingleRank,
    TargetCosines,
    Targets,
    all_cosines,
    as_directions,
    by_rows,
    sample_weights,
    target_logits,
    with_penalty,
)
from plsc.losses.shard import Block, Shard
from plsc.losses.shift import choose_shift
from plsc.losses.smoothing import OwnClass, Smoothing, smooth
from plsc.losses.spread import Spread
from plsc.metrics.embeddings import CENTER_FLOOR, EPSILON

# Of [B, G], [B, D] and [G, D]: how many matrices of float32 a pass holds at once, at most, beside what it keeps.
# Measured with a chunk as one block; tests/losses/test_memory.py measures it again.
_CHUNK_SHARES = (3.5, 4.0, 6.0)
# Of [B, G] in addition, where some of the classes leave the sum, and where their cosines are changed.
_DROPPING_SHARE, _CHANGING_SHARE = 2.0, 5.0
# Of a class and a sample with sub-centers: the nearest's cosine, and its number.
_NEAREST_BYTES = 4 + 1


class Memory(NamedTuple):
    """Bytes of a step, beside weight and optimizer state.

    Attributes:
        kept: between the passes.
        temporary: of one chunk, within a pass.
    """

    kept: int
    temporary: int


class TargetTerms(NamedTuple):
    """Of each sample's own class, all [G] but `rows`; of meaning only where `owned` is 1.

    Attributes:
        rows: [G, D], w_y.
        product: r_yn.
        plain: the logit without margin; right for all samples where the margin asks for it.
        logit: z_yn.
        derivative: (d psi / d cos) / |w_y|; 1 for softmax.
        by_norm: d psi / d |x|; None for 0.
        owned: 1 where the class is one of this shard's, else 0.
        psi: of all samples on every rank, where the margin needs all cosines.
        inverse_norm: 1 / |w_y|; 1 for softmax.
    """

    rows: paddle.Tensor
    product: paddle.Tensor
    plain: paddle.Tensor
    logit: paddle.Tensor
    derivative: paddle.Tensor
    by_norm: paddle.Tensor | None
    owned: paddle.Tensor
    psi: paddle.Tensor
    inverse_norm: paddle.Tensor


class Ending(NamedTuple):
    """What the sums over all classes come to; all [G].

    Attributes:
        losses: of each sample.
        by_psi: what the derivative of L by psi is to `row_factor`.
        row_factor: what the derivatives of L by the cosines are to e |w|.
        by_bias: 0-d, the derivative of L by the bias of a binary loss; None for other losses.
    """

    losses: paddle.Tensor
    by_psi: paddle.Tensor
    row_factor: paddle.Tensor
    by_bias: paddle.Tensor | None = None


class FusedState(NamedTuple):
    """The result of `FusedSoftmax.loss_and_feature_gradient`, and what `row_gradients` needs of it.

    Attributes:
        loss: L, 0-d, the same on every rank.
        feature_gradient: [G, D], partial over shards.
        num_greater: as in `plsc.losses.reference.State`.
        shard: the shard that the loss was computed on.
        work: its chunks, as the first pass left them.
        kept: of each chunk, with 'store': by logits what e is made of, by rows e.
        own: terms of the own classes.
        row_factor: [G], s t_n.
        by_bias: as in `Ending`.
        spread: what label smoothing adds to the gradients by the rows; None without it.
        cosines: of the targets; None for softmax.
    """

    loss: paddle.Tensor
    feature_gradient: paddle.Tensor
    num_greater: paddle.Tensor | None
    shard: Shard
    work: Exponentials
    kept: list[Products]
    own: OwnTerms
    row_factor: paddle.Tensor
    by_bias: paddle.Tensor | None = None
    spread: Spread | None = None
    cosines: TargetCosines | None = None


class FusedSoftmax:
    """The loss over one shard of the classes, chunk by chunk.

    Args:
        margin: the margin on the target cosine; None for softmax (plain products, optional bias).
        scale: s, the factor of the cosines; not used for softmax.
        reducer: reductions over the ranks that hold the other shards.
        logits: 'store' or 'recompute', see the module.
        precision: how matrices are multiplied.
        by_rows: which way the second pass goes, see the module; None to choose. Half-precision products go by rows.
        filter_above: negatives with a greater cosine leave the sum; None for none.
        smoothing: the part of each label that is spread over all classes, see `plsc.losses.smoothing`.

    Raises:
        ConfigError: another value of `logits`.

    Example:
        >>> softmax, shard = FusedSoftmax(CombinedMargin(m2=0.5)), Shard(weight, Momentum())
        >>> state = softmax.loss_and_feature_gradient(features, labels, shard=shard)
        >>> shard.update(softmax.row_gradients(state, l2=shard.optimizer.l2), learning_rate=0.1)
    """

    def __init__(
        self,
        margin: Margin | None,
        scale: float = 64.0,
        *,
        reducer: Reducer | None = None,
        logits: str = "store",
        precision: Precision | None = None,
        by_rows: bool | None = None,
        filter_above: float | None = None,
        smoothing: float = 0.0,
    ) -> None:
        if logits not in ("store", "recompute"):
            raise ConfigError(f"logits mode '{logits}'; expected 'store' or 'recompute'")
        self._margin, self._reducer, self._store = margin, reducer or SingleRank(), logits == "store"
        self._scale, self._precision = (1.0 if margin is None else scale), precision or Precision()
        self._row_terms = _product_row_terms if margin is None else _cosine_row_terms
        changing = margin if isinstance(margin, NegativesMargin) else None
        self._negatives = Negatives(filter_above=filter_above, margin=changing)
        bound = 1.0 if changing is None else changing.negatives_bound
        self._shift = choose_shift(
            None if margin is None else bound * scale, half_range=self._precision.needs_half_range
        )
        self._by_rows = True if self._precision.is_half else by_rows
        self._buffer: LogitBuffer | None = None
        self._smoothing = smoothing

    @no_grad
    def loss_and_feature_gradient(
        self,
        features: paddle.Tensor,
        labels: paddle.Tensor,
        *,
        shard: Shard,
        weights: paddle.Tensor | None = None,
        count_above: bool = False,
    ) -> FusedState:
        """The loss and its gradient by the features; the first pass over the chunks. The shard does not change.

        Args:
            features: [G, D], the same on every rank.
            labels: [G] int64 global class ids in [0, C), the same on every rank; repeats are allowed.
            shard: the class centers.
            weights: [G], v_n, of mean 1 and the same on every rank: L is the mean of v_n L_n; None for 1.
            count_above: also count `num_greater`, for acc1 and acc5.
        """
        directions = as_directions(features, self._margin, floor=EPSILON)
        targets = nearest_targets(directions.rows, shard.locate(labels), shard)
        x = directions.rows
        target = self._target_terms(directions, labels, targets, shard)
        threshold = self._reducer.all_reduce_sum(target.plain * target.owned) if count_above else None
        work = self._start(shard, x, targets=targets, psi=target.psi)
        first = FirstPass(work, threshold=threshold, keep=self._store, sum_rows=self._smoothing > 0.0)
        gradient = first.gradient
        in_gradients = sample_weights(features, self._margin) * (1.0 if weights is None else weights)
        ending = self._end(work, first, logit=target.logit * target.owned, weights=in_gradients)
        losses, by_psi = ending.losses, ending.row_factor * ending.by_psi

        target_term = ending.by_psi * target.derivative * target.owned
        gradient += target_term.unsqueeze(1) * target.rows
        gradient *= ending.row_factor.unsqueeze(1)
        smoothing = self._smooth(work, first, target=target, row=targets.row, weights=in_gradients)
        if smoothing is not None:
            losses, by_psi = losses + smoothing.losses, by_psi + smoothing.by_psi
            gradient += smoothing.gradient
        gradient = by_rows(gradient, directions)
        if target.by_norm is not None:
            gradient += (by_psi * target.by_norm * target.owned).unsqueeze(1) * x
        greater = None if first.greater is None else self._reducer.all_reduce_sum(first.greater)
        own = OwnTerms(targets.row, target_term, target.product)
        loss = losses.mean() if weights is None else (losses * weights).mean()
        loss, gradient = with_penalty(
            self._margin, loss, gradient, features=features, directions=directions, targets=targets
        )
        spread = None if smoothing is None else smoothing.spread
        cosines = None if self._margin is None else TargetCosines(target.plain, target.owned, self._scale)
        return FusedState(
            loss, gradient, greater, shard, work, first.kept, own, ending.row_factor, ending.by_bias, spread, cosines
        )

    def _smooth(
        self,
        work: Exponentials,
        first: FirstPass,
        *,
        target: TargetTerms,
        row: paddle.Tensor,
        weights: paddle.Tensor,
    ) -> Smoothing | None:
        """What label smoothing adds; None without it."""
        if first.row_sum is None:
            return None
        own = OwnClass(
            row,
            target.owned,
            target.rows,
            target.product,
            target.plain,
            target.logit,
            target.derivative,
            target.inverse_norm,
        )
        return smooth(
            self._smoothing,
            work,
            row_sum=first.row_sum,
            own=own,
            weights=weights,
            scale=self._scale,
            reducer=self._reducer,
        )

    def _start(self, shard: Shard, x: paddle.Tensor, *, targets: Targets, psi: paddle.Tensor) -> Exponentials:
        """What turns products into e."""
        shift = self._shift(x.shape[0], x.dtype)
        return Exponentials(shift=shift, **self._terms(shard, x, targets=targets, psi=psi, shift=shift.constant))

    def _terms(
        self, shard: Shard, x: paddle.Tensor, *, targets: Targets, psi: paddle.Tensor, shift: float
    ) -> dict[str, Any]:
        """The arguments of `Exponentials`, but for the shift."""
        negatives = self._negatives._replace(subcenters=shard.subcenters)
        return {
            "shard": shard,
            "features": x,
            "rows": self._row_terms(shard, self._scale, shift),
            "index": TargetIndex.of(targets, shard),
            "precision": self._precision,
            "buffer": self._fitting_buffer(shard, x.shape[0]),
            "negatives": None if negatives.changes_nothing else negatives,
            "target": psi,
        }

    def _end(self, work: Exponentials, first: FirstPass, *, logit: paddle.Tensor, weights: paddle.Tensor) -> Ending:
        """Losses and factors of softmax, from the sums of the first pass; they and its gradient follow the shift.

        Args:
            work: of the chunks.
            first: their sums.
            logit: [G], z_yn where the target is owned, else 0.
            weights: [G], omega.
        """
        shift, samples = work.shift, logit.shape[0]
        shift.agree(self._reducer, total=first.total, gradient=first.gradient)
        others, logit = paddle.unbind(self._reducer.all_reduce_sum(paddle.stack([first.total, logit])))
        # loss_n = log(1 + exp(excess)), written so that neither end overflows.
        excess = paddle.log(others) + shift.value - logit
        losses = paddle.clip(excess, min=0.0) + paddle.log1p(paddle.exp(-excess.abs()))
        # Without other classes there is neither loss nor gradient. Computed, t may be infinite, and infinity times 0 is
        # NaN. The operator is <=, since Paddle compares floats for equality with a tolerance of 1e-8.
        alone, zeros = others <= 0.0, paddle.zeros_like(others)
        losses = paddle.where(alone, zeros, losses)
        shift.center(others, gradient=first.gradient)
        t = paddle.exp(shift.value - logit - losses) / samples * weights
        t = paddle.where(alone, zeros, t)
        return Ending(losses, -others, t * self._scale)

    def row_gradients(
        self, state: FusedState, *, l2: float = 0.0, bias_l2: float | None = None
    ) -> Iterator[tuple[Block, paddle.Tensor]]:
        """(block, gradient [b, D]) of each block of rows, then of the bias if there is one; the second pass.

        A block's rows may be updated as soon as they were yielded. The state is used up by the next call of
        `loss_and_feature_gradient`.

        Args:
            state: of the last `loss_and_feature_gradient`.
            l2: this multiple of each row is added to its gradient.
            bias_l2: the same of the bias; by default `l2`.
        """
        second = ByRows if state.work.buffer is None else ByLogits
        return second(
            state.work,
            state.own,
            row_factor=state.row_factor,
            l2=l2,
            bias_l2=l2 if bias_l2 is None else bias_l2,
            kept=state.kept,
            spread=state.spread,
        ).run()

    def memory(self, shard: Shard, samples: int) -> Memory:
        """What a step on so many samples takes beside weight and optimizer state."""
        width, rows = shard.width, min(shard.chunk_rows, shard.size)
        number = 2 if self._precision.is_half else 4
        negatives = self._negatives._replace(subcenters=shard.subcenters)
        extra = 0.0 if negatives.changes_nothing else _DROPPING_SHARE
        extra = extra if negatives.margin is None else _CHANGING_SHARE
        chunk = (
            (_CHUNK_SHARES[0] + extra) * rows * samples
            + _CHUNK_SHARES[1] * rows * width
            + _CHUNK_SHARES[2] * samples * width
        )
        stored = number * shard.size * samples
        if self._keeps_nearest(shard, samples):
            stored = _NEAREST_BYTES * shard.size // shard.subcenters * samples
        return Memory(stored if self._store else 0, int(4 * chunk))

    def _goes_by_rows(self, shard: Shard, samples: int) -> bool:
        return shard.place.is_gpu_place() and samples >= shard.width if self._by_rows is None else self._by_rows

    def _keeps_nearest(self, shard: Shard, samples: int) -> bool:
        """Whether 'store' keeps the nearest sub-centers in place of r or e."""
        return is_by_class(shard, self._precision) and not self._goes_by_rows(shard, samples)

    def _fitting_buffer(self, shard: Shard, samples: int) -> LogitBuffer | None:
        """Memory for r; None where the second pass goes by rows."""
        if self._goes_by_rows(shard, samples):
            self._buffer = None
        elif self._buffer is None or not self._buffer.fits(shard, samples):
            self._buffer = None  # free the old memory first
            stored = "nearest" if self._keeps_nearest(shard, samples) else "r"
            self._buffer = LogitBuffer(shard, samples, stored=stored if self._store else "nothing")
        return self._buffer

    def _target_terms(
        self, directions: Directions, labels: paddle.Tensor, targets: Targets, shard: Shard
    ) -> TargetTerms:
        rows, owned = shard.target_rows(targets), targets.owned.astype(directions.rows.dtype)
        # Their norms as they are now, not those kept from the update: the margin is steep where a cosine is near 1.
        w = as_directions(rows, self._margin, floor=CENTER_FLOOR)
        product = (rows * directions.rows).sum(axis=1)
        inverse_norm = paddle.ones_like(product) if w.inverse_norms is None else w.inverse_norms.squeeze(1)
        plain = product * inverse_norm
        if shard.bias is not None and shard.size:
            plain += paddle.index_select(shard.bias, targets.row)
        plain = all_cosines(self._margin, plain, targets, self._reducer)
        every, by_cosine, by_norm = target_logits(self._margin, plain, features=directions, labels=labels)
        psi = every
        if self._margin is not None:
            # What a margin returns for the other ranks' classes may be NaN or infinite, which times 0 is not 0.
            psi, by_cosine = _where_owned(psi, targets), _where_owned(by_cosine, targets)
            by_norm = None if by_norm is None else _where_owned(by_norm, targets)
        return TargetTerms(
            rows,
            product,
            plain * self._scale,
            psi * self._scale,
            by_cosine * inverse_norm,
            by_norm,
            owned,
            every,
            inverse_norm,
        )


def nearest_targets(x: paddle.Tensor, targets: Targets, shard: Shard) -> Targets:
    """Of the sub-centers of each sample's own class the one with the greatest cosine, the first at ties.

    Args:
        x: [G, D] unit features.
        targets: the first row of each class.
        shard: the class centers.
    """
    best, found = targets, _cosines(x, targets, shard) if shard.subcenters > 1 else None
    for j in range(1, shard.subcenters):
        other = Targets(targets.owned, targets.row + j)
        cosine = _cosines(x, other, shard)
        best = Targets(targets.owned, paddle.where(cosine > found, other.row, best.row))
        found = paddle.maximum(cosine, found)
    return best


def _cosines(x: paddle.Tensor, targets: Targets, shard: Shard) -> paddle.Tensor:
    rows = shard.target_rows(targets)
    return (rows * x).sum(axis=1) * paddle.rsqrt(paddle.clip((rows * rows).sum(axis=1), min=CENTER_FLOOR**2))


def _where_owned(values: paddle.Tensor, targets: Targets) -> paddle.Tensor:
    """[G]: the values where the target is owned, else 0."""
    return paddle.where(targets.owned, values, paddle.zeros_like(values))


def _cosine_row_terms(shard: Shard, scale: float, shift: float) -> RowTerms:
    minus_log_norm = -0.5 * paddle.log(paddle.clip(shard.squared_norms(), min=CENTER_FLOOR**2))
    inverse_norm = paddle.exp(minus_log_norm)
    split = shard.split_by_chunk
    return RowTerms(
        split(inverse_norm * scale),
        split(inverse_norm),
        split(minus_log_norm - shift),
        split(1.0 / inverse_norm),
        split(paddle.zeros_like(inverse_norm)),
        -inverse_norm * inverse_norm,
        _of_cosine(shard, scale, -shift),
    )


def _product_row_terms(shard: Shard, scale: float, shift: float) -> RowTerms:
    ones = shard.split_by_chunk(paddle.full([shard.size], scale, shard.dtype))
    bias = paddle.zeros([shard.size], shard.dtype) if shard.bias is None else shard.bias
    logit_offset = shard.split_by_chunk(bias)
    return RowTerms(
        ones, ones, shard.split_by_chunk(bias - shift), ones, logit_offset, None, _of_cosine(shard, scale, -shift)
    )


def _of_cosine(shard: Shard, scale: float, offset: float) -> CosineTerms:
    return CosineTerms(*(paddle.full([1], value, shard.dtype) for value in (scale, offset, 1.0)))
