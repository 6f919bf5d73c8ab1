"""What a logged step is measured by, beside its loss: the gradient of the backbone, target cosines, feature norms.

    grad_norm        the Euclidean norm of all gradients of the backbone
    target_cosine    the mean over the global batch of cos(x_n, w_y), before the margin; with its histogram
    feature_norm     the mean of |x_n|; with its histogram
    class_cosine     the mean of cos(x_n, x_m) over pairs of images of different classes, each pair on one rank
    images/s         since the step that was logged before
    data_wait        the share of that time in which training waited for data, 0 to 1
    host_memory_gb   memory that the process of rank 0 holds, in 10^9 bytes
    device_memory_gb memory of its GPU that Paddle holds, in 10^9 bytes

Other steps compute nothing of this. The device brings all numbers of all ranks into one tensor, which is copied to the
host while the step goes on, and read with the loss: the device is waited for once.

N batch on this rank, G gathered batch, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle

from plsc.distributed.collectives import Collectives
from plsc.engine.observers import TrainingClock
from plsc.engine.observers.measures import Histogram, Measured, Measures, from_counts_above
from plsc.engine.transfer import Read, Transfers
from plsc.losses import Head
from plsc.losses.ops import no_grad, sums_of_squares
from plsc.utils.memory import reserved_gpu_memory, resident_memory

COSINE_EDGES = tuple(round(-1 + 0.05 * place, 2) for place in range(41))
# Four bins for each doubling: norms of features differ by orders of magnitude between networks.
NORM_EDGES = tuple(2.0 ** (place / 4) for place in range(-16, 41))
# Images of a rank whose features are compared with each other: 32,640 pairs, for less than a thousandth of a step.
PAIRED_IMAGES = 256
_LEAST_NORM = 1e-12


class Figures:
    """Measures logged steps. Every rank makes one, and calls `collect` at the same steps.

    Args:
        head: the last layer.
        collectives: over all ranks.
        transfers: bring the numbers to the host.
        global_batch: images per step of all ranks.
    """

    def __init__(self, head: Head, *, collectives: Collectives, transfers: Transfers, global_batch: int) -> None:
        self._head, self._collectives, self._transfers = head, collectives, transfers
        self._global_batch = global_batch
        self._inner = {edges: paddle.to_tensor(edges[1:-1], dtype="float32") for edges in (NORM_EDGES, COSINE_EDGES)}
        self._read: Read | None = None
        self._has_gradients = self._has_cosines = False
        self.begin(0)

    def begin(self, step: int) -> None:
        """A clock begins, after so many steps."""
        self._last_step, self._last_seconds, self._last_data_seconds = step, 0.0, 0.0

    @no_grad
    def collect(self, features: paddle.Tensor, labels: paddle.Tensor, gradients: Sequence[paddle.Tensor]) -> None:
        """Begin to measure a step, between `backward` and `update` of the head.

        Args:
            features: [N, D] float32 of this rank.
            labels: [N] int64.
            gradients: of the backbone, the same on every rank; none where all of it is frozen.
        """
        norms = paddle.sqrt((features * features).sum(axis=1))
        directions = features[:PAIRED_IMAGES] / norms[:PAIRED_IMAGES].unsqueeze(1).clip(min=_LEAST_NORM)
        own = [
            _between_classes(directions, labels[:PAIRED_IMAGES]),
            _summed(norms, paddle.ones_like(norms), self._inner[NORM_EDGES]),
        ]
        found = self._head.target_cosines()
        if found is not None:
            cosines, weights = (part.astype("float32") for part in found)
            own.append(_summed(cosines, weights, self._inner[COSINE_EDGES]))
        numbers = self._collectives.all_reduce_sum(paddle.concat(own))
        if gradients:
            numbers = paddle.concat([numbers, sums_of_squares(gradients).sum().reshape([1])])
        self._has_gradients, self._has_cosines = bool(gradients), found is not None
        self._read = self._transfers.to_host(numbers)

    def take(self, step: int, clock: TrainingClock) -> Measures:
        """The measures of the step after which so many are done; empty where `collect` was not called for it."""
        read, self._read = self._read, None
        return Measures() if read is None else Measures(lambda: self._measure(read, step, clock))

    def _measure(self, read: Read, step: int, clock: TrainingClock) -> Measured:
        numbers = read()
        seconds, data_seconds = clock.seconds, clock.data_seconds  # after the device was waited for
        passed = max(seconds - self._last_seconds, 1e-9)
        scalars = {
            "images/s": round((step - self._last_step) * self._global_batch / passed, 1),
            "data_wait": round(min((data_seconds - self._last_data_seconds) / passed, 1.0), 4),
            "host_memory_gb": round(resident_memory() / 1e9, 3),
        }
        self._last_step, self._last_seconds, self._last_data_seconds = step, seconds, data_seconds
        if self._collectives.topology.on_gpu:
            scalars["device_memory_gb"] = round(reserved_gpu_memory() / 1e9, 3)
        if self._has_gradients:
            scalars["grad_norm"] = _root(numbers[-1])
        (pairs, cosines), numbers = numbers[:2], numbers[2:]
        if pairs:
            scalars["class_cosine"] = cosines / pairs
        histograms: dict[str, Histogram] = {}
        kinds = {"feature_norm": NORM_EDGES} | ({"target_cosine": COSINE_EDGES} if self._has_cosines else {})
        for name, edges in kinds.items():
            (count, total, *above), numbers = numbers[: len(edges)], numbers[len(edges) :]
            scalars[name] = total / count if count else math.nan
            histograms[name] = from_counts_above(edges, above, count)
        return Measured(scalars, histograms)


def _summed(values: paddle.Tensor, weights: paddle.Tensor, edges: paddle.Tensor) -> paddle.Tensor:
    """[2 + e]: how many values count, their sum, and how many are at or above each edge.

    Args:
        values: [n].
        weights: [n], 1 for a value that counts, else 0.
        edges: [e].
    """
    # What does not count may be anything, and NaN times 0 is NaN.
    values = paddle.where(weights > 0, values, paddle.zeros_like(values))
    above = (values.unsqueeze(1) >= edges).astype(weights.dtype) * weights.unsqueeze(1)
    return paddle.concat([weights.sum().reshape([1]), (values * weights).sum().reshape([1]), above.sum(axis=0)])


def _between_classes(directions: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """[2]: how many ordered pairs of images are of different classes, and the sum of their cosines.

    Args:
        directions: [n, D], of unit length.
        labels: [n].
    """
    differs = (labels.unsqueeze(0) != labels.unsqueeze(1)).astype(directions.dtype)
    cosines = paddle.matmul(directions, directions, transpose_y=True)
    return paddle.stack([differs.sum(), (cosines * differs).sum()])


def _root(number: float) -> float:
    return math.sqrt(number) if number >= 0 else math.nan
