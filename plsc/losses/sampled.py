"""Partial FC: a step on some of the class centers, always the positive ones and a random share of the rest.

The loss is that of the sampled problem: its softmax runs over the sampled classes of all ranks only.
Sampled rows come chunk by chunk to where the same fused step works on them, block by block with their optimizer
state for the update, and go back: what they need is memory for one chunk. All other rows stay untouched to the
bit, their momentum included.

Source: Partial FC, An et al., CVPR 2022. G gathered batch, S classes of the shard, K sampled ones.
"""

from __future__ import annotations

import math

import paddle

from plsc.errors import ConfigError
from plsc.losses.ops import highest, put_rows, take_rows
from plsc.losses.reference import Targets
from plsc.losses.shard import Block, Shard

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
        weight = paddle.empty([min(count, whole.chunk_rows), whole.weight.shape[1]], whole.weight.dtype)
        bias = None if whole.bias is None else paddle.empty([count], whole.bias.dtype)
        super().__init__(weight, bias, whole.rule, state=self._buffers(whole, count))
        self._whole = whole
        self.rows = paddle.arange(count, dtype="int64")
        self._chunk_index: list[paddle.Tensor] = []
        self._block_index: list[paddle.Tensor] = []

    @staticmethod
    def _buffers(whole: Shard, count: int) -> dict[str, paddle.Tensor]:
        """State of one block of rows, and of the whole sampled bias."""
        state = {}
        for name, tensor in whole.state.items():
            rows = count if name.startswith("bias:") else min(count, whole.block_rows)
            state[name] = paddle.empty([rows, *tensor.shape[1:]], tensor.dtype)
        return state

    @property
    def size(self) -> int:
        return self.rows.shape[0]

    def _rows(self, first: int, last: int) -> paddle.Tensor:
        start = first // self.chunk_rows * self.chunk_rows
        return self.weight[first - start : last - start]

    def _block_state(self, first: int, last: int) -> tuple[paddle.Tensor, ...]:
        return tuple(slot[: last - first] for slot in self.slots("weight"))

    @paddle.no_grad()
    def draw(self, labels: paddle.Tensor, seed: int) -> None:
        """Choose the rows: those of `labels`, and others without replacement.

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
        self.rows = highest(score, self.size)
        self._chunk_index = self.cut(self.rows)
        self._block_index = paddle.split(self.rows, [size for chunk in self.chunks for size in chunk.sizes])
        for own, other in self._bias_pairs():
            take_rows(other, self.rows, own)
        kept = whole.kept_squares
        self._squares = None if kept is None else paddle.index_select(kept, self.rows)

    def rows_of(self, targets: Targets) -> paddle.Tensor:
        return paddle.index_select(self._whole.weight, paddle.index_select(self.rows, targets.row))

    def fetch_rows(self, k: int) -> None:
        take_rows(self._whole.weight, self._chunk_index[k], self.chunks[k].rows)

    def fetch_state(self, block: Block) -> None:
        for own, other in zip(block.state, self._whole.slots("weight")):
            take_rows(other, self._block_index[block.number], own)

    def give_back(self, block: Block) -> None:
        rows = self._block_index[block.number]
        put_rows(self._whole.weight, rows, block.rows)
        for own, other in zip(block.state, self._whole.slots("weight")):
            put_rows(other, rows, own)

    @paddle.no_grad()
    def put_back(self) -> None:
        """End the step: what has one number per class returns to the whole shard. Centers did so one by one."""
        self._whole.step = self.step
        if not self.size:
            return
        for own, other in self._bias_pairs():
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

    def _bias_pairs(self) -> list[tuple[paddle.Tensor, paddle.Tensor]]:
        """(own, the whole's) of the bias and its state, if there is one."""
        if self.bias is None:
            return []
        return [(self.bias, self._whole.bias), *zip(self.slots("bias"), self._whole.slots("bias"))]
