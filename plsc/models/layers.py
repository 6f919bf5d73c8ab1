"""Layers and sizes that several backbones use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import paddle
from paddle import nn
from paddle.nn.initializer import Constant, Initializer, Uniform


def conv(
    channels_in: int, channels_out: int, *, kernel: int, stride: int = 1, init: Initializer | None = None
) -> nn.Conv2D:
    """A convolution without bias, padded so that a side of h pixels becomes ceil(h / stride)."""
    return nn.Conv2D(channels_in, channels_out, kernel, stride, padding=kernel // 2, weight_attr=init, bias_attr=False)


def linear(features_in: int, features_out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer whose numbers start uniform within 1 / sqrt(inputs) of 0, as PyTorch's do."""
    bound = 1 / math.sqrt(features_in)
    init = Uniform(-bound, bound)
    return nn.Linear(features_in, features_out, weight_attr=init, bias_attr=init if bias else False)


class DropPath(nn.Layer):
    """Leaves out a residual branch for some images in training (Huang et al., "Stochastic Depth", ECCV 2016).

    [N, ...] -> [N, ...]: an image's branch is zeroed with the probability, else divided by 1 - probability. In
    evaluation the branch is as it is. The random numbers are those of Paddle's generator, which the trainer seeds in
    each step.

    Args:
        probability: 0 to below 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        kept = (paddle.rand([x.shape[0]] + [1] * (x.ndim - 1)) < keep).astype(x.dtype)
        return x * (kept / keep)


def side_after(image_shape: Sequence[int], halvings: int) -> tuple[int, int]:
    """Height and width of the feature map after `halvings` convolutions of stride 2."""
    height, width = image_shape[1:]
    for _ in range(halvings):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def in_float32() -> contextlib.AbstractContextManager[Any]:
    """Where mixed precision computes float32 tensors in float32. Graphs are float32 anyway."""
    if not paddle.in_dynamic_mode():
        return contextlib.nullcontext()
    return paddle.amp.auto_cast(enable=False)  # type: ignore[no-any-return]  # Paddle is Any


class FixedScaleNorm(nn.BatchNorm1D):
    """Batch normalization of features [N, D] whose scale is not trained, and whose offset is.

    With a scale that needs no gradient, Paddle 3.3 gives the offset none.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, weight_attr=paddle.ParamAttr(initializer=Constant(1.0), trainable=False))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if not self.training:
            return super().forward(x)
        scale = self.weight.detach()
        scale.stop_gradient = False
        statistics, rates = (self._mean, self._variance), {"momentum": self._momentum, "epsilon": self._epsilon}
        return nn.functional.batch_norm(x, *statistics, scale, self.bias, training=True, **rates)


def batch_norms(network: nn.Layer) -> list[nn.Layer]:
    """The layers of a network that hold running statistics of batch normalization."""
    return [layer for layer in network.sublayers(include_self=True) if hasattr(layer, "_variance")]


def running_statistics(layer: nn.Layer) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Mean and variance of one of `batch_norms`."""
    return layer._mean, layer._variance


@contextlib.contextmanager
def fixed_statistics(layers: Sequence[nn.Layer]) -> Iterator[None]:
    """Where some of `batch_norms` normalize by their batch and leave their running statistics as they are."""
    momenta = [layer._momentum for layer in layers]
    try:
        for layer in layers:
            layer._momentum = 1.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta):
            layer._momentum = momentum
