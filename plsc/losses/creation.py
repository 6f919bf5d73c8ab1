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
from plsc.losses.location import Location
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


def create_weight(config: Config, classes: Range, location: Location) -> paddle.Tensor:
    """Centers of these classes, [S, D] or [S, K, D], in the type in which they are kept; `fill_weight` sets them.

    Raises:
        ConfigError: there is no room for them, or `param_attr` has an initializer that the settings forbid.
    """
    shape = [classes.size, *([config.subcenters] if config.subcenters > 1 else []), config.emb_dim]
    own = getattr(config.param_attr, "initializer", None)
    asked = _asked(config, location)
    if own is not None and (forbidding := asked.get("center_storage") or asked.get("center_location")):
        raise ConfigError(
            f"{forbidding} makes the first centers itself, block by block; param_attr has an initializer, which would "
            f"make all of them in float32 on the device; leave one of the two out"
        )
    if type(location) is Location:
        initializer = Constant(0.0) if own is None else None
        return create_parameter(shape, config.param_attr, dtype=config.center_storage, initializer=initializer)
    # The attributes are those of a parameter that Paddle made; the memory is another's.
    weight = create_parameter([1], config.param_attr, dtype=config.center_storage, initializer=Constant(0.0))
    lying_there = location.zeros(shape, config.center_storage)  # `get_tensor` does not keep it
    weight.get_tensor()._share_data_with(lying_there.get_tensor())
    return weight


def fill_weight(config: Config, weight: paddle.Tensor, classes: Range) -> None:
    """Set the centers before the first step, unless `param_attr` has an initializer."""
    if getattr(config.param_attr, "initializer", None) is None:
        rows = flat_rows(weight.detach())
        for first, centers in initial_centers(classes, config.emb_dim, seed=config.seed, subcenters=config.subcenters):
            set_rows(rows, slice(first, first + len(centers)), centers)


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


def with_storage(
    config: Config, optimizer: RowOptimizer | None, *, kind: str, location: Location
) -> RowOptimizer | None:
    """The row optimizer for the storage of the settings; None where none is needed.

    Raises:
        ConfigError: that storage needs another optimizer, another loss or another embedding size.
    """
    asked = _asked(config, location)
    if not asked:
        return optimizer
    lean = asked.keys() - {"center_location"}
    if optimizer is None or (lean and config.emb_dim % 2):
        raise ConfigError(
            f"{' and '.join(asked.values())}: needs centers that one rank holds alone ('dist_...' on several "
            f"ranks), an optimizer whose arithmetic is known row by row (a named one, or Momentum, SGD or AdamW "
            f"without gradient clipping and special param_attr){' and an even embedding size' if lean else ''}; this "
            f"run has '{config.loss_type}', {kind} and {config.emb_dim}"
        )
    if config.momentum_storage != "none" or type(optimizer) is SGD:
        return optimizer
    if type(optimizer) is not Momentum:
        raise ConfigError(
            f"{setter('momentum_storage', 'none')} is for momentum, which becomes plain SGD without it; this run has "
            f"{type(optimizer).__name__}; choose 'bfloat16' or 'int8' for its state"
        )
    return SGD(optimizer.l2, decays_bias=optimizer.decays_bias)


def _asked(config: Config, location: Location) -> dict[str, str]:
    """The settings of storage that are not the default, each as it was set; 'host' on a CPU is the default."""
    asked = {}
    if config.center_storage != "float32":
        asked["center_storage"] = setter("center_storage", config.center_storage)
    if config.momentum_storage != "float32":
        asked["momentum_storage"] = setter("momentum_storage", config.momentum_storage)
    if type(location) is not Location:
        asked["center_location"] = setter("center_location", config.center_location)
    return asked


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
