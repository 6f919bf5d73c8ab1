"""The residual networks of PLSC 0.1.

ResNet50/101/152 are the "IR" networks of ArcFace (Deng et al., CVPR 2019, section 3.1) as PLSC 0.1
used them: a 3 x 3 stem of stride 1, four stages that each halve height and width, residual units that begin
and end in batch normalization, PReLU, and a head of BN - dropout - FC - BN. ResNet50 has the units of IResNet50.
ResNet101 and ResNet152 have bottleneck units: they are no IResNet100 and IResNet200, which `plsc.models.iresnet` has.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn

from plsc.errors import ConfigError
from plsc.models.base_model import BaseModel
from plsc.models.layers import conv, side_after
from plsc.models.tiny import ResNetTiny

__all__ = ["ResNet", "ResNet50", "ResNet101", "ResNet152", "ResNetTiny"]  # the last by its path of PLSC 1.0


class IRUnit(nn.Layer):
    """BN - conv 3x3 - BN - PReLU - conv 3x3 / stride - BN, plus a shortcut; [N, Ci, H, W] -> [N, Co, H/s, W/s].

    With `bottleneck`: BN - conv 1x1 - BN - PReLU - conv 3x3 - BN - PReLU - conv 1x1 / stride - BN, with Co / 4 channels
    inside.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            middle = channels_out // 4
            convs = [
                conv(channels_in, middle, kernel=1),
                conv(middle, middle, kernel=3),
                conv(middle, channels_out, kernel=1, stride=stride),
            ]
        else:
            convs = [
                conv(channels_in, channels_out, kernel=3),
                conv(channels_out, channels_out, kernel=3, stride=stride),
            ]
        layers: list[nn.Layer] = [nn.BatchNorm2D(channels_in)]
        for layer in convs[:-1]:
            layers += [layer, nn.BatchNorm2D(layer.weight.shape[0]), nn.PReLU(layer.weight.shape[0])]
        self.body = nn.Sequential(*layers, convs[-1], nn.BatchNorm2D(channels_out))
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                conv(channels_in, channels_out, kernel=1, stride=stride), nn.BatchNorm2D(channels_out)
            )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.body(x) + self.shortcut(x)


class ResNet(BaseModel):
    """A face network of IR units: [N, 3, H, W] -> [N, D].

    Args:
        layers: 50, 101 or 152. Default 50.
        emb_dim: embedding size D. Default 512.
        image_shape: (3, H, W). Default (3, 112, 112).
        dropout: probability that an element of the last feature map is zeroed in training. Default 0.4.

    Raises:
        ConfigError: another number of layers.

    Example:
        >>> ResNet(50, 512, image_shape=(3, 112, 112))(paddle.rand([2, 3, 112, 112])).shape
        [2, 512]
    """

    UNITS = {50: (3, 4, 14, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

    def __init__(
        self, layers: int = 50, emb_dim: int = 512, *, image_shape: Sequence[int] = (3, 112, 112), dropout: float = 0.4
    ) -> None:
        super().__init__(emb_dim)
        if layers not in self.UNITS:
            raise ConfigError(f"ResNet: got {layers} layers, expected one of {sorted(self.UNITS)}")
        bottleneck = layers > 50
        widths = (256, 512, 1024, 2048) if bottleneck else (64, 128, 256, 512)
        self.stem = nn.Sequential(conv(image_shape[0], 64, kernel=3), nn.BatchNorm2D(64), nn.PReLU(64))
        units, channels = [], 64
        for width, count in zip(widths, self.UNITS[layers]):
            for index in range(count):
                units.append(IRUnit(channels, width, stride=2 if index == 0 else 1, bottleneck=bottleneck))
                channels = width
        self.stages = nn.Sequential(*units)
        side = side_after(image_shape, halvings=len(widths))
        self.head = nn.Sequential(
            nn.BatchNorm2D(channels),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(channels * side[0] * side[1], emb_dim),
            nn.BatchNorm1D(emb_dim),
        )

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.stages(self.stem(images)))

    def recomputable(self) -> list[nn.Layer]:
        """The units, in order."""
        return list(self.stages)


class ResNet50(ResNet):
    """`ResNet` of 50 layers: 24 units of two convolutions."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112)) -> None:
        super().__init__(50, emb_dim, image_shape=image_shape)


class ResNet101(ResNet):
    """`ResNet` of 101 layers, of bottleneck units."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112)) -> None:
        super().__init__(101, emb_dim, image_shape=image_shape)


class ResNet152(ResNet):
    """`ResNet` of 152 layers, of bottleneck units."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112)) -> None:
        super().__init__(152, emb_dim, image_shape=image_shape)
