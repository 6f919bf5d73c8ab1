"""The class centers as a classification of images uses them: plain scores without a margin, over the ranks' shards.

M samples, D embedding, S classes of this shard, K sub-centers, B classes of a chunk, k classes per sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.distributed.collectives import Collectives
from plsc.losses.ops import flat_rows, no_grad
from plsc.metrics.embeddings import CENTER_FLOOR, EPSILON
from plsc.metrics.ranking import TopClasses, slack
from plsc.utils.ranges import Range, shard_range

# Scores that are worked on at a time, and the most classes of a chunk.
_SCORES = {"cpu": 1 << 22, "gpu": 1 << 26}
_CHUNK_ROWS = {"cpu": 4096, "gpu": 65536}


@dataclass(frozen=True, kw_only=True)
class Centers:
    """The class centers of this rank. The score of a class is the cosine of feature and center, or <x, w> + b.

    Attributes:
        weight: [S, D]; or [S, K, D], of which the nearest sub-center counts; float32 or bfloat16.
        bias: [S], or None; only without cosines.
        classes: the classes of the rows; all of them where each rank holds all.
        searched: those among them that this rank looks at where other ranks hold the same rows; None for all, or for
            this rank's share where each rank holds all.
        is_cosine: whether the score is a cosine.
        scale: s: the softmax is over s times the cosines. 1 without cosines.
    """

    weight: paddle.Tensor
    bias: paddle.Tensor | None
    classes: Range
    is_cosine: bool
    scale: float
    searched: Range | None = None


@no_grad
def top_classes(
    features: NDArray[np.float32], centers: Centers, *, count: int, num_classes: int, collectives: Collectives
) -> NDArray[np.int64]:
    """The classes [M, k] of the highest scores, the highest first, equal ones by number. Every rank must call this.

    They are exact: the same for any number of ranks, see `plsc.metrics.ranking`.

    Args:
        features: [M, D], the same on all ranks.
        centers: of this rank.
        count: classes per sample; k is that, or C where that is less.
        num_classes: C.
        collectives: over the ranks.
    """
    top = TopClasses(features, min(count, num_classes), is_cosine=centers.is_cosine)
    topology = collectives.topology
    own = centers.searched or centers.classes
    if centers.searched is None and own == Range(0, num_classes):  # of a replicated head, each rank looks at a part
        own = shard_range(num_classes, topology.world_size, shard=topology.rank)
    first = own.start - centers.classes.start
    bias = None if centers.bias is None else centers.bias[first : first + own.size]
    _offer_all(top, features, centers.weight[first : first + own.size], bias, first_class=own.start, centers=centers)
    if topology.world_size > 1:
        scores, classes = (
            collectives.all_gather(paddle.to_tensor(values[None])).numpy() for values in (top.scores, top.classes)
        )
        for rank in range(topology.world_size):
            if rank != topology.rank:
                samples = np.repeat(np.arange(len(features)), top.classes.shape[1])
                top.merge(samples, classes[rank].reshape(-1), scores[rank].reshape(-1))
    return top.classes


def _offer_all(
    top: TopClasses,
    features: NDArray[np.float32],
    weight: paddle.Tensor,
    bias: paddle.Tensor | None,
    *,
    first_class: int,
    centers: Centers,
) -> None:
    """Offer all classes of a shard that may be among the highest."""
    device = "gpu" if weight.place.is_gpu_place() else "cpu"
    group = weight.shape[1] if weight.ndim == 3 else 1
    size = max(1, min(_CHUNK_ROWS[device], _SCORES[device] // max(1, len(features))) // group)
    x, has_direction = paddle.to_tensor(features), paddle.to_tensor(features.any(axis=1, keepdims=True))
    lengths = x.norm(axis=1, keepdim=True)
    if centers.is_cosine:
        x = x / lengths.clip(min=EPSILON)
        _merge_zeros(top, features, Range(first_class, first_class + weight.shape[0]))
    for start in range(0, weight.shape[0], size):
        rows = weight[start : start + size]
        if rows.place.is_gpu_place() != x.place.is_gpu_place():  # centers that lie in host memory
            rows = rows._copy_to(x.place, True)
        rows = rows.astype("float32") if rows.dtype == paddle.bfloat16 else rows
        own = None if bias is None else bias[start : start + size]
        scores, error = _scores(x, flat_rows(rows), own, lengths=lengths, is_cosine=centers.is_cosine)
        if group > 1:
            scores = scores.reshape([len(features), rows.shape[0], group]).max(axis=2)
        best = paddle.topk(scores, min(top.classes.shape[1], rows.shape[0]), axis=1)[0][:, -1:]
        if rows.shape[0] < top.classes.shape[1]:
            best = paddle.full_like(best, -np.inf)
        reached = paddle.to_tensor(top.scores[:, -1:].astype(np.float32))
        candidates = scores >= paddle.maximum(best - error, reached) - error
        if centers.is_cosine:
            candidates &= has_direction
        pairs = candidates.nonzero()
        # Rows of a few pairs at a time: there are many pairs where many classes have the same score.
        for chosen in paddle.split(pairs, _pieces(pairs.shape[0]), axis=0) if pairs.shape[0] else ():
            places = chosen[:, 1]
            top.offer(
                chosen[:, 0].numpy(),
                first_class + start + places.numpy(),
                rows=paddle.index_select(rows, places).numpy(),
                bias=None if own is None else paddle.index_select(own, places).numpy(),
            )


def _merge_zeros(top: TopClasses, features: NDArray[np.float32], classes: Range) -> None:
    """Take over the classes of features that are zero: their cosine with every class is 0, so the lowest numbers."""
    is_zero = np.flatnonzero(~features.any(axis=1))
    lowest = np.arange(classes.start, classes.start + min(top.classes.shape[1], classes.size))
    samples = np.repeat(is_zero, len(lowest))
    top.merge(samples, np.tile(lowest, len(is_zero)), np.zeros(len(samples)))


def _scores(
    x: paddle.Tensor, rows: paddle.Tensor, bias: paddle.Tensor | None, *, lengths: paddle.Tensor, is_cosine: bool
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The scores [M, B] in float32, and how far each of a sample may be from the exact one, [M, 1]."""
    norms, off = rows.norm(axis=1, keepdim=True), slack(rows.shape[1])
    if is_cosine:
        scores = paddle.matmul(x, rows / norms.clip(min=CENTER_FLOOR), transpose_y=True)
        return scores, paddle.full_like(lengths, off)
    scores, error = paddle.matmul(x, rows, transpose_y=True), off * lengths * norms.max()
    return (scores, error) if bias is None else (scores + bias, error + off * bias.abs().max())


def _pieces(count: int, most: int = 1 << 16) -> list[int]:
    """A number as a sum of numbers of `most` at most."""
    full, rest = divmod(count, most)
    return [most] * full + [rest] * (rest > 0)
