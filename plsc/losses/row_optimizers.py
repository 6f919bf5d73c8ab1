"""Update rules that work on any rows of a parameter, so that a shard can be updated block by block.

Each is the same arithmetic as the Paddle optimizer of its name (they call the same operators); only
the bookkeeping differs: state is kept in tensors shaped like the parameter, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import paddle

_C = paddle._C_ops  # in place, on views of a parameter: paddle.optimizer cannot update part of one


class UpdateRule(Protocol):
    """How rows change by their gradient.

    Attributes:
        l2: the gradient is to hold this multiple of the rows; the caller adds it.
        kinds: names of the state tensors, each shaped like the parameter and zero at first.
        storage: type of the weight's state tensors; None for the weight's own.
    """

    l2: float
    kinds: tuple[str, ...]
    storage: str | None

    def prepare(self, rate: float, step: int, dtype: paddle.dtype) -> tuple[paddle.Tensor, ...]:
        """What `apply` needs of a step: its learning rate and its number, 1 for the first."""
        ...

    def apply(
        self,
        rows: paddle.Tensor,
        gradient: paddle.Tensor,
        state: Sequence[paddle.Tensor],
        prepared: tuple[paddle.Tensor, ...],
    ) -> None:
        """Update rows and their state in place."""
        ...


@dataclass(frozen=True)
class SGD:
    """rows -= rate * (gradient + l2 * rows)."""

    l2: float = 0.0
    kinds: tuple[str, ...] = ()
    storage: str | None = None

    def prepare(self, rate: float, step: int, dtype: paddle.dtype) -> tuple[paddle.Tensor, ...]:
        return (paddle.to_tensor([rate], dtype=dtype),)

    def apply(self, rows, gradient, state, prepared) -> None:
        _C.sgd_(rows, prepared[0], gradient, None, False)


@dataclass(frozen=True)
class Momentum:
    """velocity = momentum * velocity + gradient + l2 * rows; rows -= rate * velocity."""

    momentum: float = 0.9
    l2: float = 5e-4
    kinds: tuple[str, ...] = ("velocity",)
    storage: str | None = None

    def prepare(self, rate: float, step: int, dtype: paddle.dtype) -> tuple[paddle.Tensor, ...]:
        return (paddle.to_tensor([rate], dtype=dtype),)

    def apply(self, rows, gradient, state, prepared) -> None:
        _C.momentum_(rows, gradient, state[0], prepared[0], None, self.momentum, False, "", 0.0, False, 1.0)


@dataclass(frozen=True)
class HalfMomentum(Momentum):
    """`Momentum` whose velocity is kept in bfloat16, for half the memory, and rounded stochastically.

    A number between two bfloat16 neighbors becomes either, the nearer the likelier, so that on average nothing is
    lost; rounding to the nearest would forget every gradient smaller than 1/256 of the velocity (Gupta et al., ICML
    2015). One draw of noise serves all blocks of a step. The arithmetic is float32's.
    """

    storage: str | None = "bfloat16"

    def prepare(self, rate: float, step: int, dtype: paddle.dtype) -> tuple[Any, ...]:
        noise: list[paddle.Tensor] = []  # drawn by the first block, the largest, in its shape
        return (*super().prepare(rate, step, dtype), noise)

    def apply(self, rows, gradient, state, prepared) -> None:
        rate, noise = prepared
        if state[0].dtype == rows.dtype:
            super().apply(rows, gradient, state, (rate,))
            return
        if not noise:
            noise.append(paddle.randint(0, 1 << 16, rows.shape, "int32"))
        velocity = state[0].astype(rows.dtype)
        super().apply(rows, gradient, [velocity], (rate,))
        # bfloat16 is the upper half of float32: a carry out of the lower half rounds up in magnitude.
        bits = _C.add_(velocity.view("int32"), noise[0][: rows.shape[0]])
        upper = paddle.bitwise_and(bits, paddle.full([], -(1 << 16), "int32"))
        paddle.assign(upper.view("float32").astype("bfloat16"), state[0])


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019): decay apart from the gradient, moments corrected by the step."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.01
    l2: float = 0.0
    kinds: tuple[str, ...] = ("moment1", "moment2")
    storage: str | None = None

    def prepare(self, rate: float, step: int, dtype: paddle.dtype) -> tuple[paddle.Tensor, ...]:
        return (
            paddle.to_tensor([rate], dtype=dtype),
            paddle.to_tensor([self.beta1**step], dtype=dtype),
            paddle.to_tensor([self.beta2**step], dtype=dtype),
        )

    def apply(self, rows, gradient, state, prepared) -> None:
        rate, power1, power2 = prepared
        # The operator moves the powers on to the next step, which is not here yet for the other rows.
        _C.adamw_(
            rows,
            gradient,
            rate,
            state[0],
            state[1],
            None,
            power1.clone(),
            power2.clone(),
            None,
            None,
            self.beta1,
            self.beta2,
            self.epsilon,
            1.0,
            self.decay,
            True,
            False,
            1000,
            False,
            False,
            False,
        )
