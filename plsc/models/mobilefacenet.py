"""MobileFaceNet (Chen et al., CCBR 2018), in the form of 0.45 G multiply-adds whose weights are published.

It has twice the channels of the paper's. Layers are named, ordered and initialized as in arcface_torch's `mbf`, so that
its weights have the same names here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.nn.initializer import Normal

from plsc.models.base_model import BaseModel
from plsc.models.layers import side_after


class ConvUnit(nn.Layer):
    """conv - BN - PReLU, or without the PReLU; [N, Ci, H, W] -> [N, Co, H', W']."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        area = kernel * kernel if isinstance(kernel, int) else math.prod(kernel)
        weight = Normal(0.0, math.sqrt(2.0 / (channels_out * area)))
        layers = [
            nn.Conv2D(
                channels_in, channels_out, kernel, stride, padding, groups=groups, weight_attr=weight, bias_attr=False
            ),
            nn.BatchNorm2D(channels_out),
        ]
        self.layers = nn.Sequential(*layers, *([nn.PReLU(channels_out)] if activation else []))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.layers(x)


class InvertedUnit(nn.Layer):
    """conv 1x1 - depthwise conv 3x3 / stride - conv 1x1, without activation after the last.

    Args:
        channels_in: of the input.
        channels_out: of the output.
        width: channels of the depthwise convolution.
        stride: of the depthwise convolution. With 1 the input is added to the output.
    """

    def __init__(self, channels_in: int, channels_out: int, *, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvUnit(channels_in, width),
            ConvUnit(width, width, kernel=3, stride=stride, padding=1, groups=width),
            ConvUnit(width, channels_out, activation=False),
        )
        self._is_residual = stride == 1

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x + self.layers(x) if self._is_residual else self.layers(x)


class Stage(nn.Layer):
    """Units of stride 1, one after the other."""

    def __init__(self, channels: int, *, width: int, units: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(InvertedUnit(channels, channels, width=width, stride=1) for _ in range(units)))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.layers(x)


class GlobalEmbedding(nn.Layer):
    """A depthwise convolution over the whole map, then a linear layer and BN; [N, C, H, W] -> [N, D]."""

    def __init__(self, channels: int, side: tuple[int, int], emb_dim: int) -> None:
        super().__init__()
        weight = Normal(0.0, math.sqrt(2.0 / emb_dim))
        self.layers = nn.Sequential(
            ConvUnit(channels, channels, kernel=side, groups=channels, activation=False),
            nn.Flatten(),
            nn.Linear(channels, emb_dim, weight_attr=weight, bias_attr=False),
            nn.BatchNorm1D(emb_dim),
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.layers(x)


class MobileFaceNet(BaseModel):
    """[N, 3, H, W] -> [N, D].

    The second convolution has groups of two channels, which the published weights need.

    Args:
        emb_dim: embedding size D. Default 512.
        image_shape: (3, H, W), of any height and width. Default (3, 112, 112).
        units: number of units of stride 1 in each of the three stages. Default (4, 6, 2).

    Example:
        >>> MobileFaceNet(512, (3, 112, 112))(paddle.rand([2, 3, 112, 112])).shape
        [2, 512]
    """

    def __init__(
        self,
        emb_dim: int = 512,
        image_shape: Sequence[int] = (3, 112, 112),
        *,
        units: tuple[int, int, int] = (4, 6, 2),
    ) -> None:
        super().__init__(emb_dim)
        self.layers = nn.Sequential(
            ConvUnit(image_shape[0], 128, kernel=3, stride=2, padding=1),
            ConvUnit(128, 128, kernel=3, padding=1, groups=64),
            InvertedUnit(128, 128, width=128, stride=2),
            Stage(128, width=128, units=units[0]),
            InvertedUnit(128, 256, width=256, stride=2),
            Stage(256, width=256, units=units[1]),
            InvertedUnit(256, 256, width=512, stride=2),
            Stage(256, width=256, units=units[2]),
        )
        self.conv_sep = ConvUnit(256, 512)
        self.features = GlobalEmbedding(512, side_after(image_shape, halvings=4), emb_dim)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.features(self.conv_sep(self.layers(images)))

    def recomputable(self) -> list[nn.Layer]:
        """The units, in order."""
        return [layer for layer in self.layers.sublayers() if isinstance(layer, InvertedUnit)]
