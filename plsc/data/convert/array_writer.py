"""Writing a conversion as a pair of NumPy arrays."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plsc.data.records import Record
from plsc.data.transforms import decode
from plsc.errors import DataError
from plsc.utils.files import sync

if TYPE_CHECKING:
    from plsc.data.convert.writers import Plan


class ArraySink:
    """`images.npy` [n, H, W, 3] and `labels.npy` [n]; all images must have one size."""

    def __init__(self, folder: Path, plan: Plan, position: Any) -> None:
        self._folder, self._count = folder, plan.num_images
        self._written = position or 0
        self._images: np.ndarray | None = None
        if position:
            for name in ("images.npy", "labels.npy"):
                _resize(folder / name, self._count)  # which may have been cut already
            self._labels = np.lib.format.open_memmap(folder / "labels.npy", "r+")
            self._images = np.lib.format.open_memmap(folder / "images.npy", "r+")
        else:
            self._labels = _new_map(folder / "labels.npy", np.int64, (self._count,))

    def write(self, number: int, record: Record) -> None:
        pixels = decode(record.image)
        if self._images is None:
            self._images = _new_map(self._folder / "images.npy", np.uint8, (self._count, *pixels.shape))
        if pixels.shape != self._images.shape[1:]:
            raise DataError(
                f"the image is {list(pixels.shape)}, the first was {list(self._images.shape[1:])}; an "
                f"array needs images of one size: give the conversion a size"
            )
        self._images[number], self._labels[number] = pixels, record.label
        self._written = number + 1

    def position(self) -> int:
        self._images.flush()
        self._labels.flush()
        return self._written

    def close(self) -> None:
        self.position()
        if self._written < self._count:
            self._images = self._labels = None
            for name in ("images.npy", "labels.npy"):
                _resize(self._folder / name, self._written)


def _new_map(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    made = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        # Writing through a map on a full disk would end the process with SIGBUS.
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return made


def _resize(path: Path, count: int) -> None:
    """Give an array `count` entries. NumPy pads its header so that a count can be written over."""
    array = np.load(path, mmap_mode="r")
    if len(array) == count:
        return
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head,
        {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": (count, *array.shape[1:]),
        },
    )
    if head.tell() != array.offset:
        raise DataError(
            f"{path} cannot be given {count} entries instead of {len(array)}; mend the images that were "
            f"left out, or write another format"
        )
    size = array.offset + count * array.strides[0]
    del array
    with open(path, "r+b") as file:
        file.write(head.getvalue())
        file.truncate(size)
        os.posix_fallocate(file.fileno(), 0, size)
        sync(file)
