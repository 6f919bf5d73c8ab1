"""Paddle's tensors as a checkpoint reads and fills them: in blocks of rows, without a copy of a whole tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint, reading
from plsc.losses import SavedState
from plsc.losses.storage import Places, kept_view, set_rows
from plsc.utils.ranges import Range

# float32, and bfloat16 as Paddle passes it.
_CONVERTED = {np.dtype(np.float32), np.dtype(np.uint16)}


class TensorRows:
    """The rows of a Paddle tensor, for `plsc.checkpoint.Part`.

    On a CPU, float32, float64, bfloat16 and int8 are read from the tensor's own memory; otherwise each block is copied.

    Args:
        tensor: must not change while it is read. bfloat16 is read as uint16.
    """

    def __init__(self, tensor: paddle.Tensor) -> None:
        self.shape = list(tensor.shape)
        self.dtype: np.dtype[Any] = paddle.empty([0], tensor.dtype).numpy().dtype
        view = kept_view(tensor)
        rows = tensor.detach() if view is None else view
        self._rows = rows if self.shape else rows.reshape([1])
        self.is_view = view is not None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop); a scalar is one row."""
        rows = self._rows[start:stop]
        # `numpy` of a slice would copy the whole tensor.
        return rows if isinstance(rows, np.ndarray) else rows.clone().numpy()


class CheckpointState(SavedState):
    """Tensors of a checkpoint that are read when they are asked for. Numbers that are not finite are refused.

    Args:
        saved: the checkpoint.
        prefix: begins the names of the tensors there, and not here.
        names: the names here.
        rows_of: a name here -> which rows to read: all (None), a range, or chosen ones. In place of a row -1 an array
            has zeros, and a tensor that is filled stays as it is there.
    """

    def __init__(
        self,
        saved: Checkpoint,
        prefix: str,
        names: list[str],
        *,
        rows_of: Callable[[str], Range | NDArray[np.int64] | None] = lambda name: None,
    ) -> None:
        self._saved, self._prefix, self._names, self._rows_of = saved, prefix, names, rows_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        rows, key = self._rows_of(name), self._prefix + name
        if rows is None or isinstance(rows, Range):
            return self._saved.read(key, rows, is_finite=True)
        return self._saved.read_rows(key, rows, is_finite=True)

    def copy_to(self, name: str, tensor: paddle.Tensor) -> None:
        """Read a tensor block by block into one of its shape. float32 and bfloat16 are converted into each other."""
        saved, key, rows = self._saved, self._prefix + name, self._rows_of(name)
        shape, dtype = saved.shape(key), paddle.empty([0], tensor.dtype).numpy().dtype
        if rows is not None:
            shape[0] = rows.size
        converts = {saved.dtype(key), dtype} <= _CONVERTED
        with reading(saved.path, f"tensor '{key}' "):
            if shape != list(tensor.shape) or (saved.dtype(key) != dtype and not converts):
                raise ValueError(f"it is {shape} of {saved.dtype(key)}, expected {list(tensor.shape)} of {dtype}")
        if not shape:
            tensor.set_value(self[name])
        else:
            for places, values in self.blocks(name):
                set_rows(tensor, places, values)

    def blocks(self, name: str) -> Iterator[tuple[Places, NDArray[Any]]]:
        saved, key, rows = self._saved, self._prefix + name, self._rows_of(name)
        if rows is None or isinstance(rows, Range):
            first = 0 if rows is None else rows.start
            for start, values in saved.blocks(key, rows, is_finite=True):
                yield slice(start - first, start - first + len(values)), values
        else:
            yield from saved.chosen_blocks(key, rows, is_finite=True)
