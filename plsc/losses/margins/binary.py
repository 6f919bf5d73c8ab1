"""SphereFace2 and UniFace: a binary classification for each class, in place of one softmax over all.

With k a scale, g a growing function of the cosine and b a bias that is trained, the same for all classes,

    p_n  = k (g(cos theta_y) - m) + b          the logit of the own class
    u_cn = k (g(cos theta_c) + m') + b         those of the others

    L_n  = P log(1 + exp(-p_n)) + Q sum_c log(1 + exp(u_cn))

No class depends on another one, so ranks exchange sums only. With z = log(1 + exp):

    SphereFace2   g = 2 ((cos + 1) / 2)^t - 1    m' = m    P = lambda w / s    Q = (1 - lambda) w / s    k = s
    UniFace       g = cos                        m' = 0    P = 1               Q = lambda                k = s

Sources: SphereFace2: Binary Classification is All You Need for Deep Face Recognition, Wen et al., ICLR 2022, equation 5
and the additive margin of SphereFace2-C; the initial bias and the weight w = 50 are those of its authors' code (the
repository opensphere), which computes g without a gradient, as if its derivative were 1; here it has its own.
UniFace: Unified Cross-Entropy Loss for Deep Face Recognition, Zhou et al., ICCV 2023, with the initial bias log(10 C)
of its authors' code; its b is -b here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import paddle

from plsc.loss_types import SphereFace2Parameters, UniFaceParameters
from plsc.losses.logit_ops import half_powers
from plsc.losses.ops import no_grad

_MOMENTUM = 0.9


@runtime_checkable
class BinaryMargin(Protocol):
    """A margin whose loss is a sum of binary ones. It has all of `plsc.losses.negatives.NegativesMargin` too.

    Attributes:
        bias: b, [1], float32.
        scale: k.
        positive_weight: P.
        negative_weight: Q, above 0.
    """

    bias: paddle.Tensor
    scale: float
    positive_weight: float
    negative_weight: float

    def start(self, *, num_classes: int, scale: float) -> None:
        """Set the scale, and the bias to its initial value.

        Args:
            num_classes: in the sum; fewer than C where classes are sampled.
            scale: s.
        """
        ...

    def move_bias(self, gradient: paddle.Tensor, learning_rate: float) -> None:
        """Update the bias by the derivative of L by it, [1]."""
        ...


class _Binary:
    """The bias: one number, updated by SGD with momentum 0.9 and no weight decay, at the head's learning rate."""

    needs_all_cosines, is_per_sample = False, True
    negatives_bound = 1.0
    scale = 1.0
    bias: paddle.Tensor
    _velocity: paddle.Tensor

    def _set_bias(self, value: float) -> None:
        self.bias, self._velocity = paddle.full([1], value), paddle.zeros([1])

    @no_grad
    def move_bias(self, gradient: paddle.Tensor, learning_rate: float) -> None:
        """As `BinaryMargin` says."""
        self._velocity = _MOMENTUM * self._velocity + gradient.reshape([1]).astype("float32")
        self.bias = self.bias - learning_rate * self._velocity

    def state(self) -> dict[str, paddle.Tensor]:
        """The bias and its momentum."""
        return {"bias": self.bias, "bias_velocity": self._velocity}

    def load(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Set both."""
        self.bias, self._velocity = (paddle.to_tensor(state[name]) for name in ("bias", "bias_velocity"))


@dataclass(eq=False)
class SphereFace2(_Binary, SphereFace2Parameters):
    """P log(1 + exp(-s (g - m) - b)) + Q sum log(1 + exp(s (g + m) + b)), g = 2 ((cos + 1) / 2)^t - 1.

    Args:
        m: margin on g, 0 or more.
        t: exponent, 1 or more; a greater one spreads the cosines of other classes less.
        balance: lambda, the weight of the own class, between 0 and 1.
        weight: w, factor of the loss, above 0.

    Raises:
        ConfigError: a parameter is outside its range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.start(num_classes=2, scale=40.0)

    def start(self, *, num_classes: int, scale: float) -> None:
        """As `BinaryMargin` says; the initial bias makes the whole loss as small as a bias can at cosines of 0."""
        self.scale = scale
        self.positive_weight = self.balance * self.weight / scale
        self.negative_weight = (1.0 - self.balance) * self.weight / scale
        at_zero = 2.0 * 0.5**self.t - 1.0
        self._set_bias(
            _best_bias(
                own=scale * (at_zero - self.m),
                others=scale * (at_zero + self.m),
                share=self.balance / ((1.0 - self.balance) * max(num_classes - 1, 1)),
            )
        )

    def __call__(self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        """psi = g - m and its derivative."""
        return half_powers(cosine, power=self.t, plus=-self.m)

    def negatives(self, cosine: paddle.Tensor, *, target: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """g + m and its derivative."""
        return half_powers(cosine, power=self.t, plus=self.m)


@dataclass(eq=False)
class UniFace(_Binary, UniFaceParameters):
    """log(1 + exp(-s (cos - m) + b)) + lambda sum log(1 + exp(s cos - b)).

    Args:
        m: margin on the cosine, 0 or more.
        balance: lambda, the weight of the other classes, above 0.

    Raises:
        ConfigError: a parameter is outside its range.
    """

    positive_weight = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.start(num_classes=2, scale=64.0)

    def start(self, *, num_classes: int, scale: float) -> None:
        """As `BinaryMargin` says."""
        self.scale, self.negative_weight = scale, self.balance
        self._set_bias(-math.log(10.0 * num_classes))

    def __call__(self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        """psi = cos - m and its derivative."""
        return cosine - self.m, paddle.ones_like(cosine)

    def negatives(self, cosine: paddle.Tensor, *, target: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """The cosine itself."""
        return cosine, None


def _best_bias(*, own: float, others: float, share: float) -> float:
    """The b at which share log(1 + exp(-own - b)) + log(1 + exp(others + b)) is least.

    Its derivative is 0 where q = exp(b) is the positive root of
    exp(own + others) q^2 + (1 - share) exp(others) q - share = 0.
    """
    rest = 1.0 - share
    root = math.sqrt(rest * rest + 4.0 * share * math.exp(min(own - others, 700.0)))
    return math.log(2.0 * share) - others - math.log(rest + root)
