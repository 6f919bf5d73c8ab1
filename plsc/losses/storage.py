"""How the rows of a tensor are kept: class centers, and the state of their optimizer.

A step works on float32 rows, a block at a time. A store hands out the rows of a block and takes them back; nothing else
touches them. Three kinds of store:

    PlainRows      the type that the step works in (or one that the row optimizer asks for); blocks are views
    BFloat16Rows   2 bytes a number
    Int8Rows       1 byte a number, and 4 a row, which is divided by its greatest magnitude / 127 (blockwise
                   quantization: Dettmers et al., ICLR 2022; a block is a row, whose length no other row shares)

No float32 copy of what is kept in the two latter is made. What a step writes to them is rounded stochastically: a
number between two neighbors becomes either, the nearer one more likely, so that the mean is exact. Rounding to the
nearest would lose every change smaller than half the distance of the neighbors, 1/512 of a center in bfloat16 (Gupta et
al., ICML 2015; Prazeres et al., ELMO, ICML 2025, for classifiers). Numbers from elsewhere, as those of a checkpoint of
another type, are rounded to the nearest.

S rows, D numbers of each, b rows of a block.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.losses.location import Location
from plsc.losses.noise import Noise
from plsc.losses.ops import Array, add_, host_view, put_rows, take_rows
from plsc.losses.rounding import round_to_bfloat16, round_to_int8, unpack_int8, widen
from plsc.losses.row_optimizers import RowOptimizer
from plsc.utils.ranges import Range
from plsc.utils.row_types import (
    LEAST_MAGNITUDE,
    LIMIT,
    SCALE_BYTES,
    decoded,
    int8_width,
    narrow,
    packed,
)


class Buffer(NamedTuple):
    """Memory for rows that are worked on.

    Attributes:
        tensor: [b, D].
        view: `host_view(tensor)`.
    """

    tensor: paddle.Tensor
    view: Array | None

    @classmethod
    def of(cls, tensor: paddle.Tensor) -> Buffer:
        return cls(tensor, host_view(tensor))


Rows: TypeAlias = "Range | paddle.Tensor"
"""Local numbers of rows: consecutive ones, or chosen ones, [b] int64 in ascending order."""


class Rounding(NamedTuple):
    """How a step rounds.

    Attributes:
        noise: of the step.
        tensor: number of the tensor among those of the shard.
        first: global number of row 0 of the store.
        chosen: [b], the numbers in the store of rows 0, 1, ... that are rounded; None where they are their own.
    """

    noise: Noise
    tensor: int
    first: int
    chosen: paddle.Tensor | None = None

    def of(self, rows: Rows) -> Rounding:
        """For rows that were taken out of the store, and are rounded as 0, 1, ..."""
        return self._replace(first=self.first + rows.start) if isinstance(rows, Range) else self._replace(chosen=rows)

    def pieces(self, rows: Rows) -> list[tuple[slice, NDArray[np.int32]]]:
        """(which of the rows, their noise [., D]), for all rows."""
        rows = self._own(rows)
        if isinstance(rows, Range):
            return self.noise.pieces(rows.shift(self.first), tensor=self.tensor)
        numbers: Array = np.from_dlpack(rows + self.first)
        return [(slice(None), self.noise.take(numbers, tensor=self.tensor))]

    def on_device(self, rows: Rows, like: paddle.Tensor) -> paddle.Tensor:
        """[b, D] int32."""
        rows = self._own(rows)
        if isinstance(rows, Range):
            numbers = paddle.to_tensor(np.arange(*rows.shift(self.first)), place=like.place)
        else:
            numbers = rows + self.first
        return self.noise.on_device(numbers, tensor=self.tensor)

    def _own(self, rows: Rows) -> Rows:
        return rows if self.chosen is None or not isinstance(rows, Range) else self.chosen[rows.start : rows.stop]


class RowStore(Protocol):
    """The rows of one tensor.

    Attributes:
        kept: [S, ...], what a checkpoint holds; with sub-centers their rows are consecutive.
        width: D.
        rounds: whether `write` rounds, and needs `rounding`.
        in_place: whether a step works on the rows where they lie, as `view` returns them.
        may_copy: whether memory may be taken for a copy of all rows, from which a checkpoint is written while training
            goes on. False for rows that are not kept in memory, as those of a mapped file.
    """

    kept: paddle.Tensor
    width: int
    rounds: bool
    in_place: bool
    may_copy: bool

    def view(self, rows: Range) -> paddle.Tensor | None:
        """The rows themselves, where a step can work on them; else None."""
        ...

    def read(self, rows: Rows, *, out: Buffer) -> None:
        """Copy rows to a buffer."""
        ...

    def write(self, rows: Rows, values: Buffer, *, rounding: Rounding | None) -> None:
        """Keep the values of rows. A store that rounds overwrites `values`, of centers by what it keeps of them."""
        ...

    def put(self, places: Places, rows: NDArray[Any]) -> None:
        """Set rows from the host.

        Args:
            places: local numbers of the rows.
            rows: as a store of any kind keeps them: float32 or float64; uint16, the bits of bfloat16; int8.
        """
        ...


class PlainRows:
    """Rows as they are.

    Args:
        kept: [S, D], or [S] of a bias.
    """

    rounds, in_place, may_copy = False, True, True

    def __init__(self, kept: paddle.Tensor) -> None:
        self.kept, self.width = kept, int(kept.shape[-1])

    def view(self, rows: Range) -> paddle.Tensor | None:
        return self.kept[rows.start : rows.stop]

    def read(self, rows: Rows, *, out: Buffer) -> None:
        if isinstance(rows, Range):
            paddle.assign(self.kept[rows.start : rows.stop], out.tensor)
        else:
            take_rows(self.kept, rows, out=out.tensor)

    def write(self, rows: Rows, values: Buffer, *, rounding: Rounding | None) -> None:
        _put(self.kept, rows, values.tensor)

    def put(self, places: Places, rows: NDArray[Any]) -> None:
        set_rows(self.kept, places, decoded(rows, self.width))


class BFloat16Rows:
    """Rows in bfloat16.

    Args:
        kept: [S, D] bfloat16.
        keeps_rounded: `write` sets the values to what it keeps of them, which the norms of centers are made of.
    """

    rounds, in_place, may_copy = True, False, True

    def __init__(self, kept: paddle.Tensor, *, keeps_rounded: bool = False) -> None:
        self.kept, self.width, self._keeps_rounded = kept, int(kept.shape[-1]), keeps_rounded
        self._bits = _host_view(kept)
        self._chosen = _Scratch(self.width, np.uint16)

    def view(self, rows: Range) -> paddle.Tensor | None:
        return None

    def read(self, rows: Rows, *, out: Buffer) -> None:
        if self._bits is None or out.view is None:
            found = (
                self.kept[rows.start : rows.stop] if isinstance(rows, Range) else paddle.index_select(self.kept, rows)
            )
            paddle.assign(found.astype(out.tensor.dtype), out.tensor)
        elif isinstance(rows, Range):
            widen(self._bits[rows.start : rows.stop], out=out.view)
        else:
            index: Array = np.from_dlpack(rows)
            chosen = self._chosen.of(len(index))
            widen(np.take(self._bits, index, axis=0, out=chosen, mode="clip"), out=out.view)

    def write(self, rows: Rows, values: Buffer, *, rounding: Rounding | None) -> None:
        assert rounding is not None
        if self._bits is None or values.view is None:
            self._write_on_device(rows, values.tensor, rounding)
            return
        target = self._bits[rows.start : rows.stop] if isinstance(rows, Range) else self._chosen.of(len(values.view))
        for own, noise in rounding.pieces(rows):
            round_to_bfloat16(values.view[own], noise, out=target[own], keeps_rounded=self._keeps_rounded)
        if not isinstance(rows, Range):
            self._bits[np.from_dlpack(rows)] = target

    def put(self, places: Places, rows: NDArray[Any]) -> None:
        set_rows(self.kept, places, decoded(rows, self.width) if rows.dtype == np.int8 else rows)

    def _write_on_device(self, rows: Rows, values: paddle.Tensor, rounding: Rounding) -> None:
        bits = add_(values.view("int32"), rounding.on_device(rows, values))
        paddle.bitwise_and_(bits, paddle.full([], -(1 << 16), "int32"))
        _put(self.kept, rows, values.astype("bfloat16"))


class Int8Rows:
    """Rows of integers from -127 to 127 and a scale, which is the greatest magnitude of the row / 127.

    A row is D integers, 0 to 3 bytes without a meaning, and the scale in float32, so that its elements are one tensor.

    Args:
        kept: [S, W] int8; W as `int8_width` returns it.
        width: D.
    """

    rounds, in_place, may_copy = True, False, True

    def __init__(self, kept: paddle.Tensor, *, width: int) -> None:
        self.kept, self.width = kept, width
        self._packed = _host_view(kept)
        self._chosen, self._scratch = _Scratch(int(kept.shape[1]), np.int8), _Scratch(width, np.int32)
        # Four integers as one: fewer kernels are made for int8.
        self._words = kept.view("int32") if kept.shape[0] else kept

    def view(self, rows: Range) -> paddle.Tensor | None:
        return None

    def read(self, rows: Rows, *, out: Buffer) -> None:
        if self._packed is None or out.view is None:
            words = self._words[rows.start : rows.stop] if isinstance(rows, Range) else _select(self._words, rows)
            integers, scale = words[:, :-1].contiguous().view("int8"), words[:, -1:].contiguous().view("float32")
            paddle.assign(integers[:, : self.width].astype(out.tensor.dtype) * scale, out.tensor)
            return
        if isinstance(rows, Range):
            unpack_int8(self._packed[rows.start : rows.stop], out=out.view)
        else:
            index: Array = np.from_dlpack(rows)
            chosen = self._chosen.of(len(index))
            unpack_int8(np.take(self._packed, index, axis=0, out=chosen, mode="clip"), out=out.view)

    def write(self, rows: Rows, values: Buffer, *, rounding: Rounding | None) -> None:
        assert rounding is not None
        if self._packed is None or values.view is None:
            self._write_on_device(rows, values.tensor, rounding)
            return
        count = len(values.view)
        target = self._packed[rows.start : rows.stop] if isinstance(rows, Range) else self._chosen.of(count)
        scratch = self._scratch.of(count)
        for own, noise in rounding.pieces(rows):
            round_to_int8(values.view[own], noise, out=target[own], scratch=scratch[own])
        if not isinstance(rows, Range):
            self._packed[np.from_dlpack(rows)] = target

    def put(self, places: Places, rows: NDArray[Any]) -> None:
        set_rows(self.kept, places, rows if rows.dtype == np.int8 else packed(decoded(rows, self.width)))

    def _write_on_device(self, rows: Rows, values: paddle.Tensor, rounding: Rounding) -> None:
        greatest = values.abs().max(axis=1, keepdim=True)
        divisor = paddle.where(greatest > LEAST_MAGNITUDE, greatest, paddle.full_like(greatest, np.inf))
        factor, scale = (LIMIT * 65536.0) / divisor, greatest / LIMIT
        fixed = add_((values * factor).astype("int32"), rounding.on_device(rows, values))
        paddle.bitwise_and_(fixed, paddle.full([], -(1 << 16), "int32"))
        integers = (fixed.astype("float32") * 2.0**-16).astype("int8")  # exact: 24 bits hold it
        padding = paddle.zeros([integers.shape[0], -self.width % SCALE_BYTES], "int8")
        words = paddle.concat([integers, padding], axis=1).view("int32")
        _put(self._words, rows, paddle.concat([words, scale.view("int32")], axis=1))


class _Scratch:
    """Memory for rows that are copied, kept from one call to the next.

    Args:
        width: numbers of a row.
        dtype: of a number.
    """

    def __init__(self, width: int, dtype: type[np.generic]) -> None:
        self._memory: Array = np.zeros([0, width], dtype)

    def of(self, rows: int) -> Array:
        """[rows, width], of any content: what was written to it, or zeros."""
        if len(self._memory) < rows:
            self._memory = np.zeros([rows, self._memory.shape[1]], self._memory.dtype)
        return self._memory[:rows]


def store_of(kept: paddle.Tensor, *, width: int, is_plain: bool, is_state: bool) -> RowStore:
    """The store of rows that lie in `kept`.

    Args:
        kept: [S, D], or [S] of a bias; [S, W] int8.
        width: D.
        is_plain: a step works on the rows as they are, whatever their type is.
        is_state: they are no centers.
    """
    if kept.dtype == paddle.int8:
        return Int8Rows(kept, width=width)
    if is_plain or kept.dtype != paddle.bfloat16:
        return PlainRows(kept)
    return BFloat16Rows(kept, keeps_rounded=not is_state)


def new_state(
    optimizer: RowOptimizer,
    kind: str,
    parameter: paddle.Tensor,
    *,
    storage: str | None,
    location: Location | None = None,
) -> paddle.Tensor:
    """The state `kind` of a row optimizer before its first step: zeros.

    Args:
        optimizer: whose `state_dtype` goes first.
        kind: one of its state names.
        parameter: [S, D] or [S, K, D]; or [S], of a bias.
        storage: 'float32' for the type of the step, 'bfloat16', 'int8'; None for a bias, which is small. Means of
            squares are kept in bfloat16 where others are in int8: those of one row are of different orders of
            magnitude, and one that became 0 would make a step of any length.
        location: where it is to lie; by default on the device.
    """
    zeros = (location or Location()).zeros
    dtype = paddle.float32 if parameter.dtype == paddle.bfloat16 else parameter.dtype
    if storage is not None:
        is_square = kind in getattr(optimizer, "squares", ())  # a user's row optimizer may not say it
        storage = "bfloat16" if storage == "int8" and is_square else storage
        if storage == "int8" and optimizer.state_dtype is None:
            return zeros([*parameter.shape[:-1], int8_width(parameter.shape[-1])], "int8")
        dtype = optimizer.state_dtype or ("bfloat16" if storage == "bfloat16" else dtype)
    return zeros(parameter.shape, dtype)


def kept_view(kept: paddle.Tensor) -> Array | None:
    """The memory of a tensor in the type in which a checkpoint holds it; None where no array can be made of it."""
    return _host_view(kept) if kept.dtype in (paddle.bfloat16, paddle.int8) else host_view(kept)


def _host_view(kept: paddle.Tensor) -> Array | None:
    """The memory of a bfloat16 tensor as uint16, or of an int8 tensor; None where `host_view` would return that."""
    if not kept.place.is_cpu_place() or not kept.size:
        return None
    view: Array = np.from_dlpack(kept.detach().view("int16") if kept.dtype == paddle.bfloat16 else kept.detach())
    if not view.flags.writeable:
        return None
    return view.view(np.uint16) if kept.dtype == paddle.bfloat16 else view


def _select(kept: paddle.Tensor, index: paddle.Tensor) -> paddle.Tensor:
    return paddle.index_select(kept, index)


def _put(kept: paddle.Tensor, rows: Rows, values: paddle.Tensor) -> None:
    if isinstance(rows, Range):
        paddle.assign(values, kept[rows.start : rows.stop])
    else:
        put_rows(kept, rows, values=values)


# Rows from the host

Places: TypeAlias = "slice | NDArray[np.int64]"
"""Numbers of rows, one by one or of consecutive ones."""


def put_classes(store: RowStore, places: Places, rows: NDArray[Any], *, subcenters: int) -> None:
    """Set the rows of classes in a store.

    Args:
        store: of all rows, those of the sub-centers included.
        places: local numbers of the classes.
        rows: [classes, ...] as a store of any kind keeps them.
        subcenters: K.

    Raises:
        CheckpointError: a row has another number of elements.
    """
    if subcenters > 1:
        rows = rows.reshape(-1, *rows.shape[2:])
        if isinstance(places, slice):
            places = slice(places.start * subcenters, places.stop * subcenters)
        else:
            places = (places[:, None] * subcenters + np.arange(subcenters)).reshape(-1)
    store.put(places, rows)


def set_rows(tensor: paddle.Tensor, places: Places, rows: NDArray[Any]) -> None:
    """tensor[places] = rows, which are rounded to the nearest where the tensor is bfloat16.

    Args:
        tensor: of any type of floats, [S, ...]; or int8.
        places: which rows.
        rows: of floats, or uint16, the bits of bfloat16; int8 for int8.
    """
    if tensor.dtype == paddle.bfloat16 and rows.dtype != np.uint16:
        rows = narrow(rows)
    elif tensor.dtype not in (paddle.bfloat16, paddle.int8):
        rows = decoded(rows, rows.shape[-1])
    view = kept_view(tensor)
    if view is not None:
        view[places] = rows
    elif len(rows):
        given = paddle.to_tensor(rows, place=tensor.place)
        given = given.view("bfloat16") if tensor.dtype == paddle.bfloat16 else given.astype(tensor.dtype)
        with paddle.no_grad():
            target = tensor.detach()
            if tensor.dtype == paddle.int8:
                target, given = target.view("int32"), given.view("int32")
            if isinstance(places, slice):
                paddle.assign(given, target[places])
            else:
                put_rows(target, paddle.to_tensor(places), values=given)
