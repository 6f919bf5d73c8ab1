"""Groups of ranks, without ranks; tests/losses/test_head_groups.py has real ones."""

from __future__ import annotations

import paddle
import pytest

from plsc.distributed.collectives import Collectives
from plsc.distributed.groups import HeadGroups, head_groups
from plsc.distributed.topology import Topology
from plsc.errors import DistributedError


def test_one_group_is_all_ranks_and_has_no_replicas():
    every = Collectives(Topology(1, 4))
    groups = head_groups(every, 4)
    assert groups.shards is every and not groups.has_replicas
    tensor = paddle.ones([2])
    assert groups.mean_(tensor) is tensor


def test_in_groups_of_one_rank_all_ranks_are_replicas():
    every = Collectives(Topology(1, 4, device="cpu"))
    groups = head_groups(every, 1)
    assert groups.replicas is every and groups.has_replicas
    assert groups.shards.topology == Topology()


def test_one_rank_is_a_group():
    groups = HeadGroups.single()
    assert groups.shards.topology.world_size == groups.replicas.topology.world_size == 1


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_size_that_does_not_divide_the_ranks_is_refused(size):
    with pytest.raises(DistributedError, match=f"groups of {size} ranks: 4 ranks cannot be divided"):
        head_groups(Collectives(Topology(0, 4)), size)
