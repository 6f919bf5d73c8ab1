"""The class centers of one shard, their optimizer state, and the views of both by chunk and block.

G gathered batch, D embedding, S classes of this shard, B rows of a chunk, b rows of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import paddle

from plsc.losses.host_rows import HostRows
from plsc.losses.location import Location
from plsc.losses.noise import Noise
from plsc.losses.ops import SquaredNorms, concat_norms, flat_rows, no_grad, squared_norms
from plsc.losses.reference import Targets, locate
from plsc.losses.row_optimizers import RowOptimizer
from plsc.losses.storage import BFloat16Rows, Buffer, Rounding, Rows, RowStore, new_state, store_of
from plsc.utils.ranges import Range

# Rows worked on at a time. On a CPU a chunk's logits and a block's rows, state and gradient stay in the second-level
# cache (2 MB) between the passes over them; on a GPU the number of kernel launches decides. Of sub-centers a chunk on a
# CPU has as many classes, since most passes take one number a class.
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
        range: the numbers of the rows in the shard.
        buffers: `rows`, then each of `state`.
    """

    parameter: str
    number: int
    rows: paddle.Tensor
    state: tuple[paddle.Tensor, ...]
    zeros: paddle.Tensor
    range: Range
    buffers: tuple[Buffer, ...]


class Chunk(NamedTuple):
    """Rows whose logits are worked on together.

    Attributes:
        rows: [B, D].
        blocks: the same rows, block by block.
        sizes: b of each block.
        range: the numbers of the rows in the shard.
        buffer: `rows`.
    """

    rows: paddle.Tensor
    blocks: list[Block]
    sizes: list[int]
    range: Range
    buffer: Buffer


class Shard:
    """Class centers [S, D], their bias [S] and their optimizer state. `update` changes all of them in place.

    How a head uses a shard: it calls `load_chunk(k)` before it reads the rows of chunk k. `update` calls
    `load_state(block)` before it updates a block and `store_block(block)` afterwards. What is kept in the type of the
    step (`PlainRows`) is worked on where it lies, and these three do nothing. What is kept in another type, or in other
    memory, is copied to a buffer for one chunk and one block, and back; `SampledShard` does so with chosen rows.

    The shard keeps the squared norms of its rows from one update to the next. Other code that writes into the weight
    must call `invalidate_norms()`; `Classifier.load` does. A user who writes into `parameters["weight"]` between steps
    must call `Classifier.load` instead.

    Args:
        weight: [S, D], or [S, K, D] with K sub-centers per class; S may be 0. It must keep its memory (`set_value`
            does, a new tensor does not). In bfloat16 it is rounded stochastically.
        optimizer: how rows are updated.
        bias: [S], or None.
        first_class: global id of the class in row 0.
        step: updates made so far.
        state: the optimizer's state as `Shard.state` names it, '<parameter>:<state name>'; zeros when not given.
        state_storage: how the state of the weight is kept where the optimizer does not say it: 'float32' (the type of
            the step), 'bfloat16' or 'int8'.
        seed: of the rounding.
        location: where the weight lies, and its state is to lie; by default in the memory of the device.

    Attributes:
        weight: [S K, D], the same memory; the K rows of a class are consecutive.
        subcenters: K.
        state: like the parameters, as it is kept.
        width: D.
        dtype: of the rows that a step works on.
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
        state_storage: str = "float32",
        seed: int = 0,
        location: Location | None = None,
    ) -> None:
        self.location = location or Location()
        # The same memory without autograd: a parameter requires a gradient, and each operator would record its inputs.
        self.weight, self.bias = flat_rows(weight.detach()), None if bias is None else bias.detach()
        own = {"weight": weight.detach()} if bias is None else {"weight": weight.detach(), "bias": self.bias}
        self.state = state or {
            f"{name}:{kind}": new_state(
                optimizer,
                kind,
                tensor,
                storage=state_storage if name == "weight" else None,
                location=self.location if name == "weight" else None,
            )
            for name, tensor in own.items()
            for kind in optimizer.state_names
        }
        is_plain = optimizer.state_dtype is not None
        self._begin(
            {
                name: (
                    self._store(tensor, name, width=int(tensor.shape[-1]), is_plain=False, is_state=False),
                    *(
                        self._store(
                            self.state[f"{name}:{kind}"],
                            name,
                            width=int(tensor.shape[-1]),
                            is_plain=is_plain,
                            is_state=True,
                        )
                        for kind in optimizer.state_names
                    ),
                )
                for name, tensor in own.items()
            },
            optimizer,
            subcenters=int(weight.shape[1]) if weight.ndim == 3 else 1,
            first_class=first_class,
            step=step,
            seed=seed,
        )

    def _store(self, kept: paddle.Tensor, name: str, *, width: int, is_plain: bool, is_state: bool) -> RowStore:
        """The store of what is kept of the parameter `name`; a bias is small, and lies on the device."""
        make = functools.partial(store_of, width=width, is_plain=is_plain, is_state=is_state)
        if name == "bias":
            return make(kept)
        store: RowStore = HostRows(flat_rows(kept), make) if self.location.is_apart else make(flat_rows(kept))
        store.may_copy = store.may_copy and not self.location.is_paged
        return store

    def _begin(
        self,
        stores: dict[str, tuple[RowStore, ...]],
        optimizer: RowOptimizer,
        *,
        subcenters: int,
        first_class: int,
        step: int,
        seed: int,
    ) -> None:
        """What all shards have, of the stores of each parameter and its state."""
        self._stores, self.subcenters, self.seed = stores, subcenters, seed
        self.optimizer, self.first_class, self.step = optimizer, first_class, step
        kept, self.width = stores["weight"][0].kept, stores["weight"][0].width
        self.dtype = paddle.float32 if stores["weight"][0].rounds else kept.dtype
        self.place = paddle.empty([0]).place if self.location.is_apart else kept.place
        self._device = "gpu" if self.place.is_gpu_place() else "cpu"
        self.chunk_rows, self.block_rows = self._most_rows(), BLOCK_ROWS[self._device]
        self._zeros = paddle.zeros([self.block_rows], self.dtype)
        self.ones = paddle.ones([self.width], self.dtype)
        self._copied = {name: [self._is_copied(store) for store in each] for name, each in stores.items()}
        self._buffers: list[paddle.Tensor] = []
        self._slices: dict[tuple[int, int, int], Buffer] = {}
        self._roundings: dict[str, list[Rounding | None]] = {}
        self._squared_norms: paddle.Tensor | None = None
        self._chunks: list[Chunk] | None = None
        self._is_updating = False

    @property
    def size(self) -> int:
        """S K, the number of rows."""
        return int(self.weight.shape[0])

    @property
    def num_classes(self) -> int:
        """S."""
        return self.size // self.subcenters

    def stores_of(self, name: str) -> tuple[RowStore, ...]:
        """Where the rows of 'weight' or 'bias' are kept, and each state of theirs, in the optimizer's order."""
        return self._stores[name]

    @property
    def stores(self) -> dict[str, RowStore]:
        """The same by the names of `state`, and by 'weight' and 'bias'."""
        kinds = ("", *(f":{kind}" for kind in self.optimizer.state_names))
        return {f"{name}{kind}": store for name, each in self._stores.items() for kind, store in zip(kinds, each)}

    @property
    def rounds(self) -> bool:
        """Whether an update rounds what it keeps, in a way that the number of the step decides."""
        return any(store.rounds for each in self._stores.values() for store in each)

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
                buffer = self._place_of(0, start, stop)
                sizes = [block.range.size for block in blocks]
                self._chunks.append(Chunk(buffer.tensor, blocks, sizes, Range(start, stop), buffer))
        return self._chunks

    @property
    def bias_block(self) -> Block:
        """The bias as one block, numbered after those of the weight."""
        number = sum(len(chunk.blocks) for chunk in self.chunks)
        buffers = tuple(Buffer.of(self._bias_place(number)) for number in range(len(self._stores["bias"])))
        return self._block_of("bias", number, buffers, Range(0, self.size), self._zeros)

    def fit(self, samples: int) -> None:
        """Choose the rows of a chunk for batches of up to so many samples."""
        most = max(CHUNK_LOGITS[self._device] // samples, _LEAST_CHUNK)
        self.chunk_rows = min(self._most_rows(), self._whole(most))
        self.block_rows = min(BLOCK_ROWS[self._device], most)
        self._forget_chunks()

    def _most_rows(self) -> int:
        rows = CHUNK_ROWS[self._device]
        return self._whole(rows) if self._device == "gpu" else rows * self.subcenters

    def _whole(self, rows: int) -> int:
        """So many rows at most, of whole classes."""
        return max(rows // self.subcenters, 1) * self.subcenters

    def _forget_chunks(self) -> None:
        self._chunks, self._buffers, self._slices = None, [], {}

    def _block(self, number: int, first: int, last: int) -> Block:
        buffers = tuple(self._place_of(each, first, last) for each in range(len(self._stores["weight"])))
        return self._block_of("weight", number, buffers, Range(first, last), self._zeros[: last - first])

    @staticmethod
    def _block_of(parameter: str, number: int, buffers: tuple[Buffer, ...], rows: Range, zeros: paddle.Tensor) -> Block:
        state = tuple(buffer.tensor for buffer in buffers[1:])
        return Block(parameter, number, buffers[0].tensor, state, zeros, rows, buffers)

    def _place_of(self, tensor: int, first: int, last: int) -> Buffer:
        """Where rows [first, last) of one chunk, or of one block of a state, lie while they are worked on.

        Args:
            tensor: 0 for the weight, 1 for the first state, ...
            first: of the rows.
            last: of the rows.
        """
        if not self._copied["weight"][tensor]:
            return Buffer.of(self._stores["weight"][tensor].view(Range(first, last)))
        start = first // self.chunk_rows * self.chunk_rows if tensor == 0 else first
        key = (tensor, first - start, last - start)
        if key not in self._slices:  # all chunks have the same
            if not self._buffers:
                self._buffers = [self._new_buffer(each) for each in range(len(self._stores["weight"]))]
            self._slices[key] = Buffer.of(self._buffers[tensor][key[1] : key[2]])
        return self._slices[key]

    def _new_buffer(self, tensor: int) -> paddle.Tensor:
        """Memory for one chunk of the weight, or one block of a state; none where that is worked on where it lies."""
        store, is_copied = self._stores["weight"][tensor], self._copied["weight"][tensor]
        rows = min(self.size, self.block_rows if tensor else self.chunk_rows) if is_copied else 0
        return paddle.empty([rows, self.width], self.dtype if store.rounds else store.kept.dtype)

    def _bias_place(self, tensor: int) -> paddle.Tensor:
        """The bias, or a state of it, while it is worked on."""
        return self._stores["bias"][tensor].kept

    def _is_copied(self, store: RowStore) -> bool:
        """Whether rows are worked on in a buffer."""
        return not store.in_place

    def load_chunk(self, k: int) -> None:
        """Copy the rows of chunk k to `chunks[k].rows`, unless they lie there."""
        if self.location.is_paged:
            self._expect_chunk(k + 1)
        if self._copied["weight"][0]:
            chunk = self.chunks[k]
            self._stores["weight"][0].read(self._rows_of_chunk(k), out=chunk.buffer)

    def _expect_chunk(self, k: int) -> None:
        """Say that chunk k, if there is one, is worked on next; its state too, in an update."""
        if k < len(self.chunks):
            for store in self._stores["weight"] if self._is_updating else self._stores["weight"][:1]:
                self.location.expect(store.kept, self.chunks[k].range)

    def kept_rows(self, k: int) -> paddle.Tensor | None:
        """[B, D]: the rows of chunk k in bfloat16, where they are kept so and lie together."""
        store, rows = self._stores["weight"][0], self._rows_of_chunk(k)
        is_half = isinstance(store, BFloat16Rows) and isinstance(rows, Range)
        return store.kept[rows.start : rows.stop] if is_half else None

    def load_state(self, block: Block) -> None:
        """Copy the state of the block's rows to `block.state`, unless it lies there."""
        for store, is_copied, buffer in self._moved(block)[1:]:
            if is_copied:
                store.read(self._rows_of_block(block), out=buffer)

    def store_block(self, block: Block) -> None:
        """Copy `block.rows` and `block.state` to where the shard keeps them, unless they lie there."""
        for (store, is_copied, buffer), rounding in zip(self._moved(block), self._roundings[block.parameter]):
            if is_copied:
                store.write(self._rows_of_block(block), buffer, rounding=rounding)

    def _moved(self, block: Block) -> list[tuple[RowStore, bool, Buffer]]:
        return list(zip(self._stores[block.parameter], self._copied[block.parameter], block.buffers))

    def _rows_of_chunk(self, k: int) -> Rows:
        return self.chunks[k].range

    def _rows_of_block(self, block: Block) -> Rows:
        return block.range

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
            return paddle.zeros([targets.row.shape[0], self.width], self.dtype)
        return self._read(targets.row)

    def _read(self, index: paddle.Tensor) -> paddle.Tensor:
        """[b, D]: rows of the stores by their numbers [b], as a new tensor."""
        rows = paddle.empty([index.shape[0], self.width], self.dtype)
        self._stores["weight"][0].read(index, out=Buffer.of(rows))
        return rows

    # Norms

    def squared_norms(self) -> paddle.Tensor:
        """[S]: squared norms of all rows, from the last update if that computed them."""
        if self._squared_norms is None:
            norms = []
            for k, chunk in enumerate(self.chunks):
                self.load_chunk(k)
                norms += [self._block_norms(block) for block in chunk.blocks]
            self._squared_norms = self._concat(norms)
        return self._squared_norms

    @property
    def has_norms(self) -> bool:
        """Whether `squared_norms` has them already."""
        return self._squared_norms is not None

    def invalidate_norms(self) -> None:
        """Drop the squared norms, after code other than `update` has written into the weight."""
        self._squared_norms = None

    def _block_norms(self, block: Block) -> SquaredNorms:
        return squared_norms(block.rows, block.buffers[0].view, ones=self.ones)

    def _concat(self, norms: list[SquaredNorms]) -> paddle.Tensor:
        return concat_norms(norms) if norms else paddle.zeros([0], self.dtype)

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
        self._roundings, copies = self._roundings_of_step(), any(map(any, self._copied.values()))
        # Norms cost little while the new rows are in the cache, and nothing where no loss has asked for them.
        norms: list[SquaredNorms] | None = [] if self.has_norms else None
        self.invalidate_norms()
        self._is_updating = True
        for block, gradient in gradients:
            if copies:
                self.load_state(block)
            apply(block.rows, gradient, state=block.state, prepared=prepared)
            if copies:
                self.store_block(block)
            if norms is not None and block.parameter == "weight":
                norms.append(self._block_norms(block))
        self._is_updating = False
        if norms is not None:
            self._squared_norms = self._concat(norms)

    @property
    def _num_kept(self) -> int:
        """The number of rows of the shard, those included that no step works on."""
        return self.size

    def _rounding(self, noise: Noise, tensor: int, first: int) -> Rounding:
        return Rounding(noise, tensor, first)

    def _prepare(self, learning_rate: float) -> object:
        return self.optimizer.prepare(learning_rate, step=self.step, dtype=self.dtype)

    def _roundings_of_step(self) -> dict[str, list[Rounding | None]]:
        """How each tensor is rounded in this step; None for those that are not."""
        if not self.rounds:
            return {name: [None] * len(each) for name, each in self._stores.items()}
        first = self.first_class * self.subcenters
        numbers = Range(first, first + self._num_kept)
        noise = Noise(self.seed, self.step, width=self.width, rows=numbers)
        return {
            name: [self._rounding(noise, number, first) if store.rounds else None for number, store in enumerate(each)]
            for name, each in self._stores.items()
        }
