"""EdgeFace (George et al., IEEE T-BIOM 2024): EdgeNeXt (Maaz et al., ECCV 2022 workshops) with an embedding layer.

Layers are named, ordered and initialized as in timm's `edgenext`, whose names the published weights have behind
'model.'. In EdgeFace-XS and EdgeFace-S each linear layer is a product of two of lower rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import nn
from paddle.nn.initializer import Constant, TruncatedNormal

from plsc.errors import ConfigError
from plsc.models.base_model import BaseModel
from plsc.models.layers import DropPath, in_float32, linear

DEPTHS, KERNELS, SCALES = (3, 3, 9, 3), (3, 5, 7, 9), (2, 2, 3, 4)
EPSILON = 1e-6
LAYER_SCALE = 1e-6
_WEIGHT, _BIAS = TruncatedNormal(0.0, 0.02, -0.04, 0.04), Constant(0.0)


class LowRankLinear(nn.Layer):
    """A linear layer whose weight is the product of two: [..., I] -> [..., R] -> [..., O].

    Args:
        features_in: I.
        features_out: O.
        rank: R as a share of the smaller of I and O.
        bias: whether the second has one.
    """

    def __init__(self, features_in: int, features_out: int, *, rank: float, bias: bool = True) -> None:
        super().__init__()
        inner = max(2, int(min(features_in, features_out) * rank))
        self.linear1 = linear(features_in, inner, bias=False)
        self.linear2 = linear(inner, features_out, bias=bias)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.linear2(self.linear1(x))


class ChannelNorm(nn.Layer):
    """Layer normalization over the channels of [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = self.create_parameter([channels], default_initializer=Constant(1.0))
        self.bias = self.create_parameter([channels], is_bias=True)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        last = x.transpose([0, 2, 3, 1])
        normed = nn.functional.layer_norm(last, last.shape[-1:], self.weight, self.bias, EPSILON)
        return normed.transpose([0, 3, 1, 2])


class MLP(nn.Layer):
    """linear - GELU - linear, four times as wide inside."""

    def __init__(self, width: int, *, rank: float | None) -> None:
        super().__init__()
        self.fc1 = _linear(width, 4 * width, rank=rank)
        self.fc2 = _linear(4 * width, width, rank=rank)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.fc2(_gelu(self.fc1(x)))


class ConvBlock(nn.Layer):
    """A residual block: depthwise conv - LN - MLP; [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int, *, kernel: int, rank: float | None, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = _conv(channels, channels, kernel=kernel, groups=channels)
        self.norm = nn.LayerNorm(channels, EPSILON)
        self.mlp = MLP(channels, rank=rank)
        self.gamma = self.create_parameter([channels], default_initializer=Constant(LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        branch = self.mlp(self.norm(self.conv_dw(x).transpose([0, 2, 3, 1]))) * self.gamma
        return x + self.drop_path(branch.transpose([0, 3, 1, 2]))


class FourierPositions(nn.Layer):
    """Sines and cosines of the place in the map, as channels: [1, C, H, W]."""

    WAVES, LONGEST = 32, 10000.0

    def __init__(self, channels: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.token_projection = _conv(2 * self.WAVES, channels, kernel=1)
        self._waves = self._make(side)

    def _make(self, side: tuple[int, int]) -> NDArray[np.float32]:
        """[1, 64, H, W]: first those of the row, then those of the column."""
        numbers = np.arange(self.WAVES)
        lengths = self.LONGEST ** (2 * (numbers // 2) / self.WAVES)
        waves = []
        for size in side:
            angles = np.arange(1, size + 1)[:, None] / (size + EPSILON) * 2 * math.pi / lengths
            waves.append(np.where(numbers % 2 == 0, np.sin(angles), np.cos(angles)))
        height, width = side
        rows = np.broadcast_to(waves[0][:, None], (height, width, self.WAVES))
        columns = np.broadcast_to(waves[1][None], (height, width, self.WAVES))
        made: NDArray[np.float32] = np.concatenate([rows, columns], axis=2).transpose(2, 0, 1)[None].astype(np.float32)
        return made

    def forward(self) -> paddle.Tensor:
        return self.token_projection(paddle.to_tensor(self._waves).astype(self.token_projection.weight.dtype))


class ChannelAttention(nn.Layer):
    """Attention among channels, not tokens (XCiT, El-Nouby et al., NeurIPS 2021): [N, T, C] -> [N, T, C]."""

    def __init__(self, width: int, *, heads: int, rank: float | None) -> None:
        super().__init__()
        self._heads = heads
        self.temperature = self.create_parameter([heads, 1, 1], default_initializer=Constant(1.0))
        self.qkv = _linear(width, 3 * width, rank=rank)
        self.proj = _linear(width, width, rank=rank)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        tokens, width = x.shape[1:]
        qkv = self.qkv(x).reshape([-1, tokens, 3, self._heads, width // self._heads]).transpose([2, 0, 3, 4, 1])
        with in_float32():
            queries, keys, values = (part.astype("float32") for part in (qkv[0], qkv[1], qkv[2]))
            scores = (_unit(queries) @ _unit(keys).transpose([0, 1, 3, 2])) * self.temperature
            x = nn.functional.softmax(scores) @ values
        return self.proj(x.transpose([0, 3, 1, 2]).reshape([-1, tokens, width]))


class SplitTransposeBlock(nn.Layer):
    """A residual block: convolutions of groups of channels, one after the other, channel attention, MLP.

    [N, C, H, W] -> [N, C, H, W].

    Args:
        channels: C.
        scales: number of groups of channels.
        heads: of the attention.
        positions: (H, W) where positions are added before the attention, else None.
        rank: of the linear layers, see `LowRankLinear`; None for whole ones.
        drop_path: see `DropPath`.
    """

    def __init__(
        self,
        channels: int,
        *,
        scales: int,
        heads: int,
        positions: tuple[int, int] | None,
        rank: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        width = math.ceil(channels / scales)
        # As many channels in each group, and what is left in the last one, which has no convolution.
        self._groups = [width] * (scales - 1) + [channels - width * (scales - 1)]
        self.convs = nn.LayerList([_conv(width, width, kernel=3, groups=width) for _ in range(max(1, scales - 1))])
        self.pos_embd = None if positions is None else FourierPositions(channels, positions)
        self.norm_xca = nn.LayerNorm(channels, EPSILON)
        self.gamma_xca = self.create_parameter([channels], default_initializer=Constant(LAYER_SCALE))
        self.xca = ChannelAttention(channels, heads=heads, rank=rank)
        self.norm = nn.LayerNorm(channels, EPSILON)
        self.mlp = MLP(channels, rank=rank)
        self.gamma = self.create_parameter([channels], default_initializer=Constant(LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        channels, height, width = x.shape[1:]
        y = self._convolve(x)
        if self.pos_embd is not None:
            y = y + self.pos_embd()
        y = y.flatten(2).transpose([0, 2, 1])
        y = y + self.drop_path(self.xca(self.norm_xca(y)) * self.gamma_xca)
        branch = (self.mlp(self.norm(y)) * self.gamma).transpose([0, 2, 1]).reshape([-1, channels, height, width])
        return x + self.drop_path(branch)

    def _convolve(self, x: paddle.Tensor) -> paddle.Tensor:
        parts = x.split(self._groups, axis=1)
        made: list[paddle.Tensor] = []
        for part, conv in zip(parts, self.convs):
            made.append(conv(part if not made else made[-1] + part))
        return paddle.concat([*made, parts[-1]], axis=1)


class Stage(nn.Layer):
    """Blocks behind a convolution that halves height and width; the first stage has none."""

    def __init__(self, channels_in: int, channels_out: int, blocks: list[nn.Layer]) -> None:
        super().__init__()
        self.downsample: nn.Layer = nn.Identity()
        if channels_in != channels_out:
            self.downsample = nn.Sequential(
                ChannelNorm(channels_in), _conv(channels_in, channels_out, kernel=2, stride=2, padding=0)
            )
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.blocks(self.downsample(x))


class EdgeFace(BaseModel):
    """A stem of 4 x 4 patches, four stages and an embedding of the mean over the map: [N, 3, H, W] -> [N, D].

    Args:
        widths: channels of each stage.
        emb_dim: embedding size D. Default 512.
        image_shape: (3, H, W), 32 or more. Default (3, 112, 112).
        depths: blocks of each stage, of which the last one of each but the first stage is a `SplitTransposeBlock`.
        heads: of the attention. Each of `widths` but the first must be a multiple of it.
        rank: of the linear layers, see `LowRankLinear`; None for whole ones.
        drop_path: probability that the last block's branches are left out for an image in training; it rises evenly
            from 0 at the first block. Default 0.

    Raises:
        ConfigError: an image has less than 32 pixels to a side.

    Example:
        >>> EdgeFace((24, 48, 88, 168), depths=(2, 2, 6, 2))(paddle.rand([2, 3, 112, 112])).shape
        [2, 512]
    """

    def __init__(
        self,
        widths: Sequence[int],
        emb_dim: int = 512,
        *,
        image_shape: Sequence[int] = (3, 112, 112),
        depths: Sequence[int] = DEPTHS,
        heads: int = 4,
        rank: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(emb_dim)
        if min(image_shape[1:]) < 32:
            raise ConfigError(
                f"image_shape: got {tuple(image_shape)}; an EdgeFace takes images of at least 32 x 32 pixels"
            )
        self.stem = nn.Sequential(
            _conv(image_shape[0], widths[0], kernel=4, stride=4, padding=0), ChannelNorm(widths[0])
        )
        side = (image_shape[1] // 4, image_shape[2] // 4)
        total, stages, channels = sum(depths), [], widths[0]
        rates = iter([drop_path * index / max(1, total - 1) for index in range(total)])
        for index, (width, depth) in enumerate(zip(widths, depths)):
            if index > 0:
                side = (side[0] // 2, side[1] // 2)
            blocks: list[nn.Layer] = [
                ConvBlock(width, kernel=KERNELS[index], rank=rank, drop_path=next(rates))
                for _ in range(depth - (index > 0))
            ]
            if index > 0:
                positions = side if index == 1 else None
                blocks.append(
                    SplitTransposeBlock(
                        width,
                        scales=SCALES[index],
                        heads=heads,
                        positions=positions,
                        rank=rank,
                        drop_path=next(rates),
                    )
                )
            stages.append(Stage(channels, width, blocks))
            channels = width
        self.stages = nn.Sequential(*stages)
        fc = linear(channels, emb_dim) if rank is None else LowRankLinear(channels, emb_dim, rank=rank)
        self.head = nn.Sequential(
            ("global_pool", nn.AdaptiveAvgPool2D(1)),
            ("norm", ChannelNorm(channels)),
            ("flatten", nn.Flatten()),
            ("fc", fc),
        )

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.stages(self.stem(images)))

    def recomputable(self) -> list[nn.Layer]:
        """The blocks, in order."""
        return [block for stage in self.stages for block in stage.blocks]


class EdgeFaceXXS(EdgeFace):
    """`EdgeFace` of 24 to 168 channels."""

    def __init__(
        self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, drop_path: float = 0.0
    ) -> None:
        super().__init__((24, 48, 88, 168), emb_dim, image_shape=image_shape, depths=(2, 2, 6, 2), drop_path=drop_path)


class EdgeFaceXS(EdgeFace):
    """`EdgeFace` of 32 to 192 channels, with linear layers of 0.6 of the full rank ("gamma 0.6")."""

    def __init__(
        self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, drop_path: float = 0.0
    ) -> None:
        super().__init__((32, 64, 100, 192), emb_dim, image_shape=image_shape, rank=0.6, drop_path=drop_path)


class EdgeFaceS(EdgeFace):
    """`EdgeFace` of 48 to 304 channels, with linear layers of half the full rank ("gamma 0.5")."""

    def __init__(
        self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, drop_path: float = 0.0
    ) -> None:
        super().__init__((48, 96, 160, 304), emb_dim, image_shape=image_shape, heads=8, rank=0.5, drop_path=drop_path)


class EdgeFaceBase(EdgeFace):
    """`EdgeFace` of 80 to 584 channels."""

    def __init__(
        self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), *, drop_path: float = 0.0
    ) -> None:
        super().__init__((80, 160, 288, 584), emb_dim, image_shape=image_shape, heads=8, drop_path=drop_path)


def _conv(
    channels_in: int, channels_out: int, *, kernel: int, stride: int = 1, padding: int | None = None, groups: int = 1
) -> nn.Conv2D:
    padding = kernel // 2 if padding is None else padding
    return nn.Conv2D(
        channels_in,
        channels_out,
        kernel,
        stride,
        padding,
        groups=groups,
        weight_attr=_WEIGHT,
        bias_attr=paddle.ParamAttr(initializer=_BIAS),
    )


def _linear(features_in: int, features_out: int, *, rank: float | None) -> nn.Layer:
    if rank is not None:
        return LowRankLinear(features_in, features_out, rank=rank)
    return nn.Linear(features_in, features_out, weight_attr=_WEIGHT, bias_attr=paddle.ParamAttr(initializer=_BIAS))


# Paddle 3.3's own of the following cannot be traced in the legacy representation.


def _unit(x: paddle.Tensor) -> paddle.Tensor:
    """The vectors [..., T] of unit length."""
    squares = (x * x).mean(-1, keepdim=True) * x.shape[-1]
    return x / (squares + 1e-24) ** 0.5


def _gelu(x: paddle.Tensor) -> paddle.Tensor:
    """x Phi(x)."""
    return x * (1 + paddle.erf(x * 0.5**0.5)) * 0.5
