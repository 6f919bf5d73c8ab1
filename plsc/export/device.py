"""Exports are computed on the CPU, in full float32, also in a process that trains on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paddle
from paddle import nn


@contextlib.contextmanager
def on_cpu(*networks: nn.Layer) -> Iterator[None]:
    """Within it, Paddle computes on the CPU, and the networks lie there. Then both are as before.

    On GPUs of compute capability 8.0 and newer, cuDNN's convolutions are in TF32 by default. Two of its algorithms
    differ by 1e-3 then, so that a comparison could not tell a fault of the export from rounding.

    Args:
        networks: their parameters, buffers and gradients are moved. They stay the same objects, for optimizers.
    """
    device = paddle.get_device()
    with contextlib.ExitStack() as restored:  # all of it, also where a GPU is too full for the network to move back
        restored.callback(lambda: paddle.set_device(device))
        paddle.set_device("cpu")
        for network in networks:
            if not (place := _place_of(network)).is_cpu_place():
                restored.callback(_move, network, place)
                _move(network, paddle.CPUPlace())
        yield


def _place_of(network: nn.Layer) -> paddle.base.libpaddle.Place:
    tensors = [*network.parameters(), *network.buffers()]
    return tensors[0].place if tensors else paddle.CPUPlace()


def _move(network: nn.Layer, place: paddle.base.libpaddle.Place) -> None:
    layers = network.sublayers(include_self=True)
    types = [layer._dtype for layer in layers]
    network.to(device=place)
    # `to` forgets them: Paddle 3.3 sets them to None where no type is given.
    for layer, dtype in zip(layers, types):
        layer._dtype = dtype
