"""Collectives of a single rank. Several ranks are tested where they are used: heads, trainer and checkpoints."""

from __future__ import annotations

import paddle

from plsc.distributed.collectives import Collectives


def test_collectives_of_one_rank_are_the_identity():
    collectives, rows = Collectives(), paddle.arange(6, dtype="float32").reshape([2, 3])
    for collective in (
        collectives.all_gather,
        collectives.reduce_scatter_sum,
        collectives.all_reduce_sum,
        collectives.all_reduce_max,
        collectives.all_reduce_min,
    ):
        assert collective(rows).tolist() == rows.tolist()
    assert collectives.gather_objects("a") == ["a"]
    collectives.barrier()
