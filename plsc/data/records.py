"""What a record is, and the sources that yield records.

A source is anything with `len(source)` and `source[i] -> Record`: it hands out *encoded* bytes or
decoded pixels and never transforms them. Sources open files lazily and can be pickled or forked,
because worker processes index them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol, Union

import numpy as np

from plsc.errors import DataError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class Record(NamedTuple):
    """One labelled image.

    Attributes:
        image: encoded file bytes (JPEG, PNG, ...), or decoded pixels [H, W, 3] uint8 RGB.
        label: the class, 0 to C - 1.
    """

    image: Union[bytes, np.ndarray]
    label: int


class Records(Protocol):
    """A random-access source of records."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def describe(self, index: int) -> str:
        """Where record `index` comes from, for messages: a path, or file and offset."""
        ...


class ListRecords:
    """The images that a `label.txt` names: one `images/00000000.jpg 0` per line.

    Args:
        list_path: the list. Image paths are relative to its folder. Blank lines are passed over.

    Raises:
        DataError: no such file, no lines, or a line that is not `path label`, named by file and number.
    """

    def __init__(self, list_path: Union[str, Path]) -> None:
        self.list_path = Path(list_path)
        self._paths: list[str] = []
        labels, self._lines = [], []
        for number, line in enumerate(_read_text(self.list_path).splitlines(), start=1):
            if not line.strip():
                continue
            parts = line.rsplit(maxsplit=1)
            if len(parts) != 2 or not parts[1].isdecimal():
                raise DataError(f"{self.list_path}, line {number}: got {line.strip()[:120]!r}, expected an image "
                                f"path and a label of 0 or more, as 'images/00000000.jpg 0'")
            self._paths.append(parts[0].strip())
            labels.append(int(parts[1]))
            self._lines.append(number)
        if not labels:
            raise DataError(f"{self.list_path}: the list is empty, expected one image per line")
        self.labels = np.asarray(labels, np.int64)
        self.num_classes = int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        return Record(read_image(self.list_path.parent / self._paths[index]), int(self.labels[index]))

    def describe(self, index: int) -> str:
        return f"{self._paths[index]} ({self.list_path}, line {self._lines[index]})"


class FolderRecords:
    """The images of a folder of class folders: classes are the folders' names in sorted order.

    Args:
        root: the folder.

    Raises:
        DataError: no class folder holds an image.
    """

    def __init__(self, root: Union[str, Path]) -> None:
        self.root = Path(root)
        folders = sorted(path for path in self.root.iterdir() if path.is_dir())
        found = [(folder, files) for folder in folders if (files := _images_below(folder))]
        if not found:
            raise DataError(f"{self.root}: found no images in class folders, expected "
                            f"{self.root}/<class>/<image>, or a label.txt beside images/")
        self.class_names = [folder.name for folder, _ in found]
        self._paths = [path for _, files in found for path in files]
        self.labels = np.repeat(np.arange(len(found)), [len(files) for _, files in found])
        self.num_classes = len(found)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        return Record(read_image(self._paths[index]), int(self.labels[index]))

    def describe(self, index: int) -> str:
        return str(self._paths[index])


class DatasetRecords:
    """A user's own data set, for example a `paddle.io.Dataset`, seen as records.

    Args:
        dataset: has `len(dataset)`, and `dataset[i]` is (image, label); the image encoded bytes, pixels
            [H, W, 3] uint8 RGB, or a finished [3, H, W] float32 array.
    """

    def __init__(self, dataset: Any) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(f"train_dataset: got {type(dataset).__name__}, expected an object with len() and [i]; "
                            f"an iterator belongs in train_reader")
        self._dataset = dataset
        # Counting classes would read every image.
        self.num_classes = getattr(dataset, "num_classes", 0)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record:
        image, label = self._dataset[index]
        return Record(image, int(np.asarray(label).reshape(-1)[0]))

    def describe(self, index: int) -> str:
        return f"item {index} of {type(self._dataset).__name__}"


def open_records(path: Union[str, Path]) -> Records:
    """Open a data folder: its `label.txt` where there is one, else its class folders.

    Raises:
        DataError: no such folder, or nothing in it that is known.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"data folder {str(path)!r} does not exist; expected a folder with label.txt and images/, "
                        f"or with one folder per class; set it with set_dataset_dir")
    if path.is_file():
        return ListRecords(path)
    return ListRecords(path / "label.txt") if (path / "label.txt").is_file() else FolderRecords(path)


def read_image(path: Union[str, Path]) -> bytes:
    """The bytes of an image file; `DataError` where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the image cannot be read: {error.strerror}") from None


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: the list cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the list is not UTF-8 text (byte {error.start})") from None
