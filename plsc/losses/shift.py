"""The shift of the exponents: what keeps exp(z - shift) within the range of its type, by three policies.

The fused step computes exp(z_nc - shift_n) for every class but the sample's own. It sums them over the classes and uses
them again for the gradients. Any shift gives the same loss, as long as nothing overflows or underflows:

    ConstantShift   |z| <= s <= 64 and float32: shift_n = 8, no pass over the logits to find their maximum
    RunningMaximum  any z: shift_n = the maximum over the classes so far, in the end over all ranks
    HalfRange       float16 products: as before, then shifted by half the logarithm of the sum

A policy is an object of one step. G gathered batch, B classes of a chunk, D embedding.
"""

from __future__ import annotations

from typing import Protocol

import paddle

from plsc.losses.logit_ops import column_maxima, subtract_row_
from plsc.losses.reference import Reducer

# Up to this scale ConstantShift keeps float32's range, e^-87 to e^88: a sum over 1e8 classes is at most
# e^(64 - 8 + 18.4) = e^74.4, its product with 1e4 samples e^83.6; the least exponential is e^-72. At both ends a factor
# of 1e4 or more is left for the norms of rows.
SAFE_SCALE = 64.0
_LOWEST = -1e15  # below any logit


class Shift(Protocol):
    """What the fused step needs of a policy.

    Attributes:
        constant: the part of the shift that the caller subtracts from the offsets of the rows, where it costs nothing.
        value: shift_n, 0-d or [G], the constant included.
    """

    constant: float
    value: paddle.Tensor

    def follow(self, exponents: paddle.Tensor, *, total: paddle.Tensor, gradient: paddle.Tensor) -> None:
        """In the first pass, before `subtract_`: adapt `value` to exponents [B, G] and the sums so far to `value`."""
        ...

    def subtract_(self, exponents: paddle.Tensor, k: int | None = None) -> paddle.Tensor:
        """exponents [B, G], which lack the constant already, minus the rest of `value`; in place.

        With `k`, minus what the shift was when the first pass came to chunk k.
        """
        ...

    def factor(self, k: int) -> paddle.Tensor | None:
        """exp(shift at chunk k - `value`) [G], at most 1: from its exponentials to those of `value`; None for 1."""
        ...

    def agree(self, reducer: Reducer, *, total: paddle.Tensor, gradient: paddle.Tensor) -> None:
        """After the first pass: make `value` the same on all ranks and adapt this rank's total [G], gradient [G, D]."""
        ...

    def center(self, total: paddle.Tensor, *, gradient: paddle.Tensor) -> None:
        """Before the second pass, once `total` [G] is the sum over all ranks: adapt `value`, total and gradient."""
        ...


class ConstantShift:
    """shift_n = 8."""

    constant = 8.0

    def __init__(self, samples: int, dtype: paddle.dtype) -> None:
        self.value = paddle.full([], self.constant, dtype)

    def follow(self, exponents: paddle.Tensor, *, total: paddle.Tensor, gradient: paddle.Tensor) -> None:
        pass

    def subtract_(self, exponents: paddle.Tensor, k: int | None = None) -> paddle.Tensor:
        return exponents

    def factor(self, k: int) -> paddle.Tensor | None:
        return None

    def agree(self, reducer: Reducer, *, total: paddle.Tensor, gradient: paddle.Tensor) -> None:
        pass

    def center(self, total: paddle.Tensor, *, gradient: paddle.Tensor) -> None:
        pass


class RunningMaximum:
    """shift_n = max_c z_nc, computed chunk by chunk, as in online softmax (Milakov and Gimelshein, 2018)."""

    constant = 0.0

    def __init__(self, samples: int, dtype: paddle.dtype) -> None:
        self.value = paddle.full([samples], _LOWEST, dtype)
        self._values: list[paddle.Tensor] = []  # at each chunk

    def follow(self, exponents: paddle.Tensor, *, total: paddle.Tensor, gradient: paddle.Tensor) -> None:
        self._raise(paddle.maximum(self.value, column_maxima(exponents)), total, gradient)
        self._values.append(self.value)

    def subtract_(self, exponents: paddle.Tensor, k: int | None = None) -> paddle.Tensor:
        return subtract_row_(exponents, self.value if k is None else self._values[k])

    def factor(self, k: int) -> paddle.Tensor | None:
        return paddle.exp(self._values[k] - self.value)

    def agree(self, reducer: Reducer, *, total: paddle.Tensor, gradient: paddle.Tensor) -> None:
        self._raise(reducer.all_reduce_max(self.value.clone()), total, gradient)

    def center(self, total: paddle.Tensor, *, gradient: paddle.Tensor) -> None:
        pass

    def _raise(self, value: paddle.Tensor, total: paddle.Tensor, gradient: paddle.Tensor) -> None:
        factor = paddle.exp(self.value - value)
        total.multiply_(factor)
        gradient.multiply_(factor.unsqueeze(1))
        self.value = value


class HalfRange(RunningMaximum):
    """max_c z_nc + log(total) / 2: float16 holds both factors of the row gradients.

    Without the second part the exponentials would be 1 at most, and the features' factor t_n about 1 / total. With it
    both are divided by the root of the total.
    """

    def center(self, total: paddle.Tensor, *, gradient: paddle.Tensor) -> None:
        root = paddle.sqrt(paddle.clip(total, min=1.0))
        self.value = self.value + paddle.log(root)
        total.divide_(root)
        gradient.divide_(root.unsqueeze(1))


def choose_shift(scale: float | None, *, half_range: bool) -> type[ConstantShift] | type[RunningMaximum]:
    """The policy for logits of at most `scale`; None for logits without a bound."""
    if half_range:
        return HalfRange
    return ConstantShift if scale is not None and scale <= SAFE_SCALE else RunningMaximum
