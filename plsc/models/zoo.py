"""The networks of `paddle.vision.models` as backbones: 'paddle.vision.models:resnet18'."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

import paddle
from paddle import nn

from plsc.errors import ConfigError
from plsc.models.base_model import BaseModel
from plsc.models.graph import graph_images, graph_mode
from plsc.models.layers import linear
from plsc.utils.names import did_you_mean

MODULE = "paddle.vision.models"


class VisionBackbone(BaseModel):
    """A network of Paddle whose classifier is replaced by a linear layer and batch normalization.

    [N, 3, H, W] -> [N, D]. The weights are not pretrained.

    Args:
        network: name of a function of `paddle.vision.models`, as 'resnet18'.
        emb_dim: embedding size D. Default 512.
        image_shape: (3, H, W). Default (3, 112, 112).

    Raises:
        ConfigError: the network cannot take such images.

    Example:
        >>> VisionBackbone("mobilenet_v2")(paddle.rand([2, 3, 112, 112])).shape
        [2, 512]
    """

    def __init__(self, network: str, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112)) -> None:
        super().__init__(emb_dim)
        make = getattr(paddle.vision.models, network)
        features = _count_features(make, network, image_shape)
        self.body = make(num_classes=0)
        for part, layer in list(self.body.named_children()):
            if any(0 in item.shape for item in layer.parameters()):  # SqueezeNet's classifier, of 0 classes
                delattr(self.body, part)
        self.embedding = nn.Sequential(linear(features, emb_dim), nn.BatchNorm1D(emb_dim))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.embedding(_features(self.body, images))

    def recomputable(self) -> list[nn.Layer]:
        """The layers of several sublayers within the `nn.Sequential`s of the network; none of VGG's."""
        found: list[nn.Layer] = []
        for child in self.body.children():
            parts = list(child.children()) if isinstance(child, (nn.Sequential, nn.LayerList)) else [child]
            found += [part for part in parts if len(part.sublayers()) > 1]
        return found


def vision_backbone(name: str) -> Callable[..., nn.Layer]:
    """The function that makes the backbone of a network of `paddle.vision.models`.

    Args:
        name: of a function there, as 'resnet18'.

    Raises:
        ConfigError: there is none of that name.
    """
    names = [key for key in paddle.vision.models.__all__ if inspect.isfunction(getattr(paddle.vision.models, key))]
    if name not in names:
        raise ConfigError(
            f"model_name '{MODULE}:{name}': {did_you_mean(name, names)}accepted: {', '.join(sorted(names))}"
        )

    def make(emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112)) -> nn.Layer:
        return VisionBackbone(name, emb_dim, image_shape)

    make.__module__, make.__qualname__, make.__name__ = MODULE, name, name
    return make


def _features(network: nn.Layer, images: paddle.Tensor) -> paddle.Tensor:
    """What a network without a classifier gives, as [N, F]. GoogLeNet gives its two auxiliary outputs, too."""
    made = network(images)
    return (made[0] if isinstance(made, (tuple, list)) else made).flatten(1)


def _count_features(make: Callable[..., nn.Layer], name: str, image_shape: Sequence[int]) -> int:
    with graph_mode() as graph:
        features = _features(make(num_classes=0), graph_images(image_shape))
        made = [operator for operator in graph.global_block().ops if operator.name() != "builtin.parameter"]
        maps = [value for operator in made for value in operator.results() if value.is_dense_tensor_type()]
        # Paddle averages maps without a pixel, too.
        if any(size == 0 for value in maps for size in value.shape):
            raise ConfigError(
                f"image_shape: got {tuple(image_shape)}, of which {MODULE}:{name} makes maps without a pixel; give "
                f"larger images, or choose another network"
            )
        return math.prod(features.shape[1:])
