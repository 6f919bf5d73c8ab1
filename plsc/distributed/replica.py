"""A network of which every rank has a copy, trained on its own images."""

from __future__ import annotations

import paddle
import paddle.distributed as dist

from plsc.distributed import watch
from plsc.distributed.collectives import Collectives


class Replica:
    """The copy of this rank. It begins with the parameters and buffers of rank 0.

    On GPUs `paddle.DataParallel` reduces gradients while backward goes on. With Gloo that cannot be: where a rank has
    died, an error of Gloo inside of backward aborts the process.

    Args:
        network: the layer.
        collectives: over the ranks.

    Example:
        >>> replica = Replica(backbone, collectives)
        >>> replica(images).backward(gradient)
        >>> replica.average_gradients()
    """

    def __init__(self, network: paddle.nn.Layer, collectives: Collectives) -> None:
        self._network, self._collectives = network, collectives
        topology = collectives.topology
        self._is_reduced_in_backward = topology.world_size > 1 and topology.on_gpu
        if self._is_reduced_in_backward:
            self._network = paddle.DataParallel(network)
        elif topology.world_size > 1:
            for tensor in network.state_dict().values():
                watch.meet()
                dist.broadcast(tensor, src=0)
        self._parameters = [item for item in network.parameters() if not item.stop_gradient]

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        return self._network(images)

    def average_gradients(self) -> None:
        """Make the gradient of each parameter the mean over ranks; None stays where it is None on all of them.

        Every rank must call this after backward.
        """
        if self._collectives.topology.world_size == 1 or self._is_reduced_in_backward:
            return
        own = [item.grad for item in self._parameters]
        parts = [
            paddle.zeros([item.size]) if gradient is None else gradient.reshape([-1]).astype("float32")
            for item, gradient in zip(self._parameters, own)
        ]
        # Which ranks have a gradient may depend on their images, the shape that they exchange may not.
        counts = paddle.to_tensor([float(gradient is not None) for gradient in own])
        flat = self._collectives.all_reduce_sum(paddle.concat([*parts, counts]))
        *sums, counts = paddle.split(flat, [part.size for part in parts] + [len(own)])
        for item, gradient, total, count in zip(self._parameters, own, sums, counts.tolist()):
            mean = (total / self._collectives.topology.world_size).reshape(item.shape).astype(item.dtype)
            if gradient is not None:
                gradient.copy_(mean, False)
            elif count:
                item.grad = mean
