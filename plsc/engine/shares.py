"""Items in order that ranks share: which are a rank's own, and the rows of all of them together again."""

from __future__ import annotations

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.distributed.collectives import Collectives
from plsc.utils.ranges import Range, shard_range, shard_ranges


def share_of(count: int, collectives: Collectives) -> Range:
    """The items of this rank."""
    return shard_range(count, collectives.topology.world_size, shard=collectives.topology.rank)


def gather_rows(rows: NDArray[np.float32], count: int, *, collectives: Collectives) -> NDArray[np.float32]:
    """[count, D], the same on all ranks, of the rows of this rank's share; shares are padded to equal size."""
    ranks = collectives.topology.world_size
    sizes = [share.size for share in shard_ranges(count, ranks)]
    padded = np.zeros([max(sizes), rows.shape[1]], np.float32)
    padded[: len(rows)] = rows
    gathered = collectives.all_gather(paddle.to_tensor(padded)).numpy().reshape(ranks, max(sizes), -1)
    return np.concatenate([share[:size] for share, size in zip(gathered, sizes)])
