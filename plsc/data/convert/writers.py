"""The formats that a conversion can write. Each takes samples in order and can go on after an interruption.

A sink writes into a folder of its own. `position()` brings what was written to the disk and says, in plain
values, where that ends; a new sink given this position cuts off what came after and goes on.
"""

from __future__ import annotations

import base64
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from plsc.data.convert.array_writer import ArraySink
from plsc.data.encoding import encode, suffix_of
from plsc.data.recordio import FrameFile, RecordIOWriter, unpack
from plsc.data.records import Record
from plsc.data.sources.base64_text import IMAGE_STARTS
from plsc.data.sources.folders import is_leftover
from plsc.data.transforms import decode
from plsc.errors import DataError
from plsc.utils.files import open_output, sync
from plsc.utils.lazy import require
from plsc.utils.ranges import shard_ranges

_IMAGES_IN_GROUP = 64  # of a Parquet file: small, for to read one image a whole group is unpacked


class Plan(NamedTuple):
    """What a sink is told before the first sample.

    Attributes:
        num_images: samples to come at most; fewer where unreadable ones are left out.
        num_classes: C.
        class_names: of C names, or None.
        parts: files to spread samples over, in the formats that have parts.
    """

    num_images: int
    num_classes: int
    class_names: list[str] | None
    parts: int


class RecordIOSink:
    """`train.rec`, `train.idx` and `property` (classes, height, width), the plain layout."""

    def __init__(self, folder: Path, plan: Plan, position: Any) -> None:
        self._folder, self._plan = folder, plan
        self._writer = RecordIOWriter(folder / "train.rec", position)

    def write(self, number: int, record: Record) -> None:
        self._writer.write(number, record.label, encode(record.image))

    def position(self) -> list[int]:
        return self._writer.position()

    def close(self) -> None:
        self._writer.close()
        path = self._folder / "train.rec"
        first = unpack(FrameFile(path).read(0), str(path)).image
        fields = [self._plan.num_classes, *_image_size(first)]
        (self._folder / "property").write_text(",".join(map(str, fields)))


class ListSink:
    """`label.txt` and `images/`."""

    head, line, name = "", "{path} {label}\n", "label.txt"

    def __init__(self, folder: Path, plan: Plan, position: Any) -> None:
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
        os.sync()  # thousands of small files: one call for all
        sync(self._list)
        return self._list.tell()

    def close(self) -> None:
        self.position()
        self._list.close()


class CsvSink(ListSink):
    """`train.csv` with the columns image and label, and `images/`."""

    head, line, name = "image,label\n", "{path},{label}\n", "train.csv"


class FolderSink:
    """A folder per class, named as the source names it, or by its number."""

    def __init__(self, folder: Path, plan: Plan, position: Any) -> None:
        self._folder, self._num_classes = folder, plan.num_classes
        names = plan.class_names or []
        width = len(str(plan.num_classes - 1))
        # Read back, classes are numbered in the names' order: names that would change the numbers cannot serve.
        is_usable = names == sorted(set(names)) and all(_is_folder_name(name) for name in names)
        self._name: Callable[[int], str] = (
            names.__getitem__ if names and is_usable else lambda label: str(label).zfill(width)
        )
        self._written = position or 0
        if position is True:
            raise DataError(f"{folder} was begun by an older version; remove it to start again")
        if position is not None:
            # What was written after the last position may come with another label now, or not at all.
            for path in folder.glob("*/*"):
                if path.stem.isdecimal() and int(path.stem) >= position:
                    path.unlink()

    def write(self, number: int, record: Record) -> None:
        image = encode(record.image)
        self._written = number + 1
        path = self._folder / self._name(record.label) / f"{number:08d}{suffix_of(image)}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)

    def position(self) -> int:
        os.sync()
        return self._written

    def close(self) -> None:
        self.position()
        found = sum(entry.is_dir() and any(os.scandir(entry.path)) for entry in os.scandir(self._folder))
        if found < self._num_classes:
            raise DataError(
                f"{self._num_classes - found} classes have no image that could be read, and class folders "
                f"cannot hold them: read back, classes would have other numbers; choose another format"
            )


class Base64Sink:
    """`file_list.txt` and equal part files of `base64<TAB>label`."""

    def __init__(self, folder: Path, plan: Plan, position: Any) -> None:
        ranges = shard_ranges(plan.num_images, plan.parts)
        self._stops = [part.stop for part in ranges]
        self._names = [f"part-{number:05d}" for number in range(len(ranges))]
        self._folder, self._part = folder, -1
        self._file: BinaryIO | None = None
        if position is not None:
            self._part = position[0]
            self._file = open_output(folder / self._names[self._part], position[1])

    def write(self, number: int, record: Record) -> None:
        image = encode(record.image)
        if not image.startswith(IMAGE_STARTS):
            raise DataError(
                f"{len(image)} bytes that begin with {image[:8]!r} are none of JPEG, PNG, BMP, WebP, TIFF "
                f"and GIF: in a base64 file no reader could tell the image from the label; choose another "
                f"format, or --encoding png"
            )
        while self._part < 0 or number >= self._stops[self._part]:
            self._next()
        self._file.write(base64.b64encode(image) + b"\t%d\n" % record.label)

    def position(self) -> list[int]:
        sync(self._file)
        return [self._part, self._file.tell()]

    def close(self) -> None:
        sync(self._file)
        self._file.close()
        written = [name for name in self._names if (self._folder / name).is_file()]
        (self._folder / "file_list.txt").write_text("".join(f"{name}\n" for name in written))

    def _next(self) -> None:
        if self._file is not None:
            sync(self._file)
            self._file.close()
        self._part += 1
        path = self._folder / self._names[self._part]
        path.unlink(missing_ok=True)  # written after the last position, and interrupted
        self._file = open_output(path)


class TarSink:
    """`train-000000.tar` and so on, `00000000.jpg` with `00000000.cls`, the WebDataset layout."""

    def __init__(self, folder: Path, plan: Plan, position: Any) -> None:
        self._folder, self._stops = folder, [part.stop for part in shard_ranges(plan.num_images, plan.parts)]
        self._shard, self._tar = -1, None
        if position is not None:
            self._shard = position[0]
            self._open(open_output(self._path(), position[1]))

    def write(self, number: int, record: Record) -> None:
        while self._shard < 0 or number >= self._stops[self._shard]:
            self._end()
            self._shard += 1
            self._path().unlink(missing_ok=True)  # written after the last position, and interrupted
            self._open(open_output(self._path()))
        image = encode(record.image)
        for suffix, data in ((suffix_of(image), image), (".cls", b"%d" % record.label)):
            entry = tarfile.TarInfo(f"{number:08d}{suffix}")
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))
        self._tar.members = []  # else it keeps all of them

    def position(self) -> list[int]:
        sync(self._file)
        return [self._shard, self._file.tell()]

    def close(self) -> None:
        self._end()

    def _path(self) -> Path:
        return self._folder / f"train-{self._shard:06d}.tar"

    def _open(self, file: BinaryIO) -> None:
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="w")  # noqa: SIM115

    def _end(self) -> None:
        if self._tar is not None:
            self._tar.close()
            sync(self._file)
            self._file.close()


class ParquetSink:
    """`part-00000.parquet` and so on, with the columns image (encoded bytes) and label. Needs pyarrow."""

    def __init__(self, folder: Path, plan: Plan, position: Any) -> None:
        self._arrow = require("pyarrow", "pyarrow", "writing Parquet files")
        self._parquet = require("pyarrow.parquet", "pyarrow", "writing Parquet files")
        self._folder, self._part = folder, position or 0
        self._file: Any = None
        self._images: list[bytes] = []
        self._labels: list[int] = []

    def write(self, number: int, record: Record) -> None:
        self._images.append(encode(record.image))
        self._labels.append(record.label)
        if len(self._images) == _IMAGES_IN_GROUP:
            self._write_group()

    def position(self) -> int:
        if self._images:
            self._write_group()
        if self._file is not None:
            self._file.close()
            with open(self._path(), "rb") as file:
                os.fsync(file.fileno())
            self._file, self._part = None, self._part + 1
        return self._part

    def close(self) -> None:
        self.position()
        # A part begun after the last position of an interrupted run, and not reached again.
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


SINKS: dict[str, Callable[[Path, Plan, Any], Any]] = {
    "rec": RecordIOSink,
    "list": ListSink,
    "folders": FolderSink,
    "base64": Base64Sink,
    "tar": TarSink,
    "csv": CsvSink,
    "parquet": ParquetSink,
    "npy": ArraySink,
}


def _image_size(image: bytes) -> list[int]:
    """[height, width]; [] where the image cannot be read."""
    try:
        return list(decode(image).shape[:2])
    except DataError:
        return []


def _is_folder_name(name: str) -> bool:
    is_short = 0 < len(os.fsencode(name)) < 256
    return is_short and name not in (".", "..") and not is_leftover(name) and not {"/", "\0", os.sep} & set(name)
