"""Partial FC: a step on some of the class centres, always the positive ones and a random share of the rest.

The loss is that of the sampled problem: its softmax runs over the sampled classes of all ranks only.
Sampled rows travel to a small shard with their optimizer state, are updated there by the same fused
step, and travel back; all other rows stay untouched to the bit, their momentum included.

Source: Partial FC, An et al., CVPR 2022. G gathered batch, S classes of the shard, K sampled ones.
"""

from __future__ import annotations

import math

import paddle

from plsc.errors import ConfigError
from plsc.losses.shard import Shard
from plsc.losses.softmax import Targets

_C = paddle._C_ops  # paddle.scatter_ wants a gradient's leave


class SampledShard(Shard):
    """K rows of a shard: `draw`, then a step of `FusedSoftmax` on this, then `put_back`.

    K is the share of the shard that was asked for, or the batch where that is more, so that the
    positives always find a place; it is the same in every step, which spares the device a wait.

    Args:
        whole: the shard to draw from.
        ratio: over 0 to 1, share of its classes in each step.
        samples: G.

    Raises:
        ConfigError: the ratio is outside its range.
    """

    def __init__(self, whole: Shard, ratio: float, samples: int) -> None:
        if not 0.0 < ratio <= 1.0:
            raise ConfigError(f"sample ratio {ratio}; expected over 0, and 1 at most")
        count = min(whole.size, max(math.ceil(ratio * whole.size), samples))
        weight = paddle.empty([count, whole.weight.shape[1]], whole.weight.dtype)
        bias = None if whole.bias is None else paddle.empty([count], whole.bias.dtype)
        super().__init__(weight, bias, whole.rule)
        self._whole = whole
        self.rows = paddle.arange(count, dtype="int64")

    @paddle.no_grad()
    def draw(self, labels: paddle.Tensor, seed: int) -> None:
        """Choose the rows and take them out: those of `labels`, and others without replacement.

        Args:
            labels: [G] int64 global class ids.
            seed: 1 to 2^31 - 1; with the labels it decides the rows. Ranks are to differ in it.
        """
        whole = self._whole
        self.step = whole.step
        if not self.size:
            return
        targets = whole.locate(labels)
        # The K highest of random scores are a sample without replacement. Positives outdo them all.
        score = paddle.uniform([whole.size], "float32", min=0.0, max=1.0, seed=seed)
        _C.index_add_(score, targets.row, targets.owned.astype("float32") * 2.0, 0)
        # In order, for the sake of the memory they are read from.
        self.rows = paddle.sort(paddle.topk(score, self.size, sorted=False)[1])
        for own, other in self._pairs():
            paddle.index_select(other, self.rows, out=own)
        kept = whole.kept_squares
        self._squares = None if kept is None else paddle.index_select(kept, self.rows)

    @paddle.no_grad()
    def put_back(self) -> None:
        """Return the updated rows to the whole shard."""
        self._whole.step = self.step
        if not self.size:
            return
        for own, other in self._pairs():
            _C.scatter_(other, self.rows, own, True)
        if self._squares is not None:
            _C.scatter_(self._whole.all_squares(), self.rows, self._squares, True)

    def locate(self, labels: paddle.Tensor) -> Targets:
        owned, row = self._whole.locate(labels)
        if not self.size:
            return Targets(owned, row)
        return Targets(owned, paddle.clip(paddle.searchsorted(self.rows, row), 0, self.size - 1))

    def all_squares(self) -> paddle.Tensor:
        if self._squares is None:
            self._whole.keep_squares(None)  # what is wrong here is wrong there
            self._squares = paddle.index_select(self._whole.all_squares(), self.rows)
        return self._squares

    def _pairs(self) -> list:
        """(own, the whole's) of every tensor that has one row per class."""
        pairs = [(self.weight, self._whole.weight)] + [(self.state[name], self._whole.state[name])
                                                       for name in self.state]
        return pairs if self.bias is None else [*pairs, (self.bias, self._whole.bias)]
