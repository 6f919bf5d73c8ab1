"""Margins whose statistics are those of the global batch, where a rank has the cosines of a part of it only."""

from __future__ import annotations

from typing import Any

import paddle

from plsc.distributed.collectives import Collectives
from plsc.losses.margins import Margin, PenalizedMargin, apply_margin, needs_all_cosines
from plsc.losses.negatives import NegativesMargin


def of_global_batch(margin: Margin, replicas: Collectives) -> Margin:
    """The margin, which is called with the batch of a group, and calls the one that is given with the global batch.

    Args:
        margin: not `is_per_sample`.
        replicas: over the ranks that hold the shard of this rank.
    """
    return (_GlobalBatchNegatives if isinstance(margin, NegativesMargin) else _GlobalBatchMargin)(margin, replicas)


class _GlobalBatchMargin:
    """A margin that is called with the global batch, whose statistics are then those of one group of all ranks.

    A rank has the cosines of the samples of its group only, so they are gathered over the replicas of its shard.
    """

    def __init__(self, margin: Margin, replicas: Collectives) -> None:
        self._margin, self._replicas = margin, replicas
        self.needs_all_cosines = needs_all_cosines(margin)
        if isinstance(margin, PenalizedMargin):
            self.penalty = margin.penalty

    def __call__(self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        samples, rank = cosine.shape[0], self._replicas.topology.rank
        gathered = paddle.unbind(self._replicas.all_gather(paddle.stack([cosine, norms], axis=1)), axis=1)
        labels = self._replicas.all_gather(labels)
        output = apply_margin(self._margin, gathered[0], norms=gathered[1], labels=labels)
        return tuple(part[rank * samples : (rank + 1) * samples] for part in output if part is not None)


class _GlobalBatchNegatives(_GlobalBatchMargin):
    """A margin that changes the cosines of other classes too."""

    def __init__(self, margin: Any, replicas: Collectives) -> None:
        super().__init__(margin, replicas)
        self.negatives, self.negatives_bound = margin.negatives, margin.negatives_bound
