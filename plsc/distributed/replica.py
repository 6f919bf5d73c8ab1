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
        self._parameters = [item for item in network.parameters() if not item.stop_gradient]
        # A network that is frozen whole has no gradient.
        self._is_reduced_in_backward = topology.world_size > 1 and topology.on_gpu and bool(self._parameters)
        if self._is_reduced_in_backward:
            self._network = paddle.DataParallel(network)
        elif topology.world_size > 1:
            for tensor in network.state_dict().values():
                watch.meet()
                dist.broadcast(tensor, src=0)
        if topology.world_size > 1 and self._parameters and not self._is_reduced_in_backward:
            self._reserve()

    def _reserve(self) -> None:
        """Memory for all gradients as one vector, so that one collective adds them up and a step takes no new memory.

        At its end are, per parameter, how many ranks have a gradient.
        """
        sizes = [item.size for item in self._parameters]
        self._vector = paddle.zeros([sum(sizes) + len(sizes)])
        self._counts = self._vector[sum(sizes) :]
        self._gradients, start = [], 0
        for item, size in zip(self._parameters, sizes):
            self._gradients.append(self._vector[start : start + size].reshape(item.shape))
            start += size

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        return self._network(images)

    def average_gradients(self) -> None:
        """Make the gradient of each parameter the mean over ranks; None stays where it is None on all of them.

        Every rank must call this after backward.
        """
        world_size = self._collectives.topology.world_size
        if world_size == 1 or self._is_reduced_in_backward or not self._parameters:
            return
        with paddle.no_grad():
            self._average(float(world_size))

    def _average(self, ranks: float) -> None:
        own = [item.grad for item in self._parameters]
        for place, gradient in zip(self._gradients, own):
            if gradient is None:
                place.zero_()
            else:
                place.copy_(gradient.astype("float32") if gradient.dtype != place.dtype else gradient, False)
        # Which ranks have a gradient may depend on their images, the shape that they exchange may not.
        self._counts.copy_(paddle.to_tensor([float(gradient is not None) for gradient in own]), False)
        self._collectives.all_reduce_sum(self._vector).divide_(paddle.full([], ranks))
        for item, gradient, mean, count in zip(self._parameters, own, self._gradients, self._counts.tolist()):
            if gradient is not None:
                gradient.copy_(mean.astype(gradient.dtype) if gradient.dtype != mean.dtype else mean, False)
            elif count:
                item.grad = mean.astype(item.dtype)
