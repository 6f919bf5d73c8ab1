"""What ranks say to each other, each collective beside its adjoint.

The gradient convention, stated once: L is the mean loss over the *global* batch, one number that
every rank knows. A gradient is dL/d(this rank's tensor). The adjoint of `all_gather` is therefore
`reduce_scatter_sum`, and that of `all_reduce_sum` (followed by the same use on every rank) is the
identity on partial gradients. Nothing is multiplied or divided by the world size in here.

At world size 1 each collective is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paddle
import paddle.distributed as dist

from plsc.distributed.topology import Topology


@dataclass(frozen=True)
class Collectives:
    """The collectives over all ranks of a topology.

    Tensors passed in may be overwritten: use the value returned.
    """

    topology: Topology = field(default_factory=Topology)

    @property
    def _alone(self) -> bool:
        return self.topology.world_size == 1

    def all_gather(self, rows: paddle.Tensor) -> paddle.Tensor:
        """Concatenate every rank's rows in rank order: [N, ...] -> [N * R, ...]; N equal on all ranks."""
        if self._alone:
            return rows
        gathered = paddle.empty([rows.shape[0] * self.topology.world_size, *rows.shape[1:]], rows.dtype)
        dist.stream.all_gather(gathered, rows.contiguous())
        return gathered

    def reduce_scatter_sum(self, rows: paddle.Tensor) -> paddle.Tensor:
        """Adjoint of `all_gather`: sum over ranks, keep this rank's rows: [N * R, ...] -> [N, ...]."""
        return self.begin_reduce_scatter_sum(rows)()

    def begin_reduce_scatter_sum(self, rows: paddle.Tensor) -> Callable[[], paddle.Tensor]:
        """`reduce_scatter_sum` while other work goes on: call what is returned for the result."""
        if self._alone:
            return lambda: rows
        local = rows.shape[0] // self.topology.world_size
        if self.topology.on_gpu:
            own = paddle.empty([local, *rows.shape[1:]], rows.dtype)
            task = dist.stream.reduce_scatter(own, rows.contiguous(), sync_op=False)
        else:
            # Gloo has no reduce_scatter.
            task = dist.all_reduce(rows, sync_op=False)
            own = rows[self.topology.rank * local : (self.topology.rank + 1) * local]

        def finish() -> paddle.Tensor:
            task.wait()
            return own

        return finish

    def all_reduce_sum(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """Sum over ranks, the same on all of them."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def all_reduce_max(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """Element-wise maximum over ranks."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def all_reduce_min(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """Element-wise minimum over ranks."""
        return self._all_reduce(tensor, dist.ReduceOp.MIN)

    def _all_reduce(self, tensor: paddle.Tensor, op: int) -> paddle.Tensor:
        if self._alone:
            return tensor
        if tensor.dtype == paddle.float16 and not self.topology.on_gpu:
            # Gloo's fp16 sums are wrong.
            return self._all_reduce(tensor.astype("float32"), op).astype("float16")
        dist.all_reduce(tensor, op=op)
        return tensor

    def gather_objects(self, value: Any) -> list:
        """Every rank's (small, picklable) value, in rank order, on every rank."""
        if self._alone:
            return [value]
        values: list = []
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if not self._alone:
            dist.barrier()
