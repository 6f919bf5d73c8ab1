"""Where class centers and the state of their optimizer lie: the setting `center_location`.

    device   in the memory of the device that steps compute on
    host     in page-locked memory of the host, where that device is a GPU; else the same as device
    disk     in files that are mapped into memory: the system reads their pages when they are used, writes them back,
             and keeps in memory those that fit

The files are no checkpoints. They have no name, so that the system frees them when the process ends in whatever way.
A tensor of each location has the place of a CPU's tensor, but for those on a GPU, so that the code of CPUs works on it.

S rows, W elements of each.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.utils.files import size_text
from plsc.utils.hints import setter
from plsc.utils.ranges import Range


class Location:
    """The memory of the device, and what the other locations have in common with it.

    Attributes:
        is_apart: steps compute on a device that does not work on this memory, so that rows travel.
        is_paged: what is not in memory is read from a disk when it is used.
    """

    is_apart = False
    is_paged = False

    def zeros(self, shape: Sequence[int], dtype: Any) -> paddle.Tensor:
        """A tensor of zeros.

        Raises:
            ConfigError: there is no room for it.
        """
        return paddle.zeros(list(shape), dtype)

    def expect(self, tensor: paddle.Tensor, rows: Range | NDArray[np.int64]) -> None:
        """Say that these rows of a tensor are used soon: their pages are read from now on.

        Args:
            tensor: made by `zeros`, of any shape of as many rows.
            rows: their numbers; chosen ones in ascending order.
        """

    def advise(self, *, is_random: bool) -> None:
        """Say whether rows are used in the order in which they lie, or some here and there."""


class PageLockedMemory(Location):
    """Memory of the host that a GPU reads and writes by itself."""

    is_apart = True

    def zeros(self, shape: Sequence[int], dtype: Any) -> paddle.Tensor:
        # NumPy's zeros take no memory until they are written to.
        bits = np.zeros(_bytes_of(shape, dtype), np.uint8)
        return _tensor_of(host_bytes(paddle.to_tensor(bits, place=paddle.CUDAPinnedPlace())), shape, dtype)


class MappedFiles(Location):
    """Files that are mapped into memory, one for each tensor.

    Args:
        folder: of a local disk; it is made where there is none.
        is_apart: steps compute on a GPU.
    """

    is_paged = True

    def __init__(self, folder: str | Path, *, is_apart: bool = False) -> None:
        self._folder, self.is_apart = Path(folder), is_apart
        self._files: dict[int, _File] = {}  # by the address of the memory
        self._is_random = False

    def zeros(self, shape: Sequence[int], dtype: Any) -> paddle.Tensor:
        size = _bytes_of(shape, dtype)
        if not size:
            return paddle.zeros(list(shape), dtype)
        file = _open(self._folder, size, f"{list(shape)} of {str(dtype).rpartition('.')[2]}")
        tensor = _tensor_of(np.frombuffer(file.memory, np.uint8), shape, dtype)
        file.memory.madvise(mmap.MADV_SEQUENTIAL)
        self._files[tensor.data_ptr()] = file
        return tensor

    def expect(self, tensor: paddle.Tensor, rows: Range | NDArray[np.int64]) -> None:
        if (file := self._files.get(tensor.data_ptr())) is None:
            return
        row_bytes = file.size // int(tensor.shape[0])
        with contextlib.suppress(OSError):  # a file system may not take advice
            for first, stop in page_ranges(rows, row_bytes):
                os.posix_fadvise(file.number, first, stop - first, os.POSIX_FADV_WILLNEED)

    def advise(self, *, is_random: bool) -> None:
        if is_random != self._is_random:
            for file in self._files.values():
                file.memory.madvise(mmap.MADV_RANDOM if is_random else mmap.MADV_SEQUENTIAL)
            self._is_random = is_random


class _File:
    """A file to map, which has no name. The memory stays as long as an array of it does.

    Args:
        number: its descriptor, which is closed with this object.
        size: bytes.

    Attributes:
        memory: of the file, after `map`.
    """

    memory: mmap.mmap

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size
        weakref.finalize(self, os.close, number)

    def map(self) -> None:
        """Take the space on the disk: where that became full later, a write into memory would end the process."""
        os.posix_fallocate(self.number, 0, self.size)
        self.memory = mmap.mmap(self.number, self.size)


def host_bytes(tensor: paddle.Tensor) -> NDArray[np.uint8]:
    """The memory of a tensor in the memory of the host, which stays as long as the array does.

    DLPack's arrays are read-only before NumPy 2.1.
    """
    memory = (ctypes.c_uint8 * (int(tensor.size) * int(tensor.element_size()))).from_address(tensor.data_ptr())
    memory.tensor = tensor  # type: ignore[attr-defined]  # so that it lives as long as the array
    return np.ctypeslib.as_array(memory)


def location_of(config: Config, *, on_gpu: bool) -> Location:
    """The location of the settings, for steps on a GPU or on a CPU."""
    if config.center_location == "disk":
        return MappedFiles(config.center_dir or config.model_save_dir, is_apart=on_gpu)
    return PageLockedMemory() if config.center_location == "host" and on_gpu else Location()


def page_ranges(rows: Range | NDArray[np.int64], row_bytes: int) -> list[tuple[int, int]]:
    """The pages of rows as ranges of bytes (first, stop), in ascending order and apart from each other.

    Args:
        rows: their numbers; chosen ones in ascending order.
        row_bytes: bytes of a row.
    """
    page = mmap.PAGESIZE
    if isinstance(rows, Range):
        rows = np.array([rows.start, rows.stop - 1]) if rows.size else np.zeros(0, np.int64)
        first, last = rows[:1] * row_bytes // page, ((rows[1:] + 1) * row_bytes - 1) // page
    else:
        first, last = rows * row_bytes // page, ((rows + 1) * row_bytes - 1) // page
    begins = np.flatnonzero(first[1:] > last[:-1] + 1) + 1  # pages beside each other are one range
    starts = first[np.concatenate([[0], begins]).astype(np.int64)] if len(first) else first
    ends = last[np.concatenate([begins - 1, [len(last) - 1]]).astype(np.int64)] if len(last) else last
    return list(zip((starts * page).tolist(), ((ends + 1) * page).tolist()))


def _open(folder: Path, size: int, what: str) -> _File:
    """A mapped file of zeros, whose space on the disk is its own.

    Args:
        folder: where it lies.
        size: bytes.
        what: it is for, in words.

    Raises:
        ConfigError: there is no space for it, or no file can be mapped there.
    """
    advice = f"name another folder with {setter('center_dir')}"
    needed = f"{setter('center_location', 'disk')}: a file for {what} takes {size_text(size)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise ConfigError(
                f"{needed}, and {folder} has {size_text(free)} of free space; free space there, or {advice}"
            )
        file = _File(_nameless(folder), size)
    except OSError as error:
        raise ConfigError(f"{needed}, and none can be made in {folder}: {error}; {advice}") from None
    try:
        file.map()
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise ConfigError(
            f"{needed}, and {folder} does not give a mapped file of that size: {error}; {size_text(free)} are free "
            f"there; {advice}"
        ) from None
    return file


def _nameless(folder: Path) -> int:
    """The descriptor of a new file, which no folder has a name of."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # not every file system makes such a file
        number, path = tempfile.mkstemp(prefix=".centers-", dir=folder)
        os.unlink(path)
        return number


def _bytes_of(shape: Sequence[int], dtype: Any) -> int:
    return math.prod(shape) * int(paddle.empty([0], dtype).element_size())


def _tensor_of(memory: NDArray[np.uint8], shape: Sequence[int], dtype: Any) -> paddle.Tensor:
    """A tensor of the CPU that lies in this memory."""
    numbers: np.dtype[Any] = paddle.empty([0], dtype).numpy().dtype
    is_bfloat16 = numbers == np.uint16  # so Paddle passes it
    own = memory.view(np.int16 if is_bfloat16 else numbers).reshape(shape)
    tensor = paddle.from_dlpack(own)
    return tensor.view("bfloat16") if is_bfloat16 else tensor
