"""A small residual network, for CPUs and small images."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn

from plsc.models.base_model import BaseModel
from plsc.models.layers import conv, side_after


class PlainUnit(nn.Layer):
    """conv - BN - ReLU - conv - BN, plus a shortcut, then ReLU; the first convolution has the stride."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels_in, channels_out, kernel=3, stride=stride),
            nn.BatchNorm2D(channels_out),
            nn.ReLU(),
            conv(channels_out, channels_out, kernel=3),
            nn.BatchNorm2D(channels_out),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                conv(channels_in, channels_out, kernel=1, stride=stride), nn.BatchNorm2D(channels_out)
            )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


class ResNetTiny(BaseModel):
    """Ten layers, 16 to 128 channels, ReLU (He et al., CVPR 2016): [N, 3, H, W] -> [N, D].

    For CPUs, where PReLU and depthwise convolutions are slow, and for images of 32 to 64 pixels.

    Args:
        emb_dim: embedding size D. Default 128.
        image_shape: (3, H, W). Default (3, 32, 32).

    Example:
        >>> ResNetTiny(128, (3, 32, 32))(paddle.rand([2, 3, 32, 32])).shape
        [2, 128]
    """

    WIDTHS = (16, 32, 64, 128)

    def __init__(self, emb_dim: int = 128, image_shape: Sequence[int] = (3, 32, 32)) -> None:
        super().__init__(emb_dim)
        channels = self.WIDTHS[0]
        layers: list[nn.Layer] = [conv(image_shape[0], channels, kernel=3), nn.BatchNorm2D(channels), nn.ReLU()]
        for index, width in enumerate(self.WIDTHS):
            layers.append(PlainUnit(channels, width, stride=1 if index == 0 else 2))
            channels = width
        self.body = nn.Sequential(*layers)
        side = side_after(image_shape, halvings=len(self.WIDTHS) - 1)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * side[0] * side[1], emb_dim), nn.BatchNorm1D(emb_dim)
        )

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.body(images))

    def recomputable(self) -> list[nn.Layer]:
        """The units, in order."""
        return [layer for layer in self.body if isinstance(layer, PlainUnit)]
