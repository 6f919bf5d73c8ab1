"""Layers and sizes that several backbones use."""

from __future__ import annotations

from collections.abc import Sequence

from paddle import nn


def conv(channels_in: int, channels_out: int, *, kernel: int, stride: int = 1) -> nn.Conv2D:
    """A convolution without bias, padded so that a side of h pixels becomes ceil(h / stride)."""
    return nn.Conv2D(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias_attr=False)


def side_after(image_shape: Sequence[int], halvings: int) -> tuple[int, int]:
    """Height and width of the feature map after `halvings` convolutions of stride 2."""
    height, width = image_shape[1:]
    for _ in range(halvings):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width
