"""Softmax cross-entropy over classes that are sharded over ranks: its definition, in plain operators.

Shapes: G gathered batch, D embedding, C classes, S classes of this shard.

    margin kinds:  z_nc = s * cos(x_n, w_c), and for the label s * psi(cos(x_n, w_y))
    softmax kind:  z_nc = <x_n, w_c> + b_c
    L = 1/G * sum_n [ logsumexp_c(z_nc) - z_ny ]

The gradient convention, stated once: L is the mean over all G gathered samples and the same number on
every rank; whatever is returned as a gradient is the exact gradient of that L. A rank sees only its
own S classes, so its feature gradient is a partial sum: the sum over ranks is dL/dX. Weight and bias
gradients are whole.

L is computed as logsumexp minus target. Paddle's own softmax kernels floor probabilities at e^-64 on
CPU, which a scale of 64 reaches.

Both phases run outside autograd. `backward` is apart from `forward` so that a trainer can look at the
loss first. `plsc.losses.fused` computes the same without materializing what is materialized here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import paddle

from plsc.losses.margins.combined import Margin

# Added to squared norms: x / sqrt(<x, x> + this) is smooth everywhere, a vector of zeros included.
NORM_EPSILON = 1e-12


class Reducer(Protocol):
    """Reductions over ranks. The value returned counts; the argument may be overwritten."""

    def all_reduce_sum(self, tensor: paddle.Tensor) -> paddle.Tensor: ...

    def all_reduce_max(self, tensor: paddle.Tensor) -> paddle.Tensor: ...


class Alone:
    """The `Reducer` of a single rank."""

    def all_reduce_sum(self, tensor: paddle.Tensor) -> paddle.Tensor:
        return tensor

    def all_reduce_max(self, tensor: paddle.Tensor) -> paddle.Tensor:
        return tensor


class Gradients(NamedTuple):
    """Gradients of L: features [G, D], partial over shards; weight [S, D]; bias [S], None without a bias."""

    features: paddle.Tensor
    weight: paddle.Tensor
    bias: paddle.Tensor | None


class Targets(NamedTuple):
    """Where the labels lie in this shard.

    Attributes:
        owned: [G] bool, whether the label's class is one of this shard's.
        row: [G] int64, its row in the shard; some valid row where it is not owned.
    """

    owned: paddle.Tensor
    row: paddle.Tensor


class State(NamedTuple):
    """What `backward` needs of `forward`.

    Attributes:
        loss: L, 0-d, the same on every rank.
        above: [G] int64, if asked for: how many of all C classes have a margin-free logit greater
            than the target's. The sample is among the top k where this is less than k.
    """

    loss: paddle.Tensor
    above: paddle.Tensor | None
    targets: Targets
    probability: paddle.Tensor  # [G, S]
    slope: paddle.Tensor  # [G], d z_ny / d cos or 1
    features: tuple[paddle.Tensor, paddle.Tensor]  # unit rows and 1/norm, or the rows and 1
    weight: tuple[paddle.Tensor, paddle.Tensor]
    has_bias: bool


@dataclass(frozen=True)
class ShardedSoftmax:
    """The loss over one shard of the classes.

    Args:
        margin: the margin on the target cosine; None for the softmax kind (raw products, optional bias).
        scale: s, what cosines are multiplied by; has no part in the softmax kind.
        first_class: global id of the class in row 0 of the shard.
        reducer: reductions over the ranks that hold the other shards.
    """

    margin: Margin | None
    scale: float = 64.0
    first_class: int = 0
    reducer: Reducer = Alone()

    @paddle.no_grad()
    def forward(
        self,
        features: paddle.Tensor,
        labels: paddle.Tensor,
        weight: paddle.Tensor,
        bias: paddle.Tensor | None = None,
        count_above: bool = False,
    ) -> State:
        """The loss.

        Args:
            features: [G, D], the same on every rank.
            labels: [G] int64 global class ids, the same on every rank; each in [0, C), repeats welcome.
            weight: [S, D] class centers; S may be 0.
            bias: [S], softmax kind only.
            count_above: also count `State.above`, for acc1 and acc5.
        """
        num_classes = weight.shape[0]
        targets = locate(labels, self.first_class, num_classes)
        x, w = (unit_rows(t) if self.margin else (t, paddle.ones([], t.dtype)) for t in (features, weight))
        logits = paddle.matmul(x[0], w[0], transpose_y=True)
        if bias is not None:
            logits += bias
        target = _pick(logits, targets)
        above = self._count_above(logits, target, targets.owned) if count_above else None
        slope = paddle.ones_like(target)
        if self.margin:
            target, slope = self.margin(target)
            logits, target, slope = (t * self.scale for t in (_place(logits, targets, target), target, slope))
        shift = logits.max(axis=1) if num_classes else paddle.full_like(target, -float("inf"))
        shift = self.reducer.all_reduce_max(shift)
        exponential = paddle.exp(logits - shift.unsqueeze(1))
        total = self.reducer.all_reduce_sum(exponential.sum(axis=1))
        target = self.reducer.all_reduce_sum(paddle.where(targets.owned, target, paddle.zeros_like(target)))
        loss = (paddle.log(total) + shift - target).mean()
        return State(loss, above, targets, exponential / total.unsqueeze(1), slope, x, w, bias is not None)

    @paddle.no_grad()
    def backward(self, state: State) -> Gradients:
        """The gradients of the loss that `forward` returned."""
        (x, x_rate), (w, w_rate) = state.features, state.weight
        probability, targets = state.probability, state.targets
        mean = 1.0 / x.shape[0]
        # d L / d z, for the bias; then d L / d cos (or d product), for the rest.
        at_target = _pick(probability, targets) - 1.0
        d_logits = _place(probability, targets, at_target) * mean
        d_bias = d_logits.sum(axis=0) if state.has_bias else None
        if self.margin:
            d_logits = _place(d_logits * self.scale, targets, at_target * state.slope * mean)
        dx, dw = paddle.matmul(d_logits, w), paddle.matmul(d_logits, x, transpose_x=True)
        if self.margin:
            dx, dw = tangent(dx, x, x_rate), tangent(dw, w, w_rate)
        return Gradients(dx, dw, d_bias)

    def _count_above(self, logits: paddle.Tensor, target: paddle.Tensor, owned: paddle.Tensor) -> paddle.Tensor:
        """[G]: how many of all C logits exceed the target's."""
        target = self.reducer.all_reduce_sum(paddle.where(owned, target, paddle.zeros_like(target)))
        return self.reducer.all_reduce_sum((logits > target.unsqueeze(1)).astype("int64").sum(axis=1))


def locate(labels: paddle.Tensor, first_class: int, num_classes: int) -> Targets:
    """Which of the labels [G] are among the classes of this shard, and in which row."""
    row = labels - first_class
    owned = (row >= 0) & (row < num_classes)
    return Targets(owned, paddle.clip(row, 0, max(num_classes - 1, 0)))


def unit_rows(rows: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Rows [M, D] over their norms, and one over their norms [M, 1]."""
    rate = paddle.rsqrt((rows * rows).sum(axis=1, keepdim=True) + NORM_EPSILON)
    return rows * rate, rate


def tangent(gradient: paddle.Tensor, unit: paddle.Tensor, rate: paddle.Tensor) -> paddle.Tensor:
    """Gradient by rows, from the gradient by unit rows: what points along the row cannot change its direction."""
    return (gradient - unit * (gradient * unit).sum(axis=1, keepdim=True)) * rate


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
