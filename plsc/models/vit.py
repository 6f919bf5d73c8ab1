"""Vision transformers for face images, as in Partial FC (An et al., CVPR 2022, section 4.1, after Dosovitskiy et al.,
ICLR 2021): patches of 9 x 9, no class token, and an embedding of all tokens together.

Layers are named, ordered and initialized as in arcface_torch's `vit`, so that its weights have the same names here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.nn.initializer import Constant, Normal, Uniform

from plsc.errors import ConfigError
from plsc.models.base_model import BaseModel
from plsc.models.layers import DropPath, in_float32

PATCH, HEADS = 9, 8
_WEIGHT = Normal(0.0, 0.02)


class Attention(nn.Layer):
    """Self-attention of several heads: [N, T, W] -> [N, T, W]. Its products of queries and keys are float32."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.qkv = _linear(width, 3 * width, bias=False)
        self.proj = _linear(width, width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        tokens, width = x.shape[1:]
        qkv = self.qkv(x).reshape([-1, tokens, 3, self._heads, width // self._heads]).transpose([2, 0, 3, 1, 4])
        # Half precision overflows where a query meets a key that is like it.
        with in_float32():
            queries, keys, values = qkv.astype("float32").unbind(0)
            scores = (queries @ keys.transpose([0, 1, 3, 2])) * (width // self._heads) ** -0.5
            x = nn.functional.softmax(scores) @ values
        return self.proj(x.transpose([0, 2, 1, 3]).reshape([-1, tokens, width]))


class MLP(nn.Layer):
    """linear - ReLU6 - linear, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = _linear(width, 4 * width)
        self.act = nn.ReLU6()
        self.fc2 = _linear(4 * width, width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Layer):
    """x + attention of LN(x), then x + MLP of LN(x); [N, T, W] -> [N, T, W]."""

    def __init__(self, width: int, *, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Layer):
    """Images [N, 3, H, W] to one token [W] for each whole patch; what is left at the right and the bottom is unused."""

    def __init__(self, image_shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, height, columns = image_shape
        self.tokens = (height // PATCH) * (columns // PATCH)
        if self.tokens == 0:
            raise ConfigError(
                f"image_shape: got {tuple(image_shape)}; a ViT takes images of at least {PATCH} x {PATCH} pixels"
            )
        bound = 1 / math.sqrt(channels * PATCH**2)
        init = Uniform(-bound, bound)
        self.proj = nn.Conv2D(channels, width, PATCH, PATCH, weight_attr=init, bias_attr=init)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.proj(images).flatten(2).transpose([0, 2, 1])


class ViT(BaseModel):
    """A vision transformer: [N, 3, H, W] -> [N, D].

    Args:
        width: numbers of a token, a multiple of 8, which is the number of heads.
        depth: number of blocks.
        emb_dim: embedding size D. Default 512.
        image_shape: (3, H, W), 9 or more. Default (3, 112, 112), which is 144 tokens.
        drop_path: probability that the last block's branches are left out for an image in training; it rises evenly
            from 0 at the first block. Default 0.1.
        mask_ratio: share of the tokens of an image that the blocks do not see in training; a learned token takes the
            place of each behind them. Default 0.1.

    Raises:
        ConfigError: an image is smaller than a patch.

    Example:
        >>> ViT(width=256, depth=12)(paddle.rand([2, 3, 112, 112])).shape
        [2, 512]
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        emb_dim: int = 512,
        image_shape: Sequence[int] = (3, 112, 112),
        drop_path: float = 0.1,
        mask_ratio: float = 0.1,
    ) -> None:
        super().__init__(emb_dim)
        self.patch_embed = PatchEmbedding(image_shape, width)
        self._tokens = self.patch_embed.tokens
        self._seen = max(1, int(self._tokens * (1 - mask_ratio)))
        self.pos_embed = self.create_parameter([1, self._tokens, width], default_initializer=_WEIGHT)
        if self._seen < self._tokens:
            self.mask_token = self.create_parameter([1, 1, width], default_initializer=_WEIGHT)
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.LayerList([Block(width, heads=HEADS, drop_path=rate) for rate in rates])
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            _linear(self._tokens * width, width, bias=False),
            nn.BatchNorm1D(width, epsilon=2e-5),
            _linear(width, emb_dim, bias=False),
            nn.BatchNorm1D(emb_dim, epsilon=2e-5),
        )

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        x = self.patch_embed(images) + self.pos_embed
        masks = self.training and self._seen < self._tokens
        if masks:
            x, places = self._leave_out(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if masks:
            x = self._fill_in(x, places)
        return self.feature(x.flatten(1))

    def recomputable(self) -> list[nn.Layer]:
        """The blocks, in order."""
        return list(self.blocks)

    def _leave_out(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """A random choice of the tokens [N, T, W] of each image; for each token its place [N, T] among those chosen.

        A place of `self._seen` or more is that of a token that was left out.
        """
        order = paddle.rand(x.shape[:2]).argsort(axis=1)
        return _take(x, order[:, : self._seen]), order.argsort(axis=1)

    def _fill_in(self, x: paddle.Tensor, places: paddle.Tensor) -> paddle.Tensor:
        """Tokens [N, T, W] in their own order, the learned one in the place of those left out."""
        masks = self.mask_token.astype(x.dtype).expand([x.shape[0], self._tokens - self._seen, -1])
        return _take(paddle.concat([x, masks], axis=1), places)


class ViTTiny(ViT):
    """`ViT` of 12 blocks of 256 numbers a token."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), **regularization: float) -> None:
        super().__init__(256, 12, emb_dim=emb_dim, image_shape=image_shape, **regularization)


class ViTSmall(ViT):
    """`ViT` of 12 blocks of 512 numbers a token."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), **regularization: float) -> None:
        super().__init__(512, 12, emb_dim=emb_dim, image_shape=image_shape, **regularization)


class ViTBase(ViT):
    """`ViT` of 24 blocks of 512 numbers a token."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), **regularization: float) -> None:
        super().__init__(512, 24, emb_dim=emb_dim, image_shape=image_shape, **regularization)


class ViTLarge(ViT):
    """`ViT` of 24 blocks of 768 numbers a token. Drop path and masking are 0.05 unless they are given."""

    def __init__(self, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112), **regularization: float) -> None:
        regularization = {"drop_path": 0.05, "mask_ratio": 0.05, **regularization}
        super().__init__(768, 24, emb_dim=emb_dim, image_shape=image_shape, **regularization)


def _linear(features_in: int, features_out: int, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(features_in, features_out, weight_attr=_WEIGHT, bias_attr=Constant(0.0) if bias else False)


def _take(x: paddle.Tensor, places: paddle.Tensor) -> paddle.Tensor:
    """Of each image's tokens [N, T, W] those at its places [N, K], as [N, K, W]."""
    images, tokens, width = x.shape
    rows = places + tokens * paddle.arange(images).unsqueeze(1)
    return x.reshape([-1, width]).index_select(rows.flatten()).reshape([images, -1, width])
