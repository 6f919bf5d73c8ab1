"""The class centers before the first step, and the row optimizer, as the settings of their storage ask for them.

D embedding, K sub-centers per class, S classes of this shard.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from paddle.nn.initializer import Constant, Initializer

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.losses.ops import flat_rows
from plsc.losses.row_optimizers import SGD, Momentum, RowOptimizer
from plsc.losses.storage import set_rows
from plsc.utils.hints import setter
from plsc.utils.ranges import Range
from plsc.utils.seeding import derive_seed

# Initial centers are drawn in blocks of this many classes, each from its own seed, so that they do not
# depend on how classes are sharded.
_INIT_BLOCK = 4096
_INIT_STD = 0.01


def create_weight(config: Config, classes: Range) -> paddle.Tensor:
    """The centers of these classes before the first step, [S, D] or [S, K, D], in the type in which they are kept.

    Raises:
        ConfigError: there is no memory for them, or `param_attr` has an initializer that `center_storage` forbids.
    """
    group = [config.subcenters] if config.subcenters > 1 else []
    is_own = getattr(config.param_attr, "initializer", None) is not None
    if is_own and config.center_storage != "float32":
        raise ConfigError(
            f"{setter('center_storage', config.center_storage)} makes the first centers itself, block by block; "
            f"param_attr has an initializer, which would make all of them in float32; leave one of the two out"
        )
    weight = create_parameter(
        [classes.size, *group, config.emb_dim],
        config.param_attr,
        dtype=config.center_storage,
        initializer=None if is_own else Constant(0.0),
    )
    if not is_own:
        rows = flat_rows(weight.detach())
        for first, centers in initial_centers(classes, config.emb_dim, seed=config.seed, subcenters=config.subcenters):
            set_rows(rows, slice(first, first + len(centers)), centers)
    return weight


def create_parameter(
    shape: list[int],
    attr: Any,
    *,
    dtype: str = "float32",
    is_bias: bool = False,
    initializer: Initializer | None = None,
) -> paddle.Tensor:
    """A parameter with a row for each class.

    Args:
        shape: of it.
        attr: a `paddle.ParamAttr`, or what stands for one.
        dtype: of it.
        is_bias: whether it begins with zeros by default.
        initializer: of one whose `attr` has none; by default Paddle's.

    Raises:
        ConfigError: there is no memory for it.
    """
    try:
        return paddle.nn.Layer().create_parameter(
            shape, attr or None, dtype, is_bias=is_bias, default_initializer=initializer
        )
    except (IndexError, MemoryError) as error:  # beyond what Paddle can index, or what this machine has
        gigabytes = (2 if dtype == "bfloat16" else 4) * math.prod(shape) / 2**30
        raise ConfigError(
            f"num_classes: the class centers of this rank, {shape} of {dtype} ({gigabytes:.1f} GiB), cannot be "
            f"made: {str(error).splitlines()[0]}; train on more ranks with a dist_ loss, which shards the class "
            f"centers, or fewer classes with {setter('num_classes')}"
        ) from None


def with_storage(config: Config, optimizer: RowOptimizer | None, *, kind: str) -> RowOptimizer | None:
    """The row optimizer for the storage of the settings; None where none is needed.

    Raises:
        ConfigError: that storage needs another optimizer, another loss or another embedding size.
    """
    asked = [
        *([setter("center_storage", config.center_storage)] if config.center_storage != "float32" else []),
        *([setter("momentum_storage", config.momentum_storage)] if config.momentum_storage != "float32" else []),
    ]
    if not asked:
        return optimizer
    given = " and ".join(asked)
    if optimizer is None or config.emb_dim % 2:
        raise ConfigError(
            f"{given}: needs centers that one rank holds alone ('dist_...' on several ranks), an optimizer whose "
            f"arithmetic is known row by row (a named one, or Momentum, SGD or AdamW without gradient clipping and "
            f"special param_attr) and an even embedding size; this run has '{config.loss_type}', {kind} and "
            f"{config.emb_dim}"
        )
    if config.momentum_storage != "none" or type(optimizer) is SGD:
        return optimizer
    if type(optimizer) is not Momentum:
        raise ConfigError(
            f"{setter('momentum_storage', 'none')} is for momentum, which becomes plain SGD without it; this run has "
            f"{type(optimizer).__name__}; choose 'bfloat16' or 'int8' for its state"
        )
    return SGD(optimizer.l2, decays_bias=optimizer.decays_bias)


def initial_centers(
    classes: Range, emb_dim: int, *, seed: int, subcenters: int = 1
) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.float32]]]]:
    """(first row, [rows, D] float32 of N(0, 0.01)) in blocks, for all S K rows.

    The centers of a class do not depend on how classes are sharded.
    """
    width = subcenters * emb_dim
    for block in range(classes.start // _INIT_BLOCK, -(-classes.stop // _INIT_BLOCK)):
        first = block * _INIT_BLOCK
        rows = classes.overlap(Range(first, first + _INIT_BLOCK))
        drawn = np.random.default_rng(derive_seed(seed, block)).standard_normal([_INIT_BLOCK, width], np.float32)
        centers = drawn[rows.start - first : rows.stop - first]
        np.multiply(centers, _INIT_STD, out=centers)
        yield (rows.start - classes.start) * subcenters, centers.reshape(-1, emb_dim)
