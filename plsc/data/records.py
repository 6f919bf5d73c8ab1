"""A record, the base class of all sources of records, and the adapter for other data sets.

A source gives *encoded* bytes or decoded pixels and never transforms them. Worker processes index a source, so it opens
files at first use and can be forked and pickled. `plsc.data.sources` opens a source by name.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc.data.image_input import take_image
from plsc.errors import DataError, StorageError
from plsc.utils.logging import progress_bar
from plsc.utils.plural import counted

Labels = npt.NDArray[np.int64]


class Record(NamedTuple):
    """One labeled image.

    Attributes:
        image: encoded file bytes (JPEG, PNG, ...); decoded pixels [H, W, 3] uint8 RGB; or a finished image
            [3, H, W] float32, which training takes as it is.
        label: the class, 0 to C - 1.
    """

    image: bytes | npt.NDArray[Any]
    label: int


class Records(abc.ABC):
    """A random-access source of records. A subclass defines `__len__` and `__getitem__`; all else has a default.

    Attributes:
        format: the kind of source, in words, for the log.
        num_classes: C, at least one more than the largest label; None where only reading every record would tell.
        class_names: the C names of the classes, or None.
        root: the folder whose class folders were walked to find the images, or None.
        damage: what is wrong with the source as a whole, where it could be opened in spite of that, or None.
        uses_global_random: whether reading a record may draw from the global generators of NumPy, Python or Paddle.
            The loader then seeds them before each record, which takes 10 to 20 microseconds.

    `records[i]` raises `IndexError` where i is out of range, and `DataError` where the record cannot be read. The
    loader then names the record by `describe(i)`. It raises `StorageError` where the system fails, which
    `set_bad_images('skip')` does not pass over.

    Example:
        >>> class Squares(Records):
        ...     num_classes = 10
        ...
        ...     def __len__(self) -> int:
        ...         return 200
        ...
        ...     def __getitem__(self, index: int) -> Record:
        ...         return Record(np.full((32, 32, 3), 20 * (index % 10), np.uint8), index % 10)
        >>> Squares().labels[:3].tolist()
        [0, 1, 2]
    """

    format: str = "records"
    num_classes: int | None = None
    class_names: list[str] | None = None
    root: Path | None = None
    damage: str | None = None
    uses_global_random: bool = True

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    @functools.cached_property
    def labels(self) -> Labels:
        """The class of every record, [n] int64. The default reads every record once; a source that knows the classes
        without the images sets or overrides `labels`.

        Raises:
            DataError: a record cannot be read, or its label is no class; names the record.
        """
        reading = progress_bar(range(len(self)), "reading labels", leave=False)
        return np.asarray([self._read_label(index) for index in reading], np.int64)

    def _read_label(self, index: int) -> int:
        try:
            _, label = self[index]
            label = to_class(label)
            if label < 0:
                raise ValueError(f"label {label} is below 0")
            return label
        except DataError as error:
            raise DataError(f"{self.describe(index)}: {error}") from None
        except StorageError:
            raise
        except Exception as error:  # a user's own source may raise any
            raise DataError(f"{self.describe(index)}: reading its label failed: {error!r}") from error

    def known_labels(self) -> Labels | None:
        """`labels` where the source has them without reading its records, else None."""
        return self.labels if "labels" in vars(self) or type(self).labels is not Records.labels else None

    def labels_at(self, indices: npt.NDArray[np.int64]) -> Labels | None:
        """The classes of some records, [k] int64, or None where that would take reading their images."""
        labels = self.known_labels()
        return None if labels is None else labels[indices]

    def count_classes(self) -> int:
        """`num_classes`, or where that is None one more than the largest of `labels`."""
        return int(self.labels.max()) + 1 if self.num_classes is None else self.num_classes

    def check_labels(self) -> None:
        """Compare all labels with `num_classes`.

        Raises:
            DataError: a label is beyond the classes; names the first record with the largest label.
        """
        if self.num_classes is not None and self.labels.max() >= self.num_classes:
            index = int(self.labels.argmax())
            raise DataError(
                f"{self.describe(index)}: label {self.labels[index]} is out of range, expected 0 to "
                f"{self.num_classes - 1}: the set says that it has {counted(self.num_classes, 'class')}"
            )

    def describe(self, index: int) -> str:
        """Where record `index` comes from, for messages: a path, or file and offset."""
        return f"record {index} of {self.format}"

    def path_of(self, index: int) -> str | None:
        """The path of the image file of record `index`, or None where the image is no file of its own."""
        return None

    def save_index(self) -> list[Path]:
        """Write index files beside the data, so that opening need not read all of it.

        Returns:
            The files written; none where the source opens without reading all of it.
        """
        return []


class DatasetRecords(Records):
    """Another data set, for example a `paddle.io.Dataset`, as records.

    Args:
        dataset: has `len(dataset)`, and `dataset[i]` is (image, label). The image is what `take_image` takes
            except a path, or a finished image [3, H, W] float32, as an array or a tensor.
            Where the data set has an attribute `num_classes`, that is the number of classes; where it has a list of
            texts `class_names` or `classes`, these are their names.
        setting: what messages call it.

    Raises:
        DataError: the object has no len() or [i]; on reading, an item is not (image, label).

    Example:
        >>> DatasetRecords([(b"...", 3), (b"...", 5)])[1].label
        5
    """

    def __init__(self, dataset: Any, setting: str = "train_dataset") -> None:
        try:
            len(dataset)
            dataset.__getitem__  # noqa: B018
        except Exception:  # an iterable data set may raise an exception of its framework
            raise DataError(
                f"{setting}: got {type(dataset).__name__}, expected an object with len() and [i]"
                + ("; an iterator belongs in train_reader" if setting == "train_dataset" else "")
            ) from None
        self._dataset = dataset
        self.format = f"data set {type(dataset).__name__}"
        # Counting the classes would read every image.
        self.num_classes, self.class_names = getattr(dataset, "num_classes", None), _names_of(dataset)
        if self.num_classes is None and self.class_names:
            self.num_classes = len(self.class_names)
        elif len(self.class_names or ()) != self.num_classes:
            self.class_names = None

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record:
        item = self._dataset[index]
        try:
            image, label = item
        except (TypeError, ValueError):
            raise DataError(f"got {type(item).__name__} {str(item)[:60]!r}, expected (image, label)") from None
        if isinstance(image, (str, os.PathLike)):
            raise DataError(f"got the path {str(image)[:120]!r}, expected the image: the file's bytes, or pixels")
        image = take_image(image)
        try:
            return Record(image, to_class(label))
        except (TypeError, ValueError) as error:
            raise DataError(f"expected a class of 0 or more: {error}") from None

    def describe(self, index: int) -> str:
        return f"item {index} of {type(self._dataset).__name__}"


def _names_of(dataset: Any) -> list[str] | None:
    """The names of the classes in a data set that has them as those of Paddle and others do."""
    for attribute in ("class_names", "classes"):
        names = getattr(dataset, attribute, None)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def as_records(dataset: Any, setting: str = "train_dataset") -> Records:
    """`dataset` itself where it is a `Records`, else as `DatasetRecords`."""
    return dataset if isinstance(dataset, Records) else DatasetRecords(dataset, setting)


def to_class(label: Any) -> int:
    """A label, a number or an array or tensor of one number, to an int.

    Raises:
        ValueError: the label is no whole number.
    """
    value = np.asarray(label).reshape(-1)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if value.size == 1 and (isinstance(value[0], (str, bytes)) or value[0] == int(value[0])):
            return int(value[0])
    raise ValueError(f"label {label!r:.60} is no whole number")
