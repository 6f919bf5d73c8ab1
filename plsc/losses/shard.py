"""The rows of one shard: class centers, the optimizer's state of each, and their views by chunk and block.

G gathered batch, D embedding, S classes of this shard.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import paddle

from plsc.losses.ops import Squares, host_view, join, row_squares
from plsc.losses.reference import Targets, locate
from plsc.losses.row_optimizers import UpdateRule

_C = paddle._C_ops

# Rows worked on at a time. On a CPU a chunk's logits and a block's rows, state and gradient are to stay
# in the second-level cache (2 MB) between the passes over them; on a GPU launches are what costs.
CHUNK_ROWS = {"cpu": 2048, "gpu": 65536}
BLOCK_ROWS = {"cpu": 128, "gpu": 65536}


class Block(NamedTuple):
    """A few rows of a chunk, and the same memory as one channel per row."""

    number: int  # in the shard
    rows: paddle.Tensor  # [b, D]
    channels: paddle.Tensor  # [1, b, 1, D]
    zeros: paddle.Tensor  # [b]
    view: np.ndarray | None  # [b, D]
    state: tuple[paddle.Tensor, ...]


class Chunk(NamedTuple):
    """Rows whose logits are worked on together."""

    rows: paddle.Tensor  # [B, D]
    blocks: list[Block]
    sizes: list[int]  # b of each block


class Shard:
    """Class centers [S, D], their bias [S] and their optimizer state. All are updated in place.

    Args:
        weight: [S, D]; S may be 0. It must keep its memory (`set_value` does, a new tensor does not).
        bias: [S], or None.
        rule: how rows are updated.
        first_class: global id of the class in row 0.
        step: updates made so far.
        state: the optimizer's state as `Shard.state` names it; zeros when not given.
    """

    def __init__(
        self,
        weight: paddle.Tensor,
        bias: paddle.Tensor | None,
        rule: UpdateRule,
        first_class: int = 0,
        step: int = 0,
        state: dict[str, paddle.Tensor] | None = None,
    ) -> None:
        self.weight, self.bias, self.rule, self.first_class, self.step = weight, bias, rule, first_class, step
        own = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        # A bias is small: only the state of the weight is worth a lower precision.
        self.state = state or {
            f"{name}:{kind}": paddle.zeros(tensor.shape, (rule.storage if name == "weight" else None) or tensor.dtype)
            for name, tensor in own.items()
            for kind in rule.kinds
        }
        place = "gpu" if weight.place.is_gpu_place() else "cpu"
        self.chunk_rows, self.block_rows = CHUNK_ROWS[place], BLOCK_ROWS[place]
        self._zeros = paddle.zeros([self.block_rows], weight.dtype)
        self._ones = paddle.ones([weight.shape[1]], weight.dtype)
        self._squares: paddle.Tensor | None = None
        self._chunks: list[Chunk] | None = None

    @property
    def size(self) -> int:
        return self.weight.shape[0]

    def slots(self, name: str) -> list[paddle.Tensor]:
        """The state tensors of 'weight' or 'bias', in the rule's order."""
        return [self.state[f"{name}:{kind}"] for kind in self.rule.kinds]

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
                sizes = [block.rows.shape[0] for block in blocks]
                self._chunks.append(Chunk(self._rows(start, stop), blocks, sizes))
        return self._chunks

    def _block(self, number: int, first: int, last: int) -> Block:
        rows, size = self._rows(first, last), last - first
        return Block(
            number,
            rows,
            rows.view([1, size, 1, rows.shape[1]]),
            self._zeros[:size],
            host_view(rows),
            self._block_state(first, last),
        )

    def _rows(self, first: int, last: int) -> paddle.Tensor:
        """Where rows [first, last) of one chunk lie while they are worked on."""
        return self.weight[first:last]

    def _block_state(self, first: int, last: int) -> tuple[paddle.Tensor, ...]:
        return tuple(slot[first:last] for slot in self.slots("weight"))

    def rows_of(self, targets: Targets) -> paddle.Tensor:
        """[G, D]: the rows of the targets."""
        return paddle.index_select(self.weight, targets.row)

    def fetch_rows(self, k: int) -> None:
        """Make `rows` of chunk k and of its blocks the rows as they are. They always are, here."""

    def fetch_state(self, block: Block) -> None:
        """Make `block.state` the state of the block's rows, before they are updated. It always is, here."""

    def give_back(self, block: Block) -> None:
        """Take the block's updated rows and state over. They are this shard's own memory, here."""

    def cut(self, rows: paddle.Tensor) -> list[paddle.Tensor]:
        """[S] in one piece per chunk."""
        if not self.size:
            return []
        whole, rest = divmod(self.size, self.chunk_rows)
        return paddle.split(rows, [self.chunk_rows] * whole + [rest] * (rest > 0))

    def locate(self, labels: paddle.Tensor) -> Targets:
        """Where the labels [G], global ids, lie."""
        return locate(labels, self.first_class, self.size)

    def block_squares(self, block: Block) -> Squares:
        """[b]: squared norms of a block's rows, as `keep_squares` takes them."""
        return row_squares(block.rows, block.view, self._ones)

    def squares(self, samples: paddle.Tensor, rows: paddle.Tensor) -> paddle.Tensor:
        """[S]: squared norms of all rows, remembered from the last update, when they were in cache.

        The memory is checked against some rows, since a loaded checkpoint changes the weight behind it.

        Args:
            samples: [M] int64 rows to check.
            rows: [M, D] these rows.
        """
        # A GPU has bandwidth to spare and would have to wait for the answer of the check.
        if self._squares is not None:
            kept = paddle.index_select(self._squares, samples)
            if not self.weight.place.is_cpu_place() or not paddle.allclose(kept, (rows * rows).sum(1), 1e-4, 0.0):
                self._squares = None
        return self.all_squares()

    def all_squares(self) -> paddle.Tensor:
        """[S]: squared norms of all rows, unchecked."""
        if self._squares is None:
            parts = [self.block_squares(block) for chunk in self.chunks for block in chunk.blocks]
            self._squares = join(parts) if parts else paddle.zeros([0], self.weight.dtype)
        return self._squares

    @property
    def kept_squares(self) -> paddle.Tensor | None:
        """[S]: squared norms if they are known."""
        return self._squares

    def keep_squares(self, squares: list[Squares] | None) -> None:
        """Remember the squared norms, block by block; None to forget them."""
        self._squares = join(squares) if squares else None
