"""Updates of class centers that are kept in few bytes: by the library, and by a slow definition in float64."""

from __future__ import annotations

import numpy as np
import paddle

from plsc.losses.row_optimizers import Momentum
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.utils.ranges import shard_ranges


def as_numbers(tensor, width):
    """A tensor of any storage type as float64 [S, D]."""
    if tensor.dtype != paddle.int8:
        return tensor.astype("float32").numpy().astype(np.float64)
    held = tensor.numpy()
    return held[:, :width].astype(np.float64) * np.ascontiguousarray(held[:, -4:]).view(np.float32).astype(np.float64)


def neighbors(value, kind):
    """The numbers of a storage type at and below, and above, each float64 [S, D], in magnitude for bfloat16."""
    if kind == "int8":
        scale = np.abs(value).max(axis=1, keepdims=True) / 127
        low = np.floor(value / np.where(scale > 0, scale, 1.0)) * scale
        return low, low + scale
    magnitude = np.abs(np.float32(value)).view(np.uint32)
    low = magnitude & np.uint32(0xFFFF0000)
    sign = np.sign(value)
    return sign * low.view(np.float32), sign * (low + np.uint32(0x10000)).view(np.float32)


def gradient_of(step, rows, width):
    """[rows, D] float32 of global rows, that nothing else decides."""
    made = [np.random.default_rng([7, step, int(row)]).standard_normal(width) for row in rows]
    return np.array(made, np.float32).reshape(-1, width)


def play(weight, ranks, *, optimizer=None, steps=3, ratio=1.0, centers="bfloat16", state="bfloat16", rate=0.1, seed=3):
    """The full shards after updates by `gradient_of`; sampled rows are those of `draw_of`."""
    shards = []
    for own in shard_ranges(len(weight), ranks):
        kept = paddle.to_tensor(weight[own.start : own.stop]).astype(centers)
        shard = Shard(kept, optimizer or Momentum(), first_class=own.start, state_storage=state, seed=seed)
        for step in range(steps):
            update(shard, own, step, ratio, rate)
        shards.append(shard)
    return shards


def update(shard, own, step, ratio, rate):
    used, numbers = shard, np.arange(own.start, own.stop)
    if ratio < 1.0:
        used = SampledShard(shard, ratio=ratio, samples=1)
        used.draw(paddle.to_tensor([own.start]), seed=step + 1)
        numbers = numbers[used.rows.numpy()]

    def gradients():
        for k, chunk in enumerate(used.chunks):
            used.load_chunk(k)
            for block in chunk.blocks:
                rows = numbers[block.range.start : block.range.stop]
                yield block, paddle.to_tensor(gradient_of(step, rows, shard.width))

    used.update(gradients(), learning_rate=rate)
    return numbers
