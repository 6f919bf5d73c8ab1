"""Activations that are computed a second time in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

import paddle
from paddle.distributed.fleet.utils import recompute


def recomputed(function: Callable[[paddle.Tensor], paddle.Tensor], x: paddle.Tensor) -> paddle.Tensor:
    """function(x), of whose tensors only x is kept for the backward pass, which calls the function again.

    The second call draws the same random numbers and computes in the same types. Gradients are added up in the one
    backward pass, as `paddle.DataParallel` needs them, and not in one of the function's own.
    """
    made: paddle.Tensor = recompute(function, x, use_reentrant=False)
    return made
