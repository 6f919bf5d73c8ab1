"""Weights drawn by the names and shapes of the published networks' tensors, the same in every framework."""

from __future__ import annotations

import zlib

import numpy as np
from paddle import nn

# Batch normalization and PReLU have tensors of other names in Paddle.
OTHER_NAMES = {"._mean": ".running_mean", "._variance": ".running_var", "._weight": ".weight"}


def draw(name, shape):
    """The tensor of a name: [out, in, ...] as PyTorch shapes it, float32."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        drawn = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        drawn = rng.normal(0, 1, shape) * min(1.0, np.prod(shape[1:]) ** -0.5)
    else:
        drawn = rng.normal(0.5 if name.endswith(("weight", "gamma", "gamma_xca")) else 0, 0.2, shape)
    return drawn.astype(np.float32)


def images(side=112):
    """[2, 3, side, side] of -1 to 1."""
    return np.random.default_rng(0).uniform(-1, 1, [2, 3, side, side]).astype(np.float32)


def public_tensors(network):
    """Shapes of a network's tensors by their public names, as PyTorch has them."""
    return {name: tuple(tensor.shape)[:: -1 if turned else 1] for name, tensor, turned in _tensors(network)}


def fill(network):
    """Give each tensor of a network the one of its public name."""
    shapes = public_tensors(network)
    for name, tensor, turned in _tensors(network):
        value = draw(name, shapes[name])
        tensor.set_value(value.T if turned else value)


def _tensors(network):
    """(public name, tensor, whether PyTorch has it transposed), in order."""
    turned = {f"{name}.weight" for name, layer in network.named_sublayers() if isinstance(layer, nn.Linear)}
    for name, tensor in network.state_dict().items():
        public = name
        for own, of_others in OTHER_NAMES.items():
            public = public.replace(own, of_others)
        yield public, tensor, name in turned
