"""Images and labels as a pair of NumPy arrays, in memory or in `.npy` and `.npz` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plsc.data.records import Record, Records
from plsc.data.sources.reading import own_errors
from plsc.errors import DataError
from plsc.utils.plural import counted


class ArrayRecords(Records):
    """Records of an array of images and one of labels.

    Args:
        images: [n, H, W, 3] uint8 RGB.
        labels: [n] whole numbers of 0 or more.
        name: for messages.

    Raises:
        DataError: another shape or type, arrays of different lengths, or a negative label.

    Example:
        >>> records = ArrayRecords(np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 1, 2]))
        >>> records.num_classes
        3
    """

    uses_global_random = False
    format = "NumPy arrays"

    def __init__(self, images: npt.NDArray[Any], labels: npt.ArrayLike, *, name: str = "arrays") -> None:
        self.name = name
        self._images: npt.NDArray[Any] | None = images
        self._images_path: Path | None = None
        labels = np.asarray(labels)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(
                f"{name}: the images are {list(images.shape)} of {images.dtype}, expected [n, H, W, 3] of uint8"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(f"{name}: the labels are {list(labels.shape)} of {labels.dtype}, expected [n] of integers")
        if len(images) != len(labels) or not len(labels):
            raise DataError(
                f"{name}: {counted(len(images), 'image')} and {counted(len(labels), 'label')}, expected as many of "
                "each and at least one"
            )
        wrong = np.flatnonzero((labels < 0) | (labels > np.iinfo(np.int64).max))
        if wrong.size:
            raise DataError(f"{name}: label {wrong[0]} is {labels[wrong[0]]}, expected 0 or more, and less than 2^63")
        self.labels = labels.astype(np.int64)
        self.num_classes = int(self.labels.max()) + 1

    @classmethod
    def load(cls, path: str | Path) -> ArrayRecords:
        """Read `images.npy` (by memory map) and `labels.npy`, or a `.npz` with `images` and `labels` (into memory).

        Args:
            path: the `.npz`, either of the `.npy` files, or their folder.

        Raises:
            DataError: a file cannot be read, has another name, or holds other arrays.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            if not path.is_dir() and path.name not in ("images.npy", "labels.npy"):
                raise DataError(f"{path}: expected images.npy, with labels.npy beside it, or a .npz of both")
            folder = path if path.is_dir() else path.parent
            records = cls(_load(folder / "images.npy", "r"), _load(folder / "labels.npy", None), name=str(folder))
            records._images_path = folder / "images.npy"
            return records
        stored = _load(path, None)
        if isinstance(stored, np.ndarray):
            raise DataError(f"{path}: holds one array, expected 'images' and 'labels'")
        with stored:
            missing = {"images", "labels"} - set(stored.files)
            if missing:
                raise DataError(f"{path}: holds {stored.files}, expected 'images' and 'labels'")
            with own_errors(path, "no NumPy file of numbers"):
                images, labels = stored["images"], stored["labels"]
            return cls(images, labels, name=str(path))

    def __getstate__(self) -> dict[str, Any]:
        # A pickled map would hold the whole file.
        return {**self.__dict__, "_images": self._images if self._images_path is None else None}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        if self._images is None:
            self._images = _load(self._images_path, "r")
        return Record(np.ascontiguousarray(self._images[index]), int(self.labels[index]))

    def describe(self, index: int) -> str:
        return f"{self.name}, image {index}"


def _load(path: Path | None, mode: Literal["r"] | None) -> Any:
    assert path is not None
    with own_errors(path, "no NumPy file of numbers"):
        return np.load(path, mmap_mode=mode, allow_pickle=False)
