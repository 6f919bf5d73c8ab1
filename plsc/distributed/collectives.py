"""Collectives over the ranks, each beside its adjoint.

Gradient convention: L is the mean loss over the global batch of G = N R samples, one number that is the same on every
rank. A gradient is dL / d(this rank's tensor). Therefore

- the adjoint of `all_gather` is `reduce_scatter_sum`;
- the adjoint of `all_reduce_sum`, where every rank uses the sum in the same way, is the identity on partial gradients.

No collective multiplies or divides by the number of ranks R. With one rank each collective is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import paddle
import paddle.distributed as dist

from plsc.distributed import watch
from plsc.distributed.topology import Topology

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Collectives:
    """The collectives over all ranks of a topology. Every rank must call the same collectives in the same order.

    Tensors passed in may be overwritten: use the tensor that is returned.

    Args:
        topology: by default a single rank, for which no collective communicates.
        group: Paddle's group of these ranks, in whose order `topology` numbers them; None for all ranks of the job.
        name: of that group; '' for all ranks of the job.

    Example:
        >>> collectives = Collectives(init_topology())
        >>> features = collectives.all_gather(features)  # [N, D] -> [G, D]
    """

    topology: Topology = field(default_factory=Topology)
    group: Any = None
    name: str = ""

    @property
    def _is_single(self) -> bool:
        return self.topology.world_size == 1

    def all_gather(self, rows: paddle.Tensor) -> paddle.Tensor:
        """Concatenate all ranks' rows in rank order: [N, ...] -> [G, ...]. N must be equal on all ranks."""
        if self._is_single:
            return rows
        self._wait_for_late_ranks()
        gathered = paddle.empty([rows.shape[0] * self.topology.world_size, *rows.shape[1:]], rows.dtype)
        dist.stream.all_gather(gathered, rows.contiguous(), group=self.group)
        return gathered

    def reduce_scatter_sum(self, rows: paddle.Tensor) -> paddle.Tensor:
        """Adjoint of `all_gather`: the sum over ranks, of which this rank keeps its rows: [G, ...] -> [N, ...]."""
        if self._is_single:
            return rows
        local = rows.shape[0] // self.topology.world_size
        if self.topology.on_gpu:
            own = paddle.empty([local, *rows.shape[1:]], rows.dtype)
            dist.stream.reduce_scatter(own, rows.contiguous(), group=self.group)
            return own
        # Gloo has no reduce_scatter.
        return self.all_reduce_sum(rows)[self.topology.rank * local : (self.topology.rank + 1) * local]

    def all_reduce_sum(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """Element-wise sum over ranks, the same on every rank."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def all_reduce_max(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """Element-wise maximum over ranks, the same on every rank."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def all_reduce_min(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """Element-wise minimum over ranks, the same on every rank."""
        return self._all_reduce(tensor, dist.ReduceOp.MIN)

    def _all_reduce(self, tensor: paddle.Tensor, op: Any) -> paddle.Tensor:
        if self._is_single:
            return tensor
        if tensor.dtype == paddle.float16 and not self.topology.on_gpu:
            # Gloo computes wrong sums of float16.
            return self._all_reduce(tensor.astype("float32"), op).astype("float16")
        self._wait_for_late_ranks()
        dist.all_reduce(tensor, op=op, group=self.group)
        return tensor

    def _wait_for_late_ranks(self) -> None:
        # Gloo fails after 30 s. NCCL has no such limit, and its collectives begin when the device comes to them.
        if not self.topology.on_gpu:
            self._meet()

    def _meet(self) -> None:
        watch.meet(self.name, self.topology.world_size)

    def gather_objects(self, value: _Value) -> list[_Value]:
        """All ranks' values in rank order, on every rank. For small values that can be pickled."""
        if self._is_single:
            return [value]
        self._meet()
        values: list[_Value] = []
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if not self._is_single:
            self._meet()
            dist.barrier(group=self.group)
