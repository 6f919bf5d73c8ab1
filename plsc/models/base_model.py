"""The contract of a backbone: images [N, 3, H, W] -> embeddings [N, D], unnormalized float32."""

from __future__ import annotations

import paddle
from paddle import nn

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.models.registry import create_backbone, list_backbones


class BaseModel(nn.Layer):
    """Base of every backbone.

    A subclass creates its layers in `__init__` and defines either `forward(images)`, as in Paddle, or
    `build_network(input, label, is_train=True)`, as PLSC 0.1 and 0.2 had it. Both return [N, D].

    Args:
        emb_dim: D.
    """

    def __init__(self, emb_dim: int = 512) -> None:
        super().__init__()
        self.emb_dim = emb_dim

    def build_network(self, input: paddle.Tensor, label: paddle.Tensor | None, is_train: bool = True) -> paddle.Tensor:
        """Map images [N, 3, H, W] to embeddings [N, D].

        Args:
            input: the images.
            label: always None here: the loss has a room of its own.
            is_train: whether the network trains, as `self.training`.
        """
        raise ConfigError(
            f"{type(self).__name__} defines neither forward(images) nor "
            f"build_network(input, label, is_train=True); define one of them"
        )

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.build_network(images, None, is_train=self.training)


def build_backbone(config: Config) -> nn.Layer:
    """The backbone that a configuration asks for: the user's own, or one by name.

    Raises:
        ConfigError: the user's model is no `paddle.nn.Layer`, or has no parameters before its first call.
    """
    if config.model is None:
        return create_backbone(config.model_name, emb_dim=config.emb_dim, image_shape=config.image_shape)
    model = config.model
    if not model.parameters():
        raise ConfigError(
            f"set_model: {type(model).__name__} has no parameters; create its layers in "
            f"__init__ and only call them in build_network"
        )
    return model


def check_model(model: object) -> nn.Layer:
    """Return `model` if it can be a backbone; otherwise raise `ConfigError`."""
    if not isinstance(model, nn.Layer):
        raise ConfigError(
            f"set_model: got {model!r} ({type(model).__name__}), expected an instance of "
            f"plsc.models.base_model.BaseModel; or name one with set_model_name: "
            f"{', '.join(list_backbones())}"
        )
    return model


def check_embedding(embedding: object, model: nn.Layer, images: int, emb_dim: int) -> paddle.Tensor:
    """Return `embedding` if it is a [N, D] tensor; otherwise raise `ConfigError` with both shapes."""
    shape = list(embedding.shape) if isinstance(embedding, paddle.Tensor) else type(embedding).__name__
    if shape != [images, emb_dim]:
        raise ConfigError(
            f"{type(model).__name__} returned {shape} for {images} images, expected "
            f"[{images}, {emb_dim}]; change the network or set_emb_size"
        )
    return embedding
