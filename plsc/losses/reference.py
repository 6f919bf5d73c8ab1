"""Softmax cross-entropy over classes that are sharded over ranks: its definition, in plain tensor operations.

Shapes: G gathered batch, D embedding, C classes, S classes of this shard.

    with a margin:  z_nc = s * cos(x_n, w_c), and for the label y  z_ny = s * psi(cos(x_n, w_y), |x_n|, y)
    softmax:        z_nc = <x_n, w_c> + b_c
    L = 1/G * sum_n [ logsumexp_c(z_nc) - z_ny ]

The gradient convention: L is the mean over all G gathered samples and the same number on every rank; what is returned
as a gradient is the exact gradient of that L, but for very short features and centers (see below). A rank sees only its
own S classes, so its feature gradient is a partial sum: the sum over ranks is dL/dX. Weight and bias gradients are
complete.

L is computed as logsumexp minus target. Paddle's own softmax kernels floor probabilities at e^-64 on CPU, and a scale
of 64 reaches that.

Unit length. cos(x, w) is the product of two directions:

    x / max(|x|, 1e-12)    of a feature: the rule of inference, see plsc/inference/embedding.py; zero stays zero
    w / max(|w|, 1e-4)     of a class center

The derivative of a direction u is (I - u u^T) over the same denominator. For a center it is 1e4 at most, at zero too.
For a feature it grows as 1 / |x|, and the direction of a feature near zero is rounding noise. Such features are usual:
batch normalization makes all features of a batch of equal images zero, or noise with a root mean square of up to 1e-3.
In all gradients of a loss with a margin, the term of sample n is therefore multiplied by its weight

    omega_n = min(1, |x_n| / (0.01 sqrt(D)))^6

which is exactly 1 from a root mean square of 0.01 on; that of ordinary features is about 1. The gradients are bounded
and continuous in x, and 0 where x is 0. The sixth power separates noise from features that are short but meant: with a
root mean square of 1e-3, a step turns a feature as far as an ordinary one; below, less. With the second or the fourth
power, several batches of equal images in a row still make the weights diverge, since batch normalization multiplies the
gradient by noise by several hundred. L itself has no weights.

`ReferenceSoftmax` and `plsc.losses.fused.FusedSoftmax` compute the same numbers with the same two methods:
`loss_and_feature_gradient`, then `row_gradients` if the weight is to be updated; a trainer may look at the loss in
between. This one holds matrices of [G, S]. Neither uses autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import paddle

from plsc.losses.margins import Margin, MarginOutput, apply_margin, needs_all_cosines, penalty_of
from plsc.losses.margins.binary import BinaryMargin
from plsc.losses.negatives import NegativesMargin
from plsc.losses.ops import flat_rows, no_grad
from plsc.metrics.embeddings import CENTER_FLOOR, EPSILON

# Root mean square of a feature's numbers from which on its sample has its full weight in the gradients.
FULL_WEIGHT_RMS = 1e-2


class Reducer(Protocol):
    """Reductions over ranks. The argument may be overwritten: use the value returned."""

    def all_reduce_sum(self, tensor: paddle.Tensor, /) -> paddle.Tensor: ...

    def all_reduce_max(self, tensor: paddle.Tensor, /) -> paddle.Tensor: ...


class SingleRank:
    """The `Reducer` of a single rank."""

    def all_reduce_sum(self, tensor: paddle.Tensor) -> paddle.Tensor:
        return tensor

    def all_reduce_max(self, tensor: paddle.Tensor) -> paddle.Tensor:
        return tensor


class Targets(NamedTuple):
    """Where the labels lie in this shard.

    Attributes:
        owned: [G] bool, whether the label's class is one of this shard's.
        row: [G] int64, its row in the shard; some valid row where it is not owned.
    """

    owned: paddle.Tensor
    row: paddle.Tensor


class TargetCosines(NamedTuple):
    """The cosines of samples with the centers of their own classes, before the margin.

    Attributes:
        values: [G], the cosines times `factor`; of meaning where the class is owned.
        owned: [G], True or 1 where the class is one of this shard's, else False or 0.
        factor: above 0.
    """

    values: paddle.Tensor
    owned: paddle.Tensor
    factor: float = 1.0


class Directions(NamedTuple):
    """Rows [M, D] as the logits use them.

    Attributes:
        rows: unit rows with a margin, the rows as they are for softmax.
        inverse_norms: [M, 1], 1 / max(|row|, floor); None for softmax.
    """

    rows: paddle.Tensor
    inverse_norms: paddle.Tensor | None


class State(NamedTuple):
    """The result of `ReferenceSoftmax.loss_and_feature_gradient`.

    Attributes:
        loss: L, 0-d, the same on every rank.
        feature_gradient: [G, D], partial over shards.
        num_greater: [G] int64, if asked for: how many of all C classes have a margin-free logit greater than the
            target's. The sample is among the top k where this is less than k.
        features: the features' directions.
        weight: the class centers' directions.
        d_logits: [G, S K], dL / d cos(x_n, w_c), or dL / dz_nc for softmax.
        has_bias: whether the logits have a bias.
        subcenters: K.
        by_bias: 0-d, the derivative of L by the bias of a binary loss; None for other losses.
        cosines: of the targets; None for softmax.
    """

    loss: paddle.Tensor
    feature_gradient: paddle.Tensor
    num_greater: paddle.Tensor | None
    features: Directions
    weight: Directions
    d_logits: paddle.Tensor
    has_bias: bool
    subcenters: int = 1
    by_bias: paddle.Tensor | None = None
    cosines: TargetCosines | None = None


class RowGradients(NamedTuple):
    """Gradients of L: weight like the weight; bias [S], None without a bias."""

    weight: paddle.Tensor
    bias: paddle.Tensor | None


@dataclass(frozen=True)
class ReferenceSoftmax:
    """The loss over one shard of the classes.

    Args:
        margin: the margin on the target cosine; None for softmax (plain products, optional bias).
        scale: s, the factor of the cosines; not used for softmax.
        first_class: global id of the class in row 0 of the shard.
        reducer: reductions over the ranks that hold the other shards.
        filter_above: negatives with a greater cosine leave the sum; None for none.
        smoothing: the part of each label that is spread over all classes, see `plsc.losses.smoothing`.

    Example:
        >>> softmax = ReferenceSoftmax(CombinedMargin(m2=0.5), 64.0)
        >>> state = softmax.loss_and_feature_gradient(features, labels, weight=weight)
        >>> weight_gradient, _ = softmax.row_gradients(state)
    """

    margin: Margin | None
    scale: float = 64.0
    first_class: int = 0
    reducer: Reducer = SingleRank()
    filter_above: float | None = None
    smoothing: float = 0.0

    @no_grad
    def loss_and_feature_gradient(
        self,
        features: paddle.Tensor,
        labels: paddle.Tensor,
        *,
        weight: paddle.Tensor,
        bias: paddle.Tensor | None = None,
        weights: paddle.Tensor | None = None,
        count_above: bool = False,
    ) -> State:
        """The loss and its gradient by the features.

        Args:
            features: [G, D], the same on every rank.
            labels: [G] int64 global class ids in [0, C), the same on every rank; repeats are allowed.
            weight: [S, D] class centers, or [S, K, D] with K sub-centers per class; S may be 0.
            bias: [S], softmax only.
            weights: [G], v_n, of mean 1 and the same on every rank: L is the mean of v_n L_n; None for 1.
            count_above: also count `State.num_greater`, for acc1 and acc5.
        """
        subcenters = weight.shape[1] if weight.ndim == 3 else 1
        x = as_directions(features, self.margin, floor=EPSILON)
        w = as_directions(flat_rows(weight), self.margin, floor=CENTER_FLOOR)
        cosines = paddle.matmul(x.rows, w.rows, transpose_y=True)
        if bias is not None:
            cosines += bias
        targets = locate(labels, self.first_class, num_classes=weight.shape[0])
        targets = _nearest(cosines, targets, subcenters)
        plain = _pick(cosines, targets)
        num_greater = self._count_greater(cosines, plain, targets.owned, subcenters) if count_above else None
        plain = all_cosines(self.margin, plain, targets, self.reducer)
        target = target_logits(self.margin, plain, features=x, labels=labels)
        values, slopes = self._negatives(cosines, targets, target.psi, subcenters)

        in_gradients = sample_weights(features, self.margin) * (1.0 if weights is None else weights)
        ending = self._end(_place(values, targets, target.psi), target.psi, targets, in_gradients)
        if slopes is not None:
            ending = ending._replace(by_values=ending.by_values * slopes)
        if self.smoothing:
            ending = self._smooth(ending, cosines, plain, target.psi, targets, in_gradients)
        d_logits = _place(ending.by_values, targets, ending.by_psi * target.by_cosine)
        gradient = by_rows(paddle.matmul(d_logits, w.rows), x)
        if target.by_norm is not None:
            by_norm = paddle.where(targets.owned, ending.by_psi * target.by_norm, paddle.zeros_like(plain))
            gradient += by_norm.unsqueeze(1) * x.rows
        loss = ending.losses.mean() if weights is None else (ending.losses * weights).mean()
        loss, gradient = with_penalty(self.margin, loss, gradient, features=features, directions=x, targets=targets)
        own = None if self.margin is None else TargetCosines(plain, targets.owned)
        return State(loss, gradient, num_greater, x, w, d_logits, bias is not None, subcenters, ending.by_bias, own)

    @no_grad
    def row_gradients(self, state: State) -> RowGradients:
        """The gradients of `state.loss` by the weight and the bias."""
        weight = by_rows(paddle.matmul(state.d_logits, state.features.rows, transpose_x=True), state.weight)
        if state.subcenters > 1:
            shape = [weight.shape[0] // state.subcenters, state.subcenters, weight.shape[1]]
            weight = weight.reshape(shape) if shape[0] else paddle.zeros(shape, weight.dtype)
        return RowGradients(weight, state.d_logits.sum(axis=0) if state.has_bias else None)

    def _end(self, values: paddle.Tensor, psi: paddle.Tensor, targets: Targets, weights: paddle.Tensor) -> _Ending:
        """The losses and their derivatives, from the logits over s.

        Args:
            values: [G, S K], psi at the owned targets, -infinity for what is not in the sum.
            psi: [G].
            targets: where the targets are.
            weights: [G], omega.
        """
        logits, scale = values * self._factor, self._factor
        shift = logits.max(axis=1) if logits.shape[1] else paddle.full_like(psi, -float("inf"))
        shift = self.reducer.all_reduce_max(shift)
        exponential = paddle.exp(logits - shift.unsqueeze(1))
        total = self.reducer.all_reduce_sum(exponential.sum(axis=1))
        owned_logit = paddle.where(targets.owned, psi * scale, paddle.zeros_like(psi))
        losses = paddle.log(total) + shift - self.reducer.all_reduce_sum(owned_logit)
        # dL/dz_nc = (p_nc - [c = y]) / G, and a cosine or psi is z / s.
        factor = weights * (scale / len(psi))
        by_psi = (_pick(exponential, targets) / total - 1.0) * factor
        return _Ending(losses, exponential * (factor / total).unsqueeze(1), by_psi)

    def _smooth(
        self,
        ending: _Ending,
        cosines: paddle.Tensor,
        plain: paddle.Tensor,
        psi: paddle.Tensor,
        targets: Targets,
        weights: paddle.Tensor,
    ) -> _Ending:
        """The losses with a part of each label spread over all centers, by their plain cosines [G, S K].

        dL/dz_nc has + epsilon ([c = y] - 1 / C) / G.
        """
        scale, zeros = self._factor, paddle.zeros_like(psi)
        rows = paddle.full([len(psi)], float(cosines.shape[1]), psi.dtype)
        own = paddle.where(targets.owned, psi, zeros) * scale
        spread = (cosines.sum(axis=1) + paddle.where(targets.owned, psi - plain, zeros)) * scale
        count, own, spread = paddle.unbind(self.reducer.all_reduce_sum(paddle.stack([rows, own, spread])))
        share, factor = self.smoothing / count, weights * (scale / len(psi))
        return ending._replace(
            losses=ending.losses + self.smoothing * own - share * spread,
            by_values=ending.by_values - (share * factor).unsqueeze(1),
            by_psi=ending.by_psi + (self.smoothing - share) * factor,
        )

    @property
    def _factor(self) -> float:
        """s; 1 for softmax."""
        return 1.0 if self.margin is None else self.scale

    def _negatives(
        self, cosines: paddle.Tensor, targets: Targets, psi: paddle.Tensor, subcenters: int
    ) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """[G, S K]: what enters the sum for the cosines, -infinity for nothing, and its derivative; None for 1."""
        values, slopes = cosines, None
        if isinstance(self.margin, NegativesMargin):
            changed, slope = self.margin.negatives(cosines.t().contiguous(), target=psi)
            values, slopes = changed.t(), None if slope is None else slope.t()
        left_out = _not_nearest(cosines, targets, subcenters) if subcenters > 1 and cosines.shape[1] else None
        if self.filter_above is not None:
            above = cosines > self.filter_above
            left_out = above if left_out is None else left_out | above
        if left_out is not None:
            values = paddle.where(left_out, paddle.full([], -float("inf"), values.dtype), values)
        return values, slopes

    def _count_greater(
        self, logits: paddle.Tensor, target: paddle.Tensor, owned: paddle.Tensor, subcenters: int
    ) -> paddle.Tensor:
        """[G]: how many of all C classes have a logit that exceeds the target's."""
        target = self.reducer.all_reduce_sum(paddle.where(owned, target, paddle.zeros_like(target)))
        greater = logits > target.unsqueeze(1)
        if subcenters > 1 and logits.shape[1]:
            greater = greater.reshape([logits.shape[0], -1, subcenters]).any(axis=2)
        return self.reducer.all_reduce_sum(greater.astype("int64").sum(axis=1))


class ReferenceBinary(ReferenceSoftmax):
    """A binary loss over one shard of the classes; `margin` is a `plsc.losses.margins.binary.BinaryMargin`."""

    def _end(self, values: paddle.Tensor, psi: paddle.Tensor, targets: Targets, weights: paddle.Tensor) -> _Ending:
        binary = self.margin
        assert isinstance(binary, BinaryMargin)
        bias = binary.bias.astype(psi.dtype)
        # The target's entry is no negative.
        logits = _place(values, targets, paddle.full_like(psi, -float("inf"))) * binary.scale + bias
        shares = 1.0 / (1.0 + paddle.exp(-logits))
        softplus = paddle.clip(logits, min=0.0) + paddle.log1p(paddle.exp(-logits.abs()))
        zeros = paddle.zeros_like(psi)
        own = paddle.where(targets.owned, psi, zeros) * binary.scale
        sums = paddle.stack([softplus.sum(axis=1), shares.sum(axis=1), own])
        total, share, own = paddle.unbind(self.reducer.all_reduce_sum(sums))
        own = own + bias
        missing = 1.0 / (1.0 + paddle.exp(own))
        own_loss = paddle.clip(-own, min=0.0) + paddle.log1p(paddle.exp(-own.abs()))
        positive, negative = binary.positive_weight, binary.negative_weight
        factor = weights * (binary.scale / len(psi))
        by_bias = (weights * (negative * share - positive * missing)).sum() / len(psi)
        by_values = shares * (negative * factor).unsqueeze(1)
        return _Ending(positive * own_loss + negative * total, by_values, -positive * factor * missing, by_bias)


class _Ending(NamedTuple):
    """Attributes: losses [G]; dL / d values [G, S K]; dL / d psi [G]; dL / d bias of a binary loss, 0-d."""

    losses: paddle.Tensor
    by_values: paddle.Tensor
    by_psi: paddle.Tensor
    by_bias: paddle.Tensor | None = None


def locate(labels: paddle.Tensor, first_class: int, *, num_classes: int) -> Targets:
    """Which of the labels [G] are among the classes of this shard, and in which row."""
    row = labels - first_class
    owned = (row >= 0) & (row < num_classes)
    return Targets(owned, paddle.clip(row, 0, max(num_classes - 1, 0)))


def as_directions(rows: paddle.Tensor, margin: Margin | None, *, floor: float) -> Directions:
    """Rows [M, D] divided by max(norm, floor) if there is a margin; unchanged rows for softmax."""
    if margin is None:
        return Directions(rows, None)
    inverse_norms = paddle.rsqrt(paddle.clip((rows * rows).sum(axis=1, keepdim=True), min=floor * floor))
    return Directions(rows * inverse_norms, inverse_norms)


def sample_weights(features: paddle.Tensor, margin: Margin | None) -> paddle.Tensor:
    """omega [G]: the weights of the samples in the gradients; 1 for softmax, which takes features as they are."""
    samples, size = features.shape
    if margin is None:
        return paddle.ones([samples], features.dtype)
    share = paddle.clip((features * features).sum(axis=1) / (size * FULL_WEIGHT_RMS**2), max=1.0)
    return share * share * share


def by_rows(gradient: paddle.Tensor, directions: Directions) -> paddle.Tensor:
    """The gradient by rows [M, D], from the gradient by their directions.

    For unit rows, the part of the gradient along the row is removed: it cannot change the row's direction. Of rows
    shorter than the floor a part of it stays.
    """
    unit, inverse_norms = directions
    if inverse_norms is None:
        return gradient
    return (gradient - unit * (gradient * unit).sum(axis=1, keepdim=True)) * inverse_norms


def all_cosines(margin: Margin | None, plain: paddle.Tensor, targets: Targets, reducer: Reducer) -> paddle.Tensor:
    """The target cosines [G], right on every rank for all samples where the margin needs that."""
    if not needs_all_cosines(margin):
        return plain
    return reducer.all_reduce_sum(paddle.where(targets.owned, plain, paddle.zeros_like(plain)))


def target_logits(
    margin: Margin | None, plain: paddle.Tensor, *, features: Directions, labels: paddle.Tensor
) -> MarginOutput:
    """psi and its derivatives at the margin-free targets [G]; for softmax psi is the target itself."""
    norms = feature_norms(features)
    if margin is None or norms is None:
        return MarginOutput(plain, paddle.ones_like(plain), None)
    return apply_margin(margin, plain, norms=norms, labels=labels)


def with_penalty(
    margin: Margin | None,
    loss: paddle.Tensor,
    gradient: paddle.Tensor,
    *,
    features: paddle.Tensor,
    directions: Directions,
    targets: Targets,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The loss and this shard's part of the feature gradient [G, D], with the margin's penalty on the norms if any.

    Each sample's penalty enters the gradient on the rank that owns its target, with the weight of the sample.
    """
    norms = feature_norms(directions)
    penalty = None if norms is None else penalty_of(margin, norms)
    if penalty is None:
        return loss, gradient
    value, by_norm = penalty
    factor = by_norm * sample_weights(features, margin) * targets.owned.astype(by_norm.dtype) / len(by_norm)
    return loss + value.mean(), gradient + factor.unsqueeze(1) * directions.rows


def feature_norms(features: Directions) -> paddle.Tensor | None:
    """[G]: the norms of features, 1e-12 for shorter ones; None for softmax, which takes features as they are."""
    return None if features.inverse_norms is None else 1.0 / features.inverse_norms.squeeze(1)


def _pick(matrix: paddle.Tensor, targets: Targets) -> paddle.Tensor:
    """[G]: each row of [G, S] at its target; where the target is not owned, some number."""
    if not matrix.shape[1]:
        return paddle.zeros(matrix.shape[:1], matrix.dtype)
    return paddle.take_along_axis(matrix, targets.row.unsqueeze(1), axis=1).squeeze(1)


def _place(matrix: paddle.Tensor, targets: Targets, values: paddle.Tensor) -> paddle.Tensor:
    """A copy of [G, S] with `values` [G] at the owned targets."""
    if not matrix.shape[1]:
        return matrix
    values = paddle.where(targets.owned, values, _pick(matrix, targets))
    return paddle.put_along_axis(matrix, targets.row.unsqueeze(1), values.unsqueeze(1), axis=1)


def _nearest(cosines: paddle.Tensor, targets: Targets, subcenters: int) -> Targets:
    """The targets' rows in [G, S K]: of each class the sub-center with the greatest cosine, the first at ties."""
    if subcenters == 1 or not cosines.shape[1]:
        return targets
    grouped = cosines.reshape([cosines.shape[0], -1, subcenters])
    own = paddle.take_along_axis(grouped, targets.row.reshape([-1, 1, 1]).expand([-1, 1, subcenters]), axis=1)
    return Targets(targets.owned, targets.row * subcenters + own.squeeze(1).argmax(axis=1))


def _not_nearest(cosines: paddle.Tensor, targets: Targets, subcenters: int) -> paddle.Tensor:
    """[G, S K] bool: all rows of the targets' classes, and of the others all but the one with the greatest cosine."""
    grouped = cosines.reshape([cosines.shape[0], -1, subcenters])
    order = paddle.arange(subcenters, dtype="int64")
    nearest = (grouped.argmax(axis=2, keepdim=True) == order).reshape(cosines.shape)
    of_class = paddle.arange(cosines.shape[1], dtype="int64") // subcenters
    own = (of_class == (targets.row // subcenters).unsqueeze(1)) & targets.owned.unsqueeze(1)
    return own | ~nearest
