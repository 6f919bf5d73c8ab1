"""A tensor in a file."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import CheckpointError
from plsc.utils.plural import counted


class StoredTensor:
    """A tensor in a file, of which rows are read when they are used; what `plsc.checkpoint.Part` takes as its data.

    Args:
        array: a view of the file.
        is_bfloat16: the array holds the bits of bfloat16, as uint16; it is read as float32.
        check: called before the first row is read; raises `CheckpointError` where the bytes are damaged.
    """

    is_view = False  # each block is read from the file

    def __init__(
        self, array: NDArray[Any], *, is_bfloat16: bool = False, check: Callable[[], None] = lambda: None
    ) -> None:
        self._array, self._is_bfloat16, self._check = array, is_bfloat16, check
        self.shape = list(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(np.float32) if is_bfloat16 else array.dtype.newbyteorder("=")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop), contiguous; a scalar is one row."""
        self._check()
        rows = np.atleast_1d(self._array)[start:stop]
        if self._is_bfloat16:
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(rows, self.dtype)

    def numpy(self) -> NDArray[Any]:
        """All of it."""
        return self.read(0, self.shape[0] if self.shape else 1).reshape(self.shape)

    def transposed(self) -> StoredTensor:
        """The same matrix, columns first."""
        return StoredTensor(self._array.T, is_bfloat16=self._is_bfloat16, check=self._check)

    def as_bfloat16(self) -> StoredTensor:
        """The same bits, as bfloat16."""
        return StoredTensor(self._array, is_bfloat16=True, check=self._check)


def map_file(path: Path) -> memoryview:
    """The bytes of a file, which the system reads when they are used.

    Raises:
        CheckpointError: the file cannot be opened, or is empty.
    """
    try:
        with open(path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:
        raise CheckpointError(f"{path}: is empty, expected a file of weights; copy it again") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def view_of(data: memoryview, dtype: np.dtype[Any], shape: list[int], *, what: str) -> NDArray[Any]:
    """Bytes as an array.

    Raises:
        CheckpointError: the shape needs another number of bytes.
    """
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise CheckpointError(f"{what} has {counted(len(data), 'byte')}, and {shape} of {dtype} needs another number")
    try:
        array: NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # more axes than NumPy has, or a size beside 0 that no address reaches
        raise CheckpointError(f"{what} has the shape {str(shape)[:80]}, which no array can have: {error}") from None
    return array
