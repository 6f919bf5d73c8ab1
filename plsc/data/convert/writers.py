"""The formats that a conversion can write: one class per format, registered by name.

A writer gets samples in order and writes them into a folder of its own. `position()` flushes what was written to the
disk and returns where it ends, as values that JSON can hold; a new writer that is given this position removes what was
written after it and continues there.
"""

from __future__ import annotations

import abc
import base64
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, TypeVar

import numpy as np

from plsc.data.images import IMAGE_STARTS, KIND_NAMES, decode, encode, suffix_of
from plsc.data.recordio import MAX_LABEL, FrameFile, RecordIOWriter, unpack
from plsc.data.records import Record, Records
from plsc.data.sources.folders import is_part_name
from plsc.data.sources.leftovers import is_leftover
from plsc.errors import DataError
from plsc.utils.files import open_output, sync, sync_path
from plsc.utils.hints import argument, either
from plsc.utils.lazy import require
from plsc.utils.plural import counted
from plsc.utils.ranges import shard_ranges

# Images in a row group of a Parquet file. Few, because a reader unpacks a whole group to read one image.
_GROUP_IMAGES = 64
_IMAGES_FILE, _LABELS_FILE = "images.npy", "labels.npy"


class Plan(NamedTuple):
    """What a writer knows before the first sample.

    Attributes:
        num_images: the largest number of samples that may come; fewer come where unreadable ones are left out.
        num_classes: C.
        class_names: the C names, or None.
        parts: number of files to spread the samples over, in formats that have parts.
    """

    num_images: int
    num_classes: int
    class_names: list[str] | None
    parts: int


class Writer(abc.ABC):
    """Base class of the writers. A subclass under `register_writer` is a format of `convert`.

    Args:
        folder: the folder to write into; empty unless `position` is given.
        plan: what will come.
        position: the last `position()` of an interrupted run of the same conversion; by default begin.

    Attributes:
        has_parts: whether the format can spread samples over several files (`Plan.parts`).
        takes_pixels: whether `write` gets decoded pixels [H, W, 3] uint8 RGB instead of encoded bytes.

    Example:
        >>> @register_writer("labels")
        ... class LabelWriter(Writer):
        ...     def __init__(self, folder, plan, *, position=None):
        ...         self._file = open_output(folder / "labels.txt", position)
        ...     def write(self, number, record):
        ...         self._file.write(b"%d\\n" % record.label)
        ...     def position(self):
        ...         sync(self._file)
        ...         return self._file.tell()
        ...     def close(self):
        ...         sync(self._file)
        ...         self._file.close()
    """

    has_parts: ClassVar[bool] = False
    takes_pixels: ClassVar[bool] = False

    @classmethod  # noqa: B027  # not abstract: most formats hold everything
    def check(cls, records: Records, labels: np.ndarray) -> None:
        """Called before anything is written, with the labels [n].

        Raises:
            DataError: the format cannot hold these records.
            MissingDependencyError: the format needs a package that is not installed.
        """

    # A position is any JSON value, as the format needs.
    @abc.abstractmethod
    def __init__(self, folder: Path, plan: Plan, *, position: Any = None) -> None: ...

    @abc.abstractmethod
    def write(self, number: int, record: Record) -> None:
        """Write a sample. `number` counts the samples written, from 0.

        Raises:
            DataError: the format cannot hold the sample.
        """

    @abc.abstractmethod
    def position(self) -> Any:
        """Flush all samples written to the disk and return where to continue."""

    @abc.abstractmethod
    def close(self) -> None:
        """Complete the folder and flush it to the disk.

        Raises:
            DataError: the samples that came do not make a whole data set of this format.
        """


WRITERS: dict[str, type[Writer]] = {}
_WriterClass = TypeVar("_WriterClass", bound=type[Writer])


def register_writer(name: str) -> Callable[[_WriterClass], _WriterClass]:
    """Class decorator: make a `Writer` the format `name` of `convert` and of `plsc data convert --to name`."""

    def register(writer: _WriterClass) -> _WriterClass:
        WRITERS[name] = writer
        return writer

    return register


@register_writer("rec")
class RecWriter(Writer):
    """`train.rec`, `train.idx` and `property` (classes, height, width): MXNet's layout with one label per record."""

    @classmethod
    def check(cls, records: Records, labels: np.ndarray) -> None:
        index = int(labels.argmax())
        if labels[index] > MAX_LABEL:
            raise DataError(
                f"{records.describe(index)}: label {labels[index]} is beyond {MAX_LABEL}, the largest label that "
                f"RecordIO's float32 labels hold exactly; choose another format with "
                f"{argument('to', 'tar')}, for example"
            )

    def __init__(self, folder: Path, plan: Plan, *, position: Any = None) -> None:
        self._folder, self._num_classes = folder, plan.num_classes
        self._writer = RecordIOWriter(folder / "train.rec", position)

    def write(self, number: int, record: Record) -> None:
        self._writer.write(number, record.label, image=encode(record.image))

    def position(self) -> list[int]:
        return self._writer.position()

    def close(self) -> None:
        self._writer.close()
        path = self._folder / "train.rec"
        first = unpack(FrameFile(path).read(0), str(path)).image
        fields = [self._num_classes, *_height_and_width(first)]
        (self._folder / "property").write_text(",".join(map(str, fields)))


@register_writer("list")
class ListWriter(Writer):
    """`label.txt`, a line `path label` per image, and `images/`.

    Attributes:
        name: of the file that lists the images.
        head: its first line.
        line: its line for an image.
    """

    name: ClassVar[str] = "label.txt"
    head: ClassVar[str] = ""
    line: ClassVar[str] = "{path} {label}\n"

    def __init__(self, folder: Path, plan: Plan, *, position: Any = None) -> None:
        self._folder = folder
        (folder / "images").mkdir(exist_ok=True)
        self._list = open_output(folder / self.name, position)
        if position is None:
            self._list.write(self.head.encode())

    def write(self, number: int, record: Record) -> None:
        image = encode(record.image)
        path = f"images/{number:08d}{suffix_of(image)}"
        (self._folder / path).write_bytes(image)
        self._list.write(self.line.format(path=path, label=record.label).encode())

    def position(self) -> int:
        os.sync()  # one call for thousands of image files
        sync(self._list)
        return self._list.tell()

    def close(self) -> None:
        self.position()
        self._list.close()


@register_writer("folders")
class FolderWriter(Writer):
    """A folder per class. Folders have the classes' names, or numbers where there are no usable names."""

    @classmethod
    def check(cls, records: Records, labels: np.ndarray) -> None:
        num_classes = records.count_classes()
        missing = num_classes - len(np.unique(labels))
        if missing:
            raise DataError(
                f"no image in {missing} of {counted(num_classes, 'class')}, which class folders cannot hold: read "
                f"back, classes would have other numbers. Choose another format, or renumber them first with "
                f"{either('with_min_images(records, 1)', '--min-images 1 of plsc data convert')}"
            )

    def __init__(self, folder: Path, plan: Plan, *, position: Any = None) -> None:
        if position is True:
            raise DataError(f"{folder} was begun by an older version; remove it to start again")
        self._folder, self._num_classes = folder, plan.num_classes
        names = plan.class_names or []
        # A reader numbers classes in the sorted order of the folders' names: other names would change the numbers. It
        # refuses folders that all have names of parts, as train and test.
        is_readable = names == sorted(set(names)) and not all(map(is_part_name, names))
        if not is_readable or not all(map(_is_folder_name, names)):
            width = len(str(plan.num_classes - 1))
            names = [str(label).zfill(width) for label in range(plan.num_classes)]
        self._names = names
        self._written: int = position or 0
        if position is not None:
            # A sample that was written after the last position may now get another label, or be left out.
            for path in folder.glob("*/*"):
                if path.stem.isdecimal() and int(path.stem) >= position:
                    path.unlink()

    def write(self, number: int, record: Record) -> None:
        image = encode(record.image)
        self._written = number + 1
        path = self._folder / self._names[record.label] / f"{number:08d}{suffix_of(image)}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)

    def position(self) -> int:
        os.sync()  # one call for thousands of image files
        return self._written

    def close(self) -> None:
        self.position()
        found = sum(entry.is_dir() and any(os.scandir(entry.path)) for entry in os.scandir(self._folder))
        if found < self._num_classes:
            raise DataError(
                f"no image could be read of {counted(self._num_classes - found, 'class')}, which class folders "
                f"cannot hold: read back, classes would have other numbers; choose another format"
            )


class _PartsWriter(Writer):
    """A format of numbered files, each with an equal share of the samples.

    Attributes:
        file_name: of part {number}.
    """

    has_parts = True
    file_name: ClassVar[str]

    def __init__(self, folder: Path, plan: Plan, *, position: Any = None) -> None:
        self._folder = folder
        self._stops = [samples.stop for samples in shard_ranges(plan.num_images, plan.parts)]
        self._part = -1
        self._file: BinaryIO | None = None
        if position is not None:
            self._part, length = position
            self._file = open_output(self._path(), length)

    def position(self) -> list[int]:
        file = self._opened()
        sync(file)
        return [self._part, file.tell()]

    def close(self) -> None:
        self._end_part(self._opened())

    def _part_of(self, number: int) -> BinaryIO:
        """The file of sample `number`, begun where it is the part's first."""
        while self._part < 0 or number >= self._stops[self._part]:
            if self._file is not None:
                self._end_part(self._file)
            self._part += 1
            self._path().unlink(missing_ok=True)  # an interrupted run may have written it after its last position
            self._file = open_output(self._path())
        return self._opened()

    def _end_part(self, file: BinaryIO) -> None:
        """Complete a part, flush and close it."""
        sync(file)
        file.close()

    def _path(self) -> Path:
        return self._folder / self.file_name.format(number=self._part)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError("no sample was written yet")
        return self._file


@register_writer("base64")
class Base64Writer(_PartsWriter):
    """`file_list.txt`, and part files with a line `base64<TAB>label` per image."""

    file_name = "part-{number:05d}"

    def write(self, number: int, record: Record) -> None:
        image = encode(record.image)
        if not image.startswith(IMAGE_STARTS):
            raise DataError(
                f"{counted(len(image), 'byte')} that begin with {image[:8]!r} are none of {KIND_NAMES}: in a base64 "
                f"file no reader could tell the image from the label; choose another "
                f"format, or {argument('encoding', 'png')}"
            )
        self._part_of(number).write(base64.b64encode(image) + b"\t%d\n" % record.label)

    def close(self) -> None:
        super().close()
        names = [self.file_name.format(number=number) for number in range(len(self._stops))]
        written = [name for name in names if (self._folder / name).is_file()]
        (self._folder / "file_list.txt").write_text("".join(f"{name}\n" for name in written))


@register_writer("tar")
class TarWriter(_PartsWriter):
    """`train-000000.tar` and so on: `00000000.jpg` with `00000000.cls` per image, the WebDataset layout."""

    file_name = "train-{number:06d}.tar"

    def write(self, number: int, record: Record) -> None:
        image, file = encode(record.image), self._part_of(number)
        for suffix, data in ((suffix_of(image), image), (".cls", b"%d" % record.label)):
            entry = tarfile.TarInfo(f"{number:08d}{suffix}")
            entry.size = len(data)
            # Not by TarFile.addfile: a TarFile keeps the header of every entry in memory.
            file.write(entry.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE))

    def _end_part(self, file: BinaryIO) -> None:
        length = file.tell() + 2 * tarfile.BLOCKSIZE  # two empty blocks end an archive
        file.write(bytes(length + -length % tarfile.RECORDSIZE - file.tell()))
        super()._end_part(file)


@register_writer("csv")
class CsvWriter(ListWriter):
    """`train.csv` with the columns image and label, and `images/`."""

    name = "train.csv"
    head = "image,label\n"
    line = "{path},{label}\n"


@register_writer("parquet")
class ParquetWriter(Writer):
    """`part-00000.parquet` and so on, with the columns image (encoded bytes) and label. Needs pyarrow.

    A Parquet file cannot be continued once it is closed, so every position begins a file.
    """

    @classmethod
    def check(cls, records: Records, labels: np.ndarray) -> None:
        _require_pyarrow("pyarrow")

    def __init__(self, folder: Path, plan: Plan, *, position: Any = None) -> None:
        self._arrow, self._parquet = _require_pyarrow("pyarrow"), _require_pyarrow("pyarrow.parquet")
        self._folder = folder
        self._part: int = position or 0
        self._file: Any = None
        self._images: list[bytes] = []
        self._labels: list[int] = []

    def write(self, number: int, record: Record) -> None:
        self._images.append(encode(record.image))
        self._labels.append(record.label)
        if len(self._images) == _GROUP_IMAGES:
            self._write_group()

    def position(self) -> int:
        if self._images:
            self._write_group()
        if self._file is not None:
            self._file.close()
            sync_path(self._path())
            self._file, self._part = None, self._part + 1
        return self._part

    def close(self) -> None:
        self.position()
        # An interrupted run may have begun a part after its last position that this run did not reach.
        self._path().unlink(missing_ok=True)

    def _path(self) -> Path:
        return self._folder / f"part-{self._part:05d}.parquet"

    def _write_group(self) -> None:
        group = self._arrow.table(
            {
                "image": self._arrow.array(self._images, self._arrow.binary()),
                "label": self._arrow.array(self._labels, self._arrow.int64()),
            }
        )
        if self._file is None:
            self._file = self._parquet.ParquetWriter(self._path(), group.schema, compression="none")
        self._file.write_table(group)
        self._images, self._labels = [], []


@register_writer("npy")
class ArrayWriter(Writer):
    """`images.npy` [n, H, W, 3] uint8 RGB and `labels.npy` [n] int64. All images must have one size."""

    takes_pixels = True

    def __init__(self, folder: Path, plan: Plan, *, position: Any = None) -> None:
        self._folder, self._count = folder, plan.num_images
        self._written: int = position or 0
        self._images: np.memmap[Any, Any] | None = None
        self._labels: np.memmap[Any, Any] | None = None
        if self._written:
            for name in (_IMAGES_FILE, _LABELS_FILE):
                _resize(folder / name, self._count)  # an interrupted `close` may have cut it
            self._images, self._labels = (
                np.lib.format.open_memmap(folder / name, "r+") for name in (_IMAGES_FILE, _LABELS_FILE)
            )

    def write(self, number: int, record: Record) -> None:
        pixels = decode(record.image)
        if self._images is None or self._labels is None:
            self._images = _new_array(self._folder / _IMAGES_FILE, (self._count, *pixels.shape), dtype=np.uint8)
            self._labels = _new_array(self._folder / _LABELS_FILE, (self._count,), dtype=np.int64)
        expected = self._images.shape[1:]
        if pixels.shape != expected:
            raise DataError(
                f"the image is {list(pixels.shape)}, the first was {list(expected)}; an array needs images of one "
                f"size: resize them with {argument('image_size')}"
            )
        self._images[number], self._labels[number] = pixels, record.label
        self._written = number + 1

    def position(self) -> int:
        for array in (self._images, self._labels):
            if array is not None:
                array.flush()
        return self._written

    def close(self) -> None:
        self.position()
        if self._written < self._count:
            self._images = self._labels = None
            for name in (_IMAGES_FILE, _LABELS_FILE):
                _resize(self._folder / name, self._written)


def _new_array(path: Path, shape: tuple[int, ...], *, dtype: type[np.generic]) -> np.memmap[Any, Any]:
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        # A write through a memory map on a full disk ends the process with SIGBUS; this raises an OSError.
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return array


def _resize(path: Path, count: int) -> None:
    """Change the number of entries of an array file. NumPy pads its header, so that another count fits in."""
    array = np.load(path, mmap_mode="r")
    if len(array) == count:
        return
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": (count, *array.shape[1:]),
        },
    )
    if header.tell() != array.offset:
        raise DataError(
            f"{path}: its header has no space for {counted(count, 'entry')} instead of {len(array)}; fix the images "
            f"that were left out, or choose another format"
        )
    size = array.offset + count * array.strides[0]
    del array
    with open(path, "r+b") as file:
        file.write(header.getvalue())
        file.truncate(size)
        os.posix_fallocate(file.fileno(), 0, size)
        sync(file)


def _require_pyarrow(module: str) -> Any:
    return require(module, "pyarrow", purpose="writing Parquet files")


def _height_and_width(image: bytes) -> list[int]:
    """[height, width]; [] where the image cannot be decoded."""
    try:
        return list(decode(image).shape[:2])
    except DataError:
        return []


def _is_folder_name(name: str) -> bool:
    is_short = 0 < len(os.fsencode(name)) < 256
    return is_short and name not in (".", "..") and not is_leftover(name) and not {"/", "\0", os.sep} & set(name)
