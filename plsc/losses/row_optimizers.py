"""Optimizers that update any rows of a parameter, so that a shard can be updated block by block.

SGD, momentum and AdamW compute what the Paddle optimizer of their name does, by the same operators. Only the
bookkeeping differs: state is kept in tensors shaped like the parameter. Paddle has no Lion, and no LARS outside of
static graphs; `plsc.engine.optimizer` applies these two to the parameters of the backbone as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import paddle

from plsc.errors import ConfigError
from plsc.losses.ops import adamw_, momentum_, row_products, sgd_
from plsc.utils.numbers import as_number


@runtime_checkable
class RowOptimizer(Protocol):
    """How rows change by their gradient. A subclass inherits the attributes below and `prepare`.

    A fused head makes the gradient of a block of rows and passes both to `apply` at once; the gradient of the whole
    weight never exists. The rows of a sampled step come with their own state; other rows and their state do not change.

    Attributes:
        l2: coefficient of L2 regularization; the head adds l2 * row to a gradient before `apply` gets it. Default 0.
        state_names: names of the state tensors, each shaped like the parameter and zero at first. Default none.
        state_dtype: type of the weight's state tensors, as 'float64', in which `apply` gets them; None, the default,
            for that of the rows. Then the setting `momentum_storage` decides how they are kept.
        uses_step: whether `prepare` uses the number of the step, which checkpoints hold then. Default True.

    Example:
        >>> class SignSGD(RowOptimizer):
        ...     def apply(self, rows, gradient, *, state, prepared):
        ...         paddle.assign(rows - prepared * gradient.sign(), rows)
        >>> config = plsc.Config(head_optimizer=SignSGD())
    """

    l2: float = 0.0
    state_names: tuple[str, ...] = ()
    state_dtype: str | None = None
    uses_step: bool = True

    def prepare(self, learning_rate: float, *, step: int, dtype: paddle.dtype) -> Any:
        """What `apply` needs in one step in addition to rows, gradient and state; made once for all blocks.

        Args:
            learning_rate: of this step.
            step: number of the update, 1 for the first.
            dtype: type of the rows.

        Returns:
            The learning rate, unless a subclass says otherwise.
        """
        return learning_rate

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, *, state: Sequence[paddle.Tensor], prepared: Any
    ) -> None:
        """Update rows and their state in place.

        Args:
            rows: [b, D] of the weight, or [S] of the bias.
            gradient: like `rows`; may be overwritten.
            state: one tensor per name in `state_names`, in that order, each like `rows`.
            prepared: what `prepare` returned.
        """
        ...


@dataclass(frozen=True)
class SGD(RowOptimizer):
    """rows -= learning_rate * (gradient + l2 * rows).

    In this and the other optimizers here, `decays_bias` says whether weight decay applies to the bias too.

    Raises:
        ConfigError: here as in the other row optimizers: an argument that is to be a number is none.
    """

    l2: float = 0.0
    state_names: tuple[str, ...] = ()
    state_dtype: str | None = None
    uses_step: bool = False
    decays_bias: bool = True

    def __post_init__(self) -> None:
        _set_floats(self, "l2")

    def prepare(self, learning_rate: float, *, step: int, dtype: paddle.dtype) -> paddle.Tensor:
        return paddle.to_tensor([learning_rate], dtype=dtype)

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, *, state: Sequence[paddle.Tensor], prepared: paddle.Tensor
    ) -> None:
        sgd_(rows, gradient, learning_rate=prepared)


@dataclass(frozen=True)
class Momentum(RowOptimizer):
    """velocity = momentum * velocity + gradient + l2 * rows; rows -= learning_rate * velocity."""

    momentum: float = 0.9
    l2: float = 5e-4
    state_names: tuple[str, ...] = ("velocity",)
    state_dtype: str | None = None
    uses_step: bool = False
    decays_bias: bool = True

    def __post_init__(self) -> None:
        _set_floats(self, "momentum", "l2")

    def prepare(self, learning_rate: float, *, step: int, dtype: paddle.dtype) -> Any:
        return paddle.to_tensor([learning_rate], dtype=dtype)

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, *, state: Sequence[paddle.Tensor], prepared: Any
    ) -> None:
        momentum_(rows, gradient, velocity=state[0], learning_rate=prepared, momentum=self.momentum)


@dataclass(frozen=True)
class AdamW(RowOptimizer):
    """AdamW (Loshchilov and Hutter, ICLR 2019): weight decay apart from the gradient, moments corrected by the step.

    Paddle's AdamW stores beta^step; this one computes the powers from the step count. Their states are therefore not
    interchangeable in a checkpoint.

    Attributes:
        squares: those of `state_names` that are means of squares, which are not kept in int8.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.01
    l2: float = 0.0
    state_names: tuple[str, ...] = ("moment1", "moment2")
    state_dtype: str | None = None
    uses_step: bool = True
    squares: tuple[str, ...] = ("moment2",)
    decays_bias: bool = True

    def __post_init__(self) -> None:
        _set_floats(self, "beta1", "beta2", "epsilon", "decay", "l2")

    def prepare(self, learning_rate: float, *, step: int, dtype: paddle.dtype) -> tuple[paddle.Tensor, ...]:
        values = (learning_rate, self.beta1**step, self.beta2**step)
        return tuple(paddle.to_tensor([value], dtype=dtype) for value in values)

    def apply(
        self,
        rows: paddle.Tensor,
        gradient: paddle.Tensor,
        *,
        state: Sequence[paddle.Tensor],
        prepared: tuple[paddle.Tensor, ...],
    ) -> None:
        learning_rate, beta1_power, beta2_power = prepared
        adamw_(
            rows,
            gradient,
            moment1=state[0],
            moment2=state[1],
            beta1_power=beta1_power,
            beta2_power=beta2_power,
            learning_rate=learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            decay=_decay_of(rows, self.decay, decays_bias=self.decays_bias),
        )


@dataclass(frozen=True)
class Lion(RowOptimizer):
    """Lion (Chen et al., NeurIPS 2023): every number moves by the learning rate, in the direction of its average.

    rows -= learning_rate * (sign(beta1 * momentum + (1 - beta1) * gradient) + decay * rows)
    momentum = beta2 * momentum + (1 - beta2) * gradient
    """

    beta1: float = 0.9
    beta2: float = 0.99
    decay: float = 0.0
    l2: float = 0.0
    state_names: tuple[str, ...] = ("momentum",)
    state_dtype: str | None = None
    uses_step: bool = False
    decays_bias: bool = True

    def __post_init__(self) -> None:
        _set_floats(self, "beta1", "beta2", "decay", "l2")

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, *, state: Sequence[paddle.Tensor], prepared: float
    ) -> None:
        (momentum,) = state
        change = (self.beta1 * momentum + (1.0 - self.beta1) * gradient).sign()
        change += rows * _decay_of(rows, self.decay, decays_bias=self.decays_bias)
        paddle.assign(self.beta2 * momentum + (1.0 - self.beta2) * gradient, momentum)
        paddle.assign(rows - prepared * change, rows)


@dataclass(frozen=True)
class Lars(RowOptimizer):
    """LARS (You et al., 2017): momentum whose step is in proportion to the length of what it moves.

        ratio = trust * |w| / (|gradient| + decay * |w|)
        velocity = momentum * velocity + learning_rate * ratio * (gradient + decay * w);  w -= velocity

    The paper takes the lengths of a whole layer. A class center is a layer's weight of its own: its length says nothing
    about that of another, and the gradients of classes in the batch and of others differ by orders of magnitude. So w
    is one row here, which N ranks and one compute alike, with classes sampled or not. Without decay the ratio has no
    limit: every center then moves by `trust` of its length, also where its gradient is next to nothing.

    A bias has the ratio 1, and so has a row of length 0.

    Attributes:
        by_row: w is one row. False: w is the whole tensor, for a parameter of the backbone.
    """

    momentum: float = 0.9
    decay: float = 5e-4
    trust: float = 0.001
    by_row: bool = True
    l2: float = 0.0
    state_names: tuple[str, ...] = ("velocity",)
    state_dtype: str | None = None
    uses_step: bool = False
    decays_bias: bool = True

    def __post_init__(self) -> None:
        _set_floats(self, "momentum", "decay", "trust", "l2")

    def apply(
        self, rows: paddle.Tensor, gradient: paddle.Tensor, *, state: Sequence[paddle.Tensor], prepared: float
    ) -> None:
        (velocity,) = state
        decay = _decay_of(rows, self.decay, decays_bias=self.decays_bias)
        change = prepared * (gradient + decay * rows)
        if len(rows.shape) > 1:
            length, steepness = (self._lengths(tensor) for tensor in (rows, gradient))
            divisor, ones = steepness + decay * length, paddle.ones_like(length)
            ratio = self.trust * length / paddle.where(divisor > 0.0, divisor, ones)
            change *= paddle.where(length > 0.0, ratio, ones)
        paddle.assign(self.momentum * velocity + change, velocity)
        paddle.assign(rows - velocity, rows)

    def _lengths(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """[b, 1] by row, else of one element."""
        if not self.by_row:
            return (tensor * tensor).sum().sqrt()
        return row_products(tensor, tensor, ones=paddle.ones([tensor.shape[1]], tensor.dtype)).sqrt().unsqueeze(1)


def _decay_of(rows: paddle.Tensor, decay: float, *, decays_bias: bool) -> float:
    return decay if decays_bias or len(rows.shape) > 1 else 0.0


def _set_floats(optimizer: RowOptimizer, *names: str) -> None:
    """Make numbers of any kind Python floats, which is all that Paddle's operators take."""
    for name in names:
        found = getattr(optimizer, name)
        number = as_number(found)
        if not math.isfinite(number):
            raise ConfigError(f"{type(optimizer).__name__}: {name} is {found!r}, expected a finite number")
        object.__setattr__(optimizer, name, number)  # the class is frozen


def are_plain(parameters: Iterable[paddle.Tensor]) -> bool:
    """Whether no parameter has a learning rate, a regularizer or a `trainable` of its own, of a `paddle.ParamAttr`."""
    return all(
        parameter.optimize_attr["learning_rate"] == 1.0 and parameter.regularizer is None and parameter.trainable
        for parameter in parameters
    )


def row_optimizer_of(optimizer: Any, parameters: Iterable[paddle.Tensor]) -> RowOptimizer | None:
    """The row optimizer with the arithmetic of a Paddle optimizer.

    Args:
        optimizer: a `paddle.optimizer.Optimizer`.
        parameters: the parameters it updates.

    Returns:
        None where the optimizer does more than the row optimizers here: another class, gradient clipping, Nesterov
        momentum, multi-precision, AMSGrad, or a `ParamAttr` with its own learning rate, regularizer or `trainable`.
    """
    # Paddle's optimizers show their settings in these attributes only.
    if not are_plain(parameters) or optimizer._grad_clip is not None or getattr(optimizer, "_multi_precision", False):
        return None
    decay = optimizer.regularization
    l2 = 0.0 if decay is None else decay._coeff if isinstance(decay, paddle.regularizer.L2Decay) else None
    if type(optimizer) is paddle.optimizer.Momentum and not optimizer._use_nesterov and l2 == 0.0:
        return Momentum(optimizer._momentum, optimizer._regularization_coeff)
    if type(optimizer) is paddle.optimizer.SGD and l2 is not None:
        return SGD(l2)
    if (
        type(optimizer) is paddle.optimizer.AdamW
        and not optimizer._amsgrad
        and not optimizer._lazy_mode
        and optimizer._lr_ratio is None
        and optimizer._apply_decay_param_fun is None
    ):
        return AdamW(optimizer._beta1, optimizer._beta2, optimizer._epsilon, optimizer._weight_decay)
    return None
