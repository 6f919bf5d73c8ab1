"""The contract of a backbone: images [N, 3, H, W] -> embeddings [N, D], unnormalized float32."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import paddle
from paddle import nn

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.models.registry import create_backbone, factory_name, list_backbones
from plsc.utils.hints import setter
from plsc.utils.plural import counted

log = logging.getLogger("plsc")


class BaseModel(nn.Layer):
    """Base class of backbones: images [N, 3, H, W] -> embeddings [N, D], float32, not normalized.

    A subclass creates its layers in `__init__` and defines either `forward(images)`, as in Paddle, or
    `build_network(input, label, is_train=True)`, as in PLSC 0.1 and 0.2.

    Args:
        emb_dim: embedding size D. Default 512.

    Raises:
        ConfigError: at the first call, if the subclass defines neither method.

    Example:
        >>> class SmallNet(BaseModel):
        ...     def __init__(self, emb_dim=128, image_shape=(3, 32, 32)):
        ...         super().__init__(emb_dim)
        ...         self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, emb_dim))
        ...
        ...     def forward(self, images):
        ...         return self.body(images)
        >>> entry.set_model(SmallNet())
    """

    def __init__(self, emb_dim: int = 512) -> None:
        super().__init__()
        self.emb_dim = emb_dim

    def build_network(self, input: paddle.Tensor, label: paddle.Tensor | None, is_train: bool = True) -> paddle.Tensor:
        """Map images [N, 3, H, W] to embeddings [N, D].

        Args:
            input: the images.
            label: always None. The loss is computed outside of the backbone.
            is_train: whether the network trains, as `self.training`.
        """
        raise ConfigError(
            f"{type(self).__name__} defines neither forward(images) nor "
            f"build_network(input, label, is_train=True); define one of them"
        )

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Embeddings [N, D] of images [N, 3, H, W]."""
        return self.build_network(images, None, is_train=self.training)

    def recomputable(self) -> list[nn.Layer]:
        """Layers of this network whose activations the setting `recompute` may have computed twice; by default none.

        Each is called once in a forward pass, with one tensor, and returns one.
        """
        return []


def build_backbone(config: Config) -> nn.Layer:
    """The backbone that a configuration asks for: its `model`, else the one of `model_name`.

    Raises:
        ConfigError: there is no backbone of that name, or it has no parameters before its first call.
    """
    model = config.model
    if model is None:
        model = create_backbone(config.model_name, emb_dim=config.emb_dim, image_shape=config.image_shape)
    if not model.parameters():
        raise ConfigError(
            f"the network {type(model).__name__} has no parameters; create its layers in "
            f"__init__ and only call them in build_network"
        )
    return model


def network_name(network: nn.Layer) -> str:
    """The class of a network as 'package.module:Class', by which checkpoints and exports record it."""
    return factory_name(type(network))


def weights_digest(network: nn.Layer) -> str:
    """SHA-256 of a network's weights and their names; what an export adds, and its format, do not change it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def check_model(model: object) -> nn.Layer:
    """Return `model` if it can be a backbone; otherwise raise `ConfigError`."""
    if not isinstance(model, nn.Layer):
        raise ConfigError(
            f"{setter('model')}: got {model!r} ({type(model).__name__}), expected an instance of "
            f"plsc.models.base_model.BaseModel; or name one with {setter('model_name')}: "
            f"{', '.join(list_backbones())}"
        )
    return model


def check_embedding(embedding: object, model: nn.Layer, *, images: int, emb_dim: int) -> paddle.Tensor:
    """Return `embedding` if it is a [N, D] tensor; otherwise raise `ConfigError` with both shapes."""
    shape = list(embedding.shape) if isinstance(embedding, paddle.Tensor) else type(embedding).__name__
    if shape != [images, emb_dim]:
        raise ConfigError(
            f"{type(model).__name__} returned {shape} for {counted(images, 'image')}, expected "
            f"[{images}, {emb_dim}]; change the network or {setter('emb_dim')}"
        )
    return embedding


def warn_of_batch_of_one(model: nn.Layer, batch_size: int) -> None:
    """Warn of a batch of one image where the network ends in batch normalization: all of its features are equal."""
    last = list(model.named_sublayers())[-1:]
    if batch_size == 1 and last and isinstance(last[0][1], nn.BatchNorm1D):
        log.warning(
            "train_batch_size is 1, and '%s' of %s normalizes each number over the batch: all images have the same "
            "features, so the network learns nothing; %s or more",
            last[0][0],
            type(model).__name__,
            setter("train_batch_size", 2),
        )
