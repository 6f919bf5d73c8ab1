"""Recompute of blocks: less memory for a second forward pass of each block (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import paddle
from paddle import nn

from plsc.distributed.recompute import recomputed
from plsc.errors import ConfigError
from plsc.models.layers import batch_norms, fixed_statistics


class BlockRecompute:
    """The blocks of a network whose activations the backward pass computes again.

    Numbers are those of a network that keeps its activations, running statistics included.

    Args:
        network: a layer whose `recomputable()` returns layers of it, each called once, with one tensor.

    Raises:
        ConfigError: it has no such method, or it returns none.

    Example:
        >>> recompute = BlockRecompute(network)
        >>> with recompute.forward():
        ...     features = network(images)
        >>> features.backward(gradient)
    """

    def __init__(self, network: nn.Layer) -> None:
        find = getattr(network, "recomputable", list)
        self._blocks: list[nn.Layer] = list(find())
        if not self._blocks:
            raise ConfigError(
                f"recompute: the network {type(network).__name__} names no blocks; give it a method recomputable() "
                f"that returns those layers of it that map one tensor to one, or leave recompute off"
            )

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """The context of a forward pass of the network in training."""
        for block in self._blocks:
            block.forward = functools.partial(_call, block, block.forward)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward


def _call(block: nn.Layer, forward: Callable[[paddle.Tensor], paddle.Tensor], x: paddle.Tensor) -> paddle.Tensor:
    norms, calls = batch_norms(block), 0

    def compute(x: paddle.Tensor) -> paddle.Tensor:
        nonlocal calls
        calls += 1
        # The first call has moved the statistics.
        with fixed_statistics(norms) if calls > 1 else contextlib.nullcontext():
            return forward(x)

    return recomputed(compute, x)
