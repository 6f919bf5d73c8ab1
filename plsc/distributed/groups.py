"""Ranks in groups of equal size, for a head whose shards every group holds.

The R ranks are divided into R/g groups of g consecutive ranks. Rank i of each group holds shard i of g; the R/g ranks
that hold one shard are its replicas. With one group a shard has no second copy; with groups of one rank each rank holds
all classes.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.distributed as dist
from paddle.base import core
from paddle.distributed.communication.group import Group

from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology, free_ports, host_of_this_rank
from plsc.errors import DistributedError

_numbers = itertools.count(1 << 20)  # of the groups of Gloo that are made here; Paddle counts its own from 10 on
_STORE_SECONDS = 900


@dataclass(frozen=True)
class HeadGroups:
    """Where a rank stands among the shards of a head and their replicas.

    Attributes:
        shards: over the g ranks of this rank's group, which hold all shards.
        replicas: over the R/g ranks that hold the shard of this rank.
    """

    shards: Collectives
    replicas: Collectives

    @classmethod
    def single(cls, device: str = "cpu") -> HeadGroups:
        """One rank, which holds all classes alone."""
        return cls(*(Collectives(Topology(device=device)) for _ in range(2)))

    @property
    def has_replicas(self) -> bool:
        """Whether a shard is held by more than one rank."""
        return self.replicas.topology.world_size > 1

    def mean_(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """The mean over the replicas of a shard, the same to the bit on each; may be written into `tensor`."""
        if not self.has_replicas:
            return tensor
        total = self.replicas.all_reduce_sum(tensor)
        return total.divide_(paddle.full([], float(self.replicas.topology.world_size), total.dtype))


def head_groups(collectives: Collectives, size: int) -> HeadGroups:
    """The groups of so many ranks. Every rank must call this; the connections are made once in a process.

    Args:
        collectives: over all ranks.
        size: g, a divisor of the number of ranks.

    Raises:
        DistributedError: it is none.
    """
    topology = collectives.topology
    if size < 1 or topology.world_size % size:
        raise DistributedError(
            f"groups of {size} ranks: {topology.world_size} ranks cannot be divided into groups of that size"
        )
    single = HeadGroups.single(topology.device)
    if size == topology.world_size:
        return HeadGroups(collectives, single.replicas)
    if size == 1:
        return HeadGroups(single.shards, collectives)
    return _connected(topology, size)


@functools.cache
def _connected(topology: Topology, size: int) -> HeadGroups:
    ranks = range(topology.world_size)
    # Paddle numbers groups in the order in which they are made, so every rank makes all of them.
    of_shards = [list(ranks[first : first + size]) for first in ranks[::size]]
    of_replicas = [list(ranks[number::size]) for number in range(size)]
    made = [(members, _new_group(members, topology)) for members in (*of_shards, *of_replicas)]
    shards, replicas = (
        Collectives(
            Topology(members.index(topology.rank), len(members), device=topology.device),
            group=group,
            name=f"{members[0]} {members[1] - members[0]} {len(members)}",
        )
        for members, group in made
        if topology.rank in members
    )
    return HeadGroups(shards, replicas)


def _new_group(members: list[int], topology: Topology) -> Any:
    """Paddle's group of these ranks; every rank must call this."""
    if dist.get_backend() == "GLOO":
        return _new_gloo_group(members, Collectives(topology))
    return dist.new_group(members)


def _new_gloo_group(members: list[int], collectives: Collectives) -> Any:
    """A group of Gloo whose ranks find each other in a store of its own.

    `paddle.distributed.new_group` does not work for Gloo: all groups write the addresses of their ranks to the store of
    the job under the same keys (`ProcessGroupGloo`, Paddle 3.3.1), so that a rank connects to one of another group.
    """
    rank, store, own_address = collectives.topology.rank, None, ("", 0)
    if rank == members[0]:
        own_address = host_of_this_rank(), free_ports(1)[0]
        store = core.TCPStore(*own_address, True, 0, _STORE_SECONDS)
    host, port = collectives.gather_objects(own_address)[members[0]]
    number = next(_numbers)
    if rank not in members:
        return None
    store = store or core.TCPStore(host, port, False, 0, _STORE_SECONDS)
    own = members.index(rank)
    group = core.ProcessGroupGloo.create(store, own, len(members), number)
    return Group(own, number, members, pg=group, name=f"plsc {number}")
