"""The class centers of one shard, their optimizer state, and the views of both by chunk and block.

G gathered batch, D embedding, S classes of this shard, B rows of a chunk, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import paddle

from plsc.losses.ops import Array, SquaredNorms, concat_norms, flat_rows, host_view, no_grad, squared_norms
from plsc.losses.reference import Targets, locate
from plsc.losses.row_optimizers import RowOptimizer

# Rows worked on at a time. On a CPU a chunk's logits and a block's rows, state and gradient stay in the second-level
# cache (2 MB) between the passes over them; on a GPU the number of kernel launches decides.
CHUNK_ROWS = {"cpu": 2048, "gpu": 65536}
BLOCK_ROWS = {"cpu": 128, "gpu": 65536}
# Logits of a chunk at most, so that what a chunk needs for the time being is bounded for a large batch too: 256 MiB of
# float32 on a GPU.
CHUNK_LOGITS = {"cpu": 1 << 24, "gpu": 1 << 26}
_LEAST_CHUNK = 128


class Block(NamedTuple):
    """Rows that are updated together: a few rows of a chunk of the weight, or the whole bias.

    Attributes:
        parameter: 'weight' or 'bias'.
        number: of the block in the shard; the bias is numbered last.
        rows: [b, D], or [S] of the bias.
        state: like `rows`, one tensor per state of the row optimizer.
        zeros: [b].
        view: `host_view(rows)`.
    """

    parameter: str
    number: int
    rows: paddle.Tensor
    state: tuple[paddle.Tensor, ...]
    zeros: paddle.Tensor
    view: Array | None


class Chunk(NamedTuple):
    """Rows whose logits are worked on together.

    Attributes:
        rows: [B, D].
        blocks: the same rows, block by block.
        sizes: b of each block.
    """

    rows: paddle.Tensor
    blocks: list[Block]
    sizes: list[int]


class Shard:
    """Class centers [S, D], their bias [S] and their optimizer state. `update` changes all of them in place.

    How a head uses a shard: it calls `load_chunk(k)` before it reads the rows of chunk k. `update` calls
    `load_state(block)` before it updates a block and `store_block(block)` afterwards. Here rows and state are views of
    the whole tensors, so these three do nothing; `SampledShard` copies rows in and out there.

    The shard keeps the squared norms of its rows from one update to the next. Other code that writes into the weight
    must call `invalidate_norms()`; `Classifier.load` does. A user who writes into `parameters["weight"]` between steps
    must call `Classifier.load` instead.

    Args:
        weight: [S, D], or [S, K, D] with K sub-centers per class; S may be 0. It must keep its memory (`set_value`
            does, a new tensor does not).
        optimizer: how rows are updated.
        bias: [S], or None.
        first_class: global id of the class in row 0.
        step: updates made so far.
        state: the optimizer's state as `Shard.state` names it, '<parameter>:<state name>'; zeros when not given.

    Attributes:
        weight: [S K, D], the same memory; the K rows of a class are consecutive.
        subcenters: K.
        state: like the parameters.
        ones: [D].
    """

    def __init__(
        self,
        weight: paddle.Tensor,
        optimizer: RowOptimizer,
        *,
        bias: paddle.Tensor | None = None,
        first_class: int = 0,
        step: int = 0,
        state: dict[str, paddle.Tensor] | None = None,
    ) -> None:
        # The same memory without autograd: a parameter requires a gradient, and each operator would record its inputs.
        self.weight, self.bias = flat_rows(weight.detach()), None if bias is None else bias.detach()
        self.subcenters = int(weight.shape[1]) if weight.ndim == 3 else 1
        self.optimizer, self.first_class, self.step = optimizer, first_class, step
        own = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        # A bias is small: only the state of the weight is worth a lower precision.
        self.state = state or {
            f"{name}:{kind}": paddle.zeros(
                tensor.shape, (optimizer.state_dtype if name == "weight" else None) or tensor.dtype
            )
            for name, tensor in own.items()
            for kind in optimizer.state_names
        }
        self._state_of = {
            name: [flat_rows(self.state[f"{name}:{kind}"]) for kind in optimizer.state_names] for name in own
        }
        self._device = "gpu" if weight.place.is_gpu_place() else "cpu"
        self.chunk_rows, self.block_rows = self._whole(CHUNK_ROWS[self._device]), BLOCK_ROWS[self._device]
        self._zeros = paddle.zeros([self.block_rows], weight.dtype)
        self.ones = paddle.ones([self.weight.shape[1]], weight.dtype)
        self._squared_norms: paddle.Tensor | None = None
        self._chunks: list[Chunk] | None = None

    @property
    def size(self) -> int:
        """S K, the number of rows."""
        return int(self.weight.shape[0])

    @property
    def num_classes(self) -> int:
        """S."""
        return self.size // self.subcenters

    def parameter(self, name: str) -> paddle.Tensor:
        """The tensor of 'weight' or 'bias'."""
        return self.weight if name == "weight" else self.bias

    def state_of(self, name: str) -> list[paddle.Tensor]:
        """The state tensors of 'weight' or 'bias', in the optimizer's order."""
        return self._state_of[name]

    # Chunks and blocks

    @property
    def chunks(self) -> list[Chunk]:
        """Views of weight and state; made once, since a million classes have eight thousand blocks."""
        if self._chunks is None:
            self._chunks, number = [], 0
            for start in range(0, self.size, self.chunk_rows):
                stop = min(start + self.chunk_rows, self.size)
                blocks = []
                for first in range(start, stop, self.block_rows):
                    blocks.append(self._block(number, first, min(first + self.block_rows, stop)))
                    number += 1
                sizes = [int(block.rows.shape[0]) for block in blocks]
                self._chunks.append(Chunk(self._rows(start, stop), blocks, sizes))
        return self._chunks

    @property
    def bias_block(self) -> Block:
        """The bias as one block, numbered after those of the weight."""
        number = sum(len(chunk.blocks) for chunk in self.chunks)
        return Block("bias", number, self.bias, tuple(self.state_of("bias")), self._zeros, None)

    def fit(self, samples: int) -> None:
        """Choose the rows of a chunk for batches of up to so many samples."""
        most = max(CHUNK_LOGITS[self._device] // samples, _LEAST_CHUNK)
        self.chunk_rows = self._whole(min(CHUNK_ROWS[self._device], most))
        self.block_rows = min(BLOCK_ROWS[self._device], most)
        self._chunks = None

    def _whole(self, rows: int) -> int:
        """So many rows at most, of whole classes."""
        return max(rows // self.subcenters, 1) * self.subcenters

    def _block(self, number: int, first: int, last: int) -> Block:
        rows = self._rows(first, last)
        state = self._block_state(first, last)
        return Block("weight", number, rows, state, self._zeros[: last - first], host_view(rows))

    def _rows(self, first: int, last: int) -> paddle.Tensor:
        """Where rows [first, last) of one chunk lie while they are worked on."""
        return self.weight[first:last]

    def _block_state(self, first: int, last: int) -> tuple[paddle.Tensor, ...]:
        return tuple(state[first:last] for state in self.state_of("weight"))

    def load_chunk(self, k: int) -> None:
        """Copy the rows of chunk k to `chunks[k].rows`."""

    def load_state(self, block: Block) -> None:
        """Copy the state of the block's rows to `block.state`."""

    def store_block(self, block: Block) -> None:
        """Copy `block.rows` and `block.state` to where the shard keeps them."""

    def split_by_chunk(self, values: paddle.Tensor) -> list[paddle.Tensor]:
        """[S] as one piece per chunk."""
        if not self.size:
            return []
        full, rest = divmod(self.size, self.chunk_rows)
        return list(paddle.split(values, [self.chunk_rows] * full + [rest] * (rest > 0)))

    # Targets

    def locate(self, labels: paddle.Tensor) -> Targets:
        """Where the labels [G], global ids, lie: the first row of each one's class."""
        owned, row = locate(labels, self.first_class, num_classes=self.num_classes)
        return Targets(owned, row if self.subcenters == 1 else row * self.subcenters)

    def target_rows(self, targets: Targets) -> paddle.Tensor:
        """[G, D]: the rows of the targets; zeros where the shard is empty."""
        if not self.size:
            return paddle.zeros([targets.row.shape[0], self.weight.shape[1]], self.weight.dtype)
        return paddle.index_select(self.weight, targets.row)

    # Norms

    def squared_norms(self) -> paddle.Tensor:
        """[S]: squared norms of all rows, from the last update if that computed them."""
        if self._squared_norms is None:
            self._squared_norms = self._concat([self._block_norms(b) for chunk in self.chunks for b in chunk.blocks])
        return self._squared_norms

    @property
    def has_norms(self) -> bool:
        """Whether `squared_norms` has them already."""
        return self._squared_norms is not None

    def invalidate_norms(self) -> None:
        """Drop the squared norms, after code other than `update` has written into the weight."""
        self._squared_norms = None

    def _block_norms(self, block: Block) -> SquaredNorms:
        return squared_norms(block.rows, block.view, ones=self.ones)

    def _concat(self, norms: list[SquaredNorms]) -> paddle.Tensor:
        return concat_norms(norms) if norms else paddle.zeros([0], self.weight.dtype)

    # Update

    @no_grad
    def update(self, gradients: Iterable[tuple[Block, paddle.Tensor]], *, learning_rate: float) -> None:
        """Update each block by its gradient, as soon as `gradients` yields it.

        Args:
            gradients: (block, gradient) of each block of the weight, and of the bias if there is one, with the
                optimizer's `l2 * row` included.
            learning_rate: of this step.
        """
        self.step += 1
        apply, prepared = self.optimizer.apply, self._prepare(learning_rate)
        # Norms cost little while the new rows are in the cache, and nothing where no loss has asked for them.
        norms: list[SquaredNorms] | None = [] if self.has_norms else None
        self.invalidate_norms()
        for block, gradient in gradients:
            self.load_state(block)
            apply(block.rows, gradient, state=block.state, prepared=prepared)
            self.store_block(block)
            if norms is not None and block.parameter == "weight":
                norms.append(self._block_norms(block))
        if norms is not None:
            self._squared_norms = self._concat(norms)

    def _prepare(self, learning_rate: float) -> object:
        return self.optimizer.prepare(learning_rate, step=self.step, dtype=self.weight.dtype)
