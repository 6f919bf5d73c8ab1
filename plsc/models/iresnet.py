"""IResNet: the residual networks of ArcFace with basic units, whose weights arcface_torch and others publish.

Deng et al., "ArcFace", CVPR 2019, section 3.1; Duta et al., "Improved Residual Networks", ICPR 2020. Layers are named,
ordered and initialized as in arcface_torch's `iresnet`, so that its weights have the same names here.

`plsc.models.resnet` has the ResNet50, 101 and 152 of PLSC 0.1, of which the last two are bottleneck networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.nn.initializer import Normal

from plsc.models.base_model import BaseModel
from plsc.models.layers import FixedScaleNorm, conv, linear, side_after

_CONV = Normal(0.0, 0.1)
WIDTHS = (64, 128, 256, 512)


class BasicUnit(nn.Layer):
    """BN - conv 3x3 - BN - PReLU - conv 3x3 / stride - BN, plus a shortcut; [N, Ci, H, W] -> [N, Co, H/s, W/s]."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2D(channels_in)
        self.conv1 = conv(channels_in, channels_out, kernel=3, init=_CONV)
        self.bn2 = nn.BatchNorm2D(channels_out)
        self.prelu = nn.PReLU(channels_out)
        self.conv2 = conv(channels_out, channels_out, kernel=3, stride=stride, init=_CONV)
        self.bn3 = nn.BatchNorm2D(channels_out)
        self.downsample: nn.Layer | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                conv(channels_in, channels_out, kernel=1, stride=stride, init=_CONV), nn.BatchNorm2D(channels_out)
            )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        body = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return body + (x if self.downsample is None else self.downsample(x))


class IResNet(BaseModel):
    """A stem of stride 1, four stages of `BasicUnit` that each halve height and width, and BN - dropout - FC - BN.

    [N, 3, H, W] -> [N, D]. The last batch normalization has a scale of 1 that is not trained.

    Args:
        units: number of units of each of the four stages.
        emb_dim: embedding size D. Default 512.
        image_shape: (3, H, W), of any height and width. Default (3, 112, 112).
        dropout: probability that a number of the last feature map is zeroed in training. Default 0.

    Example:
        >>> IResNet((2, 2, 2, 2), 512, image_shape=(3, 112, 112))(paddle.rand([2, 3, 112, 112])).shape
        [2, 512]
    """

    def __init__(
        self,
        units: Sequence[int],
        emb_dim: int = 512,
        *,
        image_shape: Sequence[int] = (3, 112, 112),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(emb_dim)
        channels = WIDTHS[0]
        self.conv1 = conv(image_shape[0], channels, kernel=3, init=_CONV)
        self.bn1 = nn.BatchNorm2D(channels)
        self.prelu = nn.PReLU(channels)
        for index, (width, count) in enumerate(zip(WIDTHS, units), start=1):
            stage = [BasicUnit(channels, width, stride=2)]
            stage += [BasicUnit(width, width, stride=1) for _ in range(count - 1)]
            self.add_sublayer(f"layer{index}", nn.Sequential(*stage))
            channels = width
        self.bn2 = nn.BatchNorm2D(channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = linear(channels * math.prod(side_after(image_shape, halvings=len(WIDTHS))), emb_dim)
        self.features = FixedScaleNorm(emb_dim)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))

    def recomputable(self) -> list[nn.Layer]:
        """The units, in order."""
        return [unit for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for unit in stage]


class IResNet18(IResNet):
    """`IResNet` of 8 units."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, dropout: float = 0.0) -> None:
        super().__init__((2, 2, 2, 2), emb_dim, image_shape=image_shape, dropout=dropout)


class IResNet34(IResNet):
    """`IResNet` of 16 units."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, dropout: float = 0.0) -> None:
        super().__init__((3, 4, 6, 3), emb_dim, image_shape=image_shape, dropout=dropout)


class IResNet50(IResNet):
    """`IResNet` of 24 units."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, dropout: float = 0.0) -> None:
        super().__init__((3, 4, 14, 3), emb_dim, image_shape=image_shape, dropout=dropout)


class IResNet100(IResNet):
    """`IResNet` of 49 units."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, dropout: float = 0.0) -> None:
        super().__init__((3, 13, 30, 3), emb_dim, image_shape=image_shape, dropout=dropout)


class IResNet200(IResNet):
    """`IResNet` of 98 units."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, dropout: float = 0.0) -> None:
        super().__init__((6, 26, 60, 6), emb_dim, image_shape=image_shape, dropout=dropout)
