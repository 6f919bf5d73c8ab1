"""Partial FC: a step on some of the class centers, always the positive ones and a random sample of the others.

The loss is that of the sampled problem: its softmax runs over the sampled classes of all ranks only. Sampled rows are
copied chunk by chunk into one buffer, where the same fused step works on them, and block by block with their optimizer
state for the update, then back: beyond the shard, a step needs memory for one chunk. No bit changes of the other rows
and of their optimizer state. Where the shard lies in host memory and the step computes on a GPU, all sampled rows and
their state come to the device at once, and go back at once.

A sampled class brings all of its sub-centers.

Source: Partial FC, An et al., CVPR 2022. G gathered batch, D embedding, S classes of the shard, K sub-centers a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.errors import ConfigError
from plsc.losses.host_rows import HostRows
from plsc.losses.next_draw import NextDraw
from plsc.losses.noise import Noise
from plsc.losses.ops import highest, no_grad, put_rows, take_rows
from plsc.losses.reference import Targets
from plsc.losses.shard import Block, Shard
from plsc.losses.storage import Rounding, Rows, RowStore

# With one class in the softmax the loss is 0, whatever the features are.
_LEAST_CLASSES = 2


class SampledShard(Shard):
    """Some classes of a shard. In each step: `draw`, then the loss on this shard, then `update`.

    Their number is the ratio's part of the shard, or the batch size where that is more, so that all positives are among
    them; it is 2 at least, where the shard has 2. It is the same in every step, so that a step never waits for the
    device to learn a size.

    Args:
        shard: the shard to draw from.
        ratio: above 0, at most 1; part of its classes in each step.
        samples: G.

    Raises:
        ConfigError: the ratio is outside its range.
    """

    def __init__(self, shard: Shard, *, ratio: float, samples: int) -> None:
        if not 0.0 < ratio <= 1.0:
            raise ConfigError(f"sample ratio {ratio}; expected over 0, and 1 at most")
        self._drawn = min(shard.num_classes, max(math.ceil(ratio * shard.num_classes), samples, _LEAST_CLASSES))
        count = self._drawn * shard.subcenters
        self._full, self.location = shard, shard.location
        self._next: NextDraw | None = None
        self.rows = paddle.arange(count, dtype="int64")
        self._chunk_index: list[paddle.Tensor] = []
        self._block_index: list[paddle.Tensor] = []
        stores = {name: shard.stores_of(name) for name in (("weight",) if shard.bias is None else ("weight", "bias"))}
        self._travelling = [store for store in stores["weight"] if isinstance(store, HostRows)]
        self._here = tuple(store.on_device(count) for store in self._travelling)
        if self._here:
            stores["weight"] = self._here
        self._begin(
            stores,
            shard.optimizer,
            subcenters=shard.subcenters,
            first_class=shard.first_class,
            step=shard.step,
            seed=shard.seed,
        )
        self.chunk_rows, self.block_rows = shard.chunk_rows, shard.block_rows
        biases = [store.kept for store in shard.stores_of("bias")] if shard.bias is not None else []
        self._biases = [paddle.empty([count], kept.dtype) for kept in biases]
        self.bias = self._biases[0] if biases else None

    @property
    def size(self) -> int:
        """The number of sampled rows."""
        return int(self.rows.shape[0])

    @property
    def _num_kept(self) -> int:
        return self._full.size

    def _is_copied(self, store: RowStore) -> bool:
        return not (store.in_place and any(store is own for own in self._here))

    def _rounding(self, noise: Noise, tensor: int, first: int) -> Rounding:
        rounding = super()._rounding(noise, tensor, first)
        return rounding.of(self.rows) if self._travelling else rounding

    def _bias_place(self, tensor: int) -> paddle.Tensor:
        return self._biases[tensor]

    @no_grad
    def draw(self, labels: paddle.Tensor, *, seed: int, next_seed: int | None = None) -> None:
        """Choose the classes: those of `labels`, and others without replacement.

        Args:
            labels: [G] int64 global class ids.
            seed: 1 to 2^31 - 1; decides the rows together with the labels. Each rank needs its own.
            next_seed: of the next draw, whose rows are then read while this step computes, where they lie on a disk.
        """
        full = self._full
        self.step = full.step
        if not self.size:
            return
        targets = full.locate(labels)
        # The highest of random scores are a sample without replacement. Positives score above all others.
        score, expected = self._begun(seed)
        _mark(score, targets if full.subcenters == 1 else Targets(targets.owned, targets.row // full.subcenters))
        # In ascending order, so that memory is read in its order.
        drawn = highest(score, self._drawn)
        self.rows = drawn if full.subcenters == 1 else self._rows_of(drawn)
        if self.location.is_paged:
            self.location.advise(is_random=True)
            self._expect(np.setdiff1d(drawn.numpy(), expected, assume_unique=True))
            self._begin_next(next_seed)
        for store, own in zip(self._travelling, self._here):
            paddle.assign(store.take(self.rows, place=self.place), own.kept)
        self._chunk_index = self.split_by_chunk(self.rows)
        sizes = [size for chunk in self.chunks for size in chunk.sizes]
        self._block_index = [*paddle.split(self.rows, sizes), self.rows]  # the last is the bias
        if self.bias is not None:
            take_rows(full.bias, self.rows, out=self.bias)
        self._squared_norms = paddle.index_select(full.squared_norms(), self.rows) if full.has_norms else None

    def _begun(self, seed: int) -> tuple[paddle.Tensor, NDArray[np.int64]]:
        """The random numbers of the classes [S], and which classes were asked for in the step before."""
        begun, self._next = self._next, None
        if begun is not None and begun.seed == seed:
            return begun.scores, begun.classes()
        return self._scores(seed), np.zeros(0, np.int64)

    def _begin_next(self, seed: int | None) -> None:
        if seed is not None:
            self._next = NextDraw(seed, self._scores(seed), count=self._drawn, expect=self._expect)

    def _scores(self, seed: int) -> paddle.Tensor:
        return paddle.uniform([self._full.num_classes], "float32", min=0.0, max=1.0, seed=seed)

    def _expect(self, classes: NDArray[np.int64]) -> None:
        """Say that the rows of these classes are used next."""
        rows = classes if self.subcenters == 1 else (classes[:, None] * self.subcenters + np.arange(self.subcenters))
        for store in self._full.stores_of("weight"):
            self.location.expect(store.kept, rows.reshape(-1))

    def _expect_chunk(self, k: int) -> None:
        pass  # all rows were asked for with the draw

    def _rows_of(self, classes: paddle.Tensor) -> paddle.Tensor:
        """The rows of classes: K consecutive ones each."""
        first = (classes * self.subcenters).unsqueeze(1)
        return (first + paddle.arange(self.subcenters, dtype="int64")).flatten()

    def target_rows(self, targets: Targets) -> paddle.Tensor:
        if not self.size:
            return super().target_rows(targets)
        return self._read(targets.row if self._travelling else paddle.index_select(self.rows, targets.row))

    def _rows_of_chunk(self, k: int) -> Rows:
        return self.chunks[k].range if self._travelling else self._chunk_index[k]

    def _rows_of_block(self, block: Block) -> Rows:
        is_here = self._travelling and block.parameter == "weight"
        return block.range if is_here else self._block_index[block.number]

    def update(self, gradients: Iterable[tuple[Block, paddle.Tensor]], *, learning_rate: float) -> None:
        super().update(gradients, learning_rate=learning_rate)
        self._full.step = self.step
        for store, own in zip(self._travelling, self._here):
            store.give(self.rows, own.kept)
        if self.size and self.has_norms:
            put_rows(self._full.squared_norms(), self.rows, values=self.squared_norms())

    def locate(self, labels: paddle.Tensor) -> Targets:
        owned, row = self._full.locate(labels)
        if not self.size:
            return Targets(owned, row)
        # A class that is not owned lies anywhere among the sampled rows: at the first row of some class.
        first = paddle.clip(paddle.searchsorted(self.rows, row), 0, self.size - self.subcenters)
        return Targets(owned, first if self.subcenters == 1 else first // self.subcenters * self.subcenters)

    def squared_norms(self) -> paddle.Tensor:
        if self._squared_norms is None:
            self._squared_norms = paddle.index_select(self._full.squared_norms(), self.rows)
        return self._squared_norms


def _mark(score: paddle.Tensor, targets: Targets) -> None:
    """Set the scores [S] of the owned targets to 2, above all others; each is written with the same number."""
    one_owned = paddle.index_select(targets.row, targets.owned.astype("int32").argmax().reshape([1]))
    row = paddle.where(targets.owned, targets.row, one_owned)
    before = paddle.index_select(score, row)
    put_rows(score, row, values=paddle.where(targets.owned.any(), paddle.full_like(before, 2.0), before))
