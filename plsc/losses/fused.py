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
numbers, so nothing cancels however small the loss is. With dpsi = d psi_n / d cos and y's entry of e set to the target
term

    e_yn     = -others_n dpsi / |w_y|

both gradients are plain products of e, from which the parts along x_n and along w_c are removed, since lengths do not
count:

    dL/dx_n = s t_n sum_c e_cn w_c                       then `by_rows`; + (d psi_n / d |x_n|) (-s t_n others_n) x_n
    dL/dw_c = s sum_n t_n e_cn x_n - radial_c w_c        radial_c = s / |w_c|^2 sum_n t_n e_cn r_cn

The radial part and L2 regularization are both multiples of the row: the gradient of a row is
(l2 - radial_c) w_c + sum_n e_cn (s t_n x_n).

Softmax is the same with x_n the feature as it is, z_cn = r_cn + b_c, |w_c| read as 1 and radial_c = 0.

The first pass over the chunks makes r, e, others and the feature gradient, which needs the factor t_n only at the end.
The second pass makes e again from r and from it the gradient of one block of rows after the other; the gradient of the
whole weight never exists. In between, 'store' keeps r [S, G]; 'recompute' multiplies again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import paddle

from plsc.errors import ConfigError
from plsc.losses.margins import Margin
from plsc.losses.ops import add, add_, add_at_, exp_, matmul, multiply, no_grad, scale_rows, split_rows
from plsc.losses.precision import Precision
from plsc.losses.reference import (
    CENTER_FLOOR,
    Directions,
    Reducer,
    SingleRank,
    Targets,
    as_directions,
    by_rows,
    sample_weights,
    target_logits,
)
from plsc.losses.shard import Block, Chunk, Shard
from plsc.losses.shift import Shift, choose_shift
from plsc.metrics.embeddings import EPSILON

# Added to r where the class is the sample's own: its exponential is 0, and so is that times this.
_EXCLUDED = -1e20


class LogitBuffer:
    """Memory for r of each chunk: S rows in all ('store'), or those of one chunk at a time ('recompute').

    Attributes:
        chunks: r [B, G] of each chunk.
    """

    def __init__(self, shard: Shard, samples: int, *, store: bool) -> None:
        self._shape = (samples, shard.size, shard.chunk_rows)
        rows = shard.size if store else min(shard.chunk_rows, shard.size)
        memory = paddle.empty([rows, samples], shard.weight.dtype)
        self.chunks: list[paddle.Tensor] = []
        for start in range(0, shard.size, shard.chunk_rows):
            count = min(shard.chunk_rows, shard.size - start)
            self.chunks.append(memory[start : start + count] if store else memory[:count])

    def fits(self, shard: Shard, samples: int) -> bool:
        return self._shape == (samples, shard.size, shard.chunk_rows)


class TargetIndex(NamedTuple):
    """Where the targets lie in r [B, G] of each chunk.

    Attributes:
        inside: [chunks, G], whether the target is in the chunk.
        flat: per chunk, [G] offsets in the flattened r, in column n for sample n: the target's row where it is in the
            chunk, else row 0. Each offset is in its own column, so no two are equal.
        excluded: per chunk, [G], what is added to r to exclude the targets.
        may_hold: per chunk, whether it may hold a target.
    """

    inside: paddle.Tensor
    flat: list[paddle.Tensor]
    excluded: list[paddle.Tensor]
    may_hold: list[bool]


class RowTerms(NamedTuple):
    """What turns r of a chunk into e = exp(scale * r + offset), per class; lists hold one [B] per chunk.

    Attributes:
        scale: s / |w|.
        offset: -log |w|, minus the constant part of the shift.
        weight: |w|, the factor of e in the sum of exponentials.
        logit_offset: the offset of a logit z = scale * r + logit_offset.
        radial: [S], -s / |w|^2; None for softmax.
    """

    scale: list[paddle.Tensor]
    offset: list[paddle.Tensor]
    weight: list[paddle.Tensor]
    logit_offset: list[paddle.Tensor]
    radial: paddle.Tensor | None


class TargetTerms(NamedTuple):
    """Of each sample's own class, all [G] but `rows`; of meaning only where `owned` is 1.

    Attributes:
        rows: [G, D], w_y.
        product: r_yn.
        plain: the logit without margin.
        logit: z_yn.
        derivative: (d psi / d cos) / |w_y|; 1 for softmax.
        by_norm: d psi / d |x|; None for 0.
        owned: 1 where the class is one of this shard's, else 0.
    """

    rows: paddle.Tensor
    product: paddle.Tensor
    plain: paddle.Tensor
    logit: paddle.Tensor
    derivative: paddle.Tensor
    by_norm: paddle.Tensor | None
    owned: paddle.Tensor


class FusedState(NamedTuple):
    """The result of `FusedSoftmax.loss_and_feature_gradient`, and what `row_gradients` needs of it.

    Attributes:
        loss: L, 0-d, the same on every rank.
        feature_gradient: [G, D], partial over shards.
        num_greater: as in `plsc.losses.reference.State`.
        shard: the shard that the loss was computed on.
        buffer: its r, with 'store'.
        features: x [G, D].
        t: [G].
        shift: the shift, final.
        rows: terms per class.
        targets: where the labels lie in the shard.
        target_index: where they lie in its chunks.
        target: terms per sample.
        target_term: [G], e_yn; 0 where the target is not owned.
    """

    loss: paddle.Tensor
    feature_gradient: paddle.Tensor
    num_greater: paddle.Tensor | None
    shard: Shard
    buffer: LogitBuffer
    features: paddle.Tensor
    t: paddle.Tensor
    shift: Shift
    rows: RowTerms
    targets: Targets
    target_index: TargetIndex
    target: TargetTerms
    target_term: paddle.Tensor


class FusedSoftmax:
    """The loss over one shard of the classes, chunk by chunk.

    Args:
        margin: the margin on the target cosine; None for softmax (plain products, optional bias).
        scale: s, the factor of the cosines; not used for softmax.
        reducer: reductions over the ranks that hold the other shards.
        logits: 'store' or 'recompute', see the module.
        precision: how matrices are multiplied.

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
    ) -> None:
        if logits not in ("store", "recompute"):
            raise ConfigError(f"logits mode '{logits}'; expected 'store' or 'recompute'")
        self._margin, self._reducer, self._store = margin, reducer or SingleRank(), logits == "store"
        self._scale, self._precision = (1.0 if margin is None else scale), precision or Precision()
        self._row_terms = _product_row_terms if margin is None else _cosine_row_terms
        self._shift = choose_shift(None if margin is None else scale, half_range=self._precision.needs_half_range)
        self._buffer: LogitBuffer | None = None

    @no_grad
    def loss_and_feature_gradient(
        self, features: paddle.Tensor, labels: paddle.Tensor, *, shard: Shard, count_above: bool = False
    ) -> FusedState:
        """The loss and its gradient by the features; the first pass over the chunks. The shard does not change.

        Args:
            features: [G, D], the same on every rank.
            labels: [G] int64 global class ids in [0, C), the same on every rank; repeats are allowed.
            shard: the class centers.
            count_above: also count `num_greater`, for acc1 and acc5.
        """
        directions, targets = as_directions(features, self._margin, floor=EPSILON), shard.locate(labels)
        x, samples = directions.rows, features.shape[0]
        shift = self._shift(samples, x.dtype)
        target = self._target_terms(directions, labels, targets, shard)
        rows = self._row_terms(shard, self._scale, shift.constant)
        index = _index_targets(targets, shard, samples)
        threshold = self._reducer.all_reduce_sum(target.plain * target.owned) if count_above else None
        buffer = self._fitting_buffer(shard, samples)

        total, gradient, greater = self._first_pass(x, shard, buffer, rows, index, shift, threshold)
        shift.agree(self._reducer, total=total, gradient=gradient)
        sums = self._reducer.all_reduce_sum(paddle.stack([total, target.logit * target.owned]))
        others, logit = paddle.unbind(sums)
        # loss_n = log(1 + exp(excess)), written so that neither end overflows.
        excess = paddle.log(others) + shift.value - logit
        losses = paddle.clip(excess, min=0.0) + paddle.log1p(paddle.exp(-excess.abs()))
        # A single class has neither loss nor gradient. Computed, t may be infinite, and infinity times 0 is NaN. The
        # operator is <=, since Paddle compares floats for equality with a tolerance of 1e-8.
        alone, zeros = others <= 0.0, paddle.zeros_like(others)
        losses = paddle.where(alone, zeros, losses)
        shift.center(others, gradient=gradient)
        t = paddle.exp(shift.value - logit - losses) / samples * sample_weights(features, self._margin)
        t = paddle.where(alone, zeros, t)

        target_term = -others * target.derivative * target.owned
        gradient += target_term.unsqueeze(1) * target.rows
        gradient *= (t * self._scale).unsqueeze(1)
        gradient = by_rows(gradient, directions)
        if target.by_norm is not None:
            gradient += (-self._scale * t * others * target.by_norm * target.owned).unsqueeze(1) * x
        greater = None if greater is None else self._reducer.all_reduce_sum(greater)
        return FusedState(
            losses.mean(), gradient, greater, shard, buffer, x, t, shift, rows, targets, index, target, target_term
        )

    def row_gradients(self, state: FusedState, *, l2: float = 0.0) -> Iterator[tuple[Block, paddle.Tensor]]:
        """(block, gradient [b, D]) of each block of rows, then of the bias if there is one; the second pass.

        A block's rows may be updated as soon as they were yielded. The state is used up by the next call of
        `loss_and_feature_gradient`.

        Args:
            state: of the last `loss_and_feature_gradient`.
            l2: this multiple of each row is added to its gradient.
        """
        shard, t = state.shard, state.t
        x = self._precision.operand(state.features * (t * self._scale).unsqueeze(1))
        features_t = state.features.t().contiguous()
        coefficients, radial = self._coefficients(state, l2)
        target_terms = _spread(state.target_term, state.target_index.inside)
        bias_gradient = []
        for k, chunk in enumerate(shard.chunks):
            shard.load_chunk(k)
            r = state.buffer.chunks[k]
            if not self._store:
                self._multiply(k, chunk, features_t, state.target_index, r)
            e = exp_(state.shift.subtract_(_exponents(k, r, state.rows)))
            coefficient = coefficients[k]
            if radial:
                # Without the targets, whose part `_coefficients` has added: r is not their product here.
                coefficient = add(coefficient, multiply(radial[k], matmul(multiply(e, r), t)))
            if state.target_index.may_hold[k]:
                add_at_(e, state.target_index.flat[k], values=target_terms[k])
            if shard.bias is not None:
                bias_gradient.append(matmul(e, t))
            pieces = zip(chunk.blocks, split_rows(coefficient, sizes=chunk.sizes), split_rows(e, sizes=chunk.sizes))
            for block, factor, e_rows in pieces:
                gradient = scale_rows(block.rows, scale=factor, offset=block.zeros)
                self._precision.add_row_gradient(gradient, e_rows, x=x)
                yield block, gradient
        if bias_gradient:
            block = shard.bias_block
            yield block, add(paddle.concat(bias_gradient), block.rows * l2)

    def _fitting_buffer(self, shard: Shard, samples: int) -> LogitBuffer:
        if self._buffer is None or not self._buffer.fits(shard, samples):
            self._buffer = None  # free the old memory first
            self._buffer = LogitBuffer(shard, samples, store=self._store)
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
        psi, by_cosine, by_norm = target_logits(self._margin, plain, features=directions, labels=labels)
        if self._margin is not None:
            # What a margin returns for the other ranks' classes may be NaN or infinite, which times 0 is not 0.
            psi, by_cosine = _where_owned(psi, targets), _where_owned(by_cosine, targets)
            by_norm = None if by_norm is None else _where_owned(by_norm, targets)
        return TargetTerms(
            rows, product, plain * self._scale, psi * self._scale, by_cosine * inverse_norm, by_norm, owned
        )

    def _first_pass(
        self,
        x: paddle.Tensor,
        shard: Shard,
        buffer: LogitBuffer,
        rows: RowTerms,
        index: TargetIndex,
        shift: Shift,
        threshold: paddle.Tensor | None,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor | None]:
        """(others [G], sum_c e_cn w_c [G, D], number of classes whose logit exceeds the threshold [G])."""
        features_t = x.t().contiguous()
        total, gradient = paddle.zeros(x.shape[:1], x.dtype), paddle.zeros_like(x)
        part = paddle.empty_like(gradient)
        greater = None if threshold is None else paddle.zeros(x.shape[:1], "int64")
        for k, chunk in enumerate(shard.chunks):
            shard.load_chunk(k)
            r = buffer.chunks[k]
            self._multiply(k, chunk, features_t, index, r)
            if greater is not None:
                logits = scale_rows(r, scale=rows.scale[k], offset=rows.logit_offset[k])
                greater += (logits > threshold).astype("int64").sum(axis=0)
            exponents = _exponents(k, r, rows)
            shift.follow(exponents, total=total, gradient=gradient)
            e = exp_(shift.subtract_(exponents))
            add_(total, matmul(rows.weight[k], e))
            self._precision.feature_gradient(e, chunk.rows, out=part)
            add_(gradient, part)
        return total, gradient, greater

    def _multiply(self, k: int, chunk: Chunk, features_t: paddle.Tensor, index: TargetIndex, r: paddle.Tensor) -> None:
        """r of a chunk into its buffer, targets excluded."""
        self._precision.logits(chunk.rows, features_t, out=r)
        if index.may_hold[k]:
            add_at_(r, index.flat[k], values=index.excluded[k])

    def _coefficients(self, state: FusedState, l2: float) -> tuple[list[paddle.Tensor], list[paddle.Tensor]]:
        """Per chunk [B]: l2 - radial_c with the targets' part of the sum alone; and -s/|w|^2, to multiply the rest."""
        shard, radial, target = state.shard, state.rows.radial, state.target
        coefficient = paddle.full([shard.size], l2, state.features.dtype)
        if radial is None or not shard.size:
            return shard.split_by_chunk(coefficient), []
        row = state.targets.row
        own = state.t * state.target_term * target.product * paddle.index_select(radial, row)
        add_at_(coefficient, row, values=own)
        return shard.split_by_chunk(coefficient), shard.split_by_chunk(radial)


def _where_owned(values: paddle.Tensor, targets: Targets) -> paddle.Tensor:
    """[G]: the values where the target is owned, else 0."""
    return paddle.where(targets.owned, values, paddle.zeros_like(values))


def _cosine_row_terms(shard: Shard, scale: float, shift: float) -> RowTerms:
    minus_log_norm = -0.5 * paddle.log(paddle.clip(shard.squared_norms(), min=CENTER_FLOOR**2))
    inverse_norm = paddle.exp(minus_log_norm)
    split = shard.split_by_chunk
    return RowTerms(
        split(inverse_norm * scale),
        split(minus_log_norm - shift),
        split(1.0 / inverse_norm),
        split(paddle.zeros_like(inverse_norm)),
        inverse_norm * inverse_norm * -scale,
    )


def _product_row_terms(shard: Shard, scale: float, shift: float) -> RowTerms:
    ones = shard.split_by_chunk(paddle.full([shard.size], scale, shard.weight.dtype))
    bias = paddle.zeros([shard.size], shard.weight.dtype) if shard.bias is None else shard.bias
    logit_offset = shard.split_by_chunk(bias)
    return RowTerms(ones, shard.split_by_chunk(bias - shift), ones, logit_offset, None)


def _exponents(k: int, r: paddle.Tensor, rows: RowTerms) -> paddle.Tensor:
    """log e_cn [B, G] of chunk k, but for the part of the shift that is not in the offset."""
    return scale_rows(r, scale=rows.scale[k], offset=rows.offset[k])


def _index_targets(targets: Targets, shard: Shard, samples: int) -> TargetIndex:
    starts = paddle.arange(0, shard.size, shard.chunk_rows, dtype="int64").unsqueeze(1)
    row = targets.row.unsqueeze(0) - starts
    inside = (row >= 0) & (row < shard.chunk_rows) & targets.owned.unsqueeze(0)
    flat = paddle.where(inside, row, paddle.zeros_like(row)) * samples + paddle.arange(samples, dtype="int64")
    excluded = paddle.full([samples], _EXCLUDED, shard.weight.dtype)
    # Few chunks hold a target, and on a CPU it costs little to look. On a GPU the host would wait for the device.
    look = shard.size and inside.place.is_cpu_place()
    may_hold = inside.any(axis=1).tolist() if look else [True] * inside.shape[0]
    return TargetIndex(inside, paddle.unbind(flat) if shard.size else [], _spread(excluded, inside), may_hold)


def _spread(values: paddle.Tensor, inside: paddle.Tensor) -> list[paddle.Tensor]:
    """Per chunk [G]: the values [G] of the targets inside it, 0 for the others."""
    return list(paddle.unbind(paddle.where(inside, values, paddle.zeros_like(values)))) if inside.shape[0] else []
