"""Base64 part files: one image per line, `base64<TAB>label` or `label<TAB>base64`.

The documentation of PLSC 0.2 gave the one order and its tool wrote the other. The first line of each file decides which
column is the image.
"""

from __future__ import annotations

import base64
import binascii
import mmap
import os
from array import array
from codecs import BOM_UTF8
from pathlib import Path

import numpy as np

from plsc.data.images import IMAGE_STARTS, KIND_NAMES, is_image_name
from plsc.data.records import Record, Records
from plsc.data.sources.offset_index import Arrays, load_or_build, save_index
from plsc.data.sources.reading import check_index
from plsc.errors import DataError
from plsc.utils.files import OpenFiles, map_file, text_lines
from plsc.utils.plural import counted

_EXPECTED = "expected 'base64-image<TAB>label' or 'label<TAB>base64-image'"


class Base64Records(Records):
    """The images of base64 part files, read in any order by memory map and the offsets of the lines.

    Opening reads the files once for their lines and labels, unless `plsc data index` has been run.

    Args:
        path: a part file; or a `file_list.txt` that names part files, one per line, relative to its folder; or
            the folder of a `file_list.txt`.

    Attributes:
        label_first: per part file, whether the label is the first column.

    Raises:
        DataError: a part is missing or empty, or a line has no label or no image; names file and line.
        StorageError: the system cannot read a part.

    Example:
        >>> Base64Records("faces/file_list.txt").label_first
        [False, False]
    """

    uses_global_random = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.parts = _part_files(self.path)
        self._maps = OpenFiles(self.parts, map_file)
        indexes = [load_or_build(part, "base64", build=_build_index) for part in self.parts]
        self._starts = np.concatenate([index["starts"] for index in indexes])
        self._lines = np.concatenate([index["lines"] for index in indexes])
        self.labels = np.concatenate([index["labels"] for index in indexes])
        self._ends = np.cumsum([len(index["starts"]) for index in indexes])
        self.label_first = [bool(index["label_first"]) for index in indexes]
        self.num_classes = int(self.labels.max()) + 1
        orders = {"label first" if first else "image first" for first in self.label_first}
        self.format = f"base64 text, {counted(len(self.parts), 'part file')}, {' or '.join(sorted(orders))}"

    def save_index(self) -> list[Path]:
        """Write the index of each part beside it."""
        return [save_index(part, "base64", build=_build_index) for part in self.parts]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        part = self._part(index)
        data, start = self._maps[part], int(self._starts[index])
        line = data[start : _line_end(data, start)]
        columns = _columns(line)
        if len(columns) != 2:
            raise DataError(
                f"{self.describe(index)}: got {counted(len(columns), 'column')}, expected a label and an image"
            )
        text = columns[1 if self.label_first[part] else 0]
        try:
            return Record(base64.b64decode(text, validate=True), int(self.labels[index]))
        except (binascii.Error, ValueError) as error:
            raise DataError(
                f"{self.describe(index)}: the image column is no base64 ({error}; it begins with {text[:24]!r})"
            ) from None

    def describe(self, index: int) -> str:
        return f"{self.parts[self._part(index)]}, line {self._lines[index]}"

    def _part(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index % len(self), side="right"))


def looks_like_base64(path: Path) -> bool:
    """Whether the first line of a file, blank lines left out, is an image in base64 and a label."""
    try:
        with open(path, "rb") as file:
            first = file.readline(1 << 26).removeprefix(BOM_UTF8)
            while first and not first.strip():
                first = file.readline(1 << 26)
    except OSError:
        return False
    return _label_column(first) is not None


def is_part_list(path: Path) -> bool:
    """Whether the first line of a file names a file beside it, as in a `file_list.txt`."""
    try:
        with open(path, "rb") as file:
            first = file.readline(4096).decode("utf-8-sig").strip()
        if path.name == "file_list.txt":
            return bool(first)
        # An image is named by a list of images whose labels are missing.
        return bool(first) and not is_image_name(first) and os.path.isfile(path.parent / first)
    except (OSError, ValueError):
        return False


def _part_files(path: Path) -> list[Path]:
    if path.is_dir():
        path = path / "file_list.txt"
    if looks_like_base64(path):
        return [path]
    parts: list[Path] = []
    for number, line in enumerate(text_lines(path, "the list of part files"), start=1):
        name = line.strip()
        if not name:
            continue
        parts.append(path.parent / name)
        if not os.path.isfile(parts[-1]):  # Path.is_file raises where a name is too long
            raise DataError(f"{path}, line {number}: there is no part file {str(parts[-1])[:200]!r}")
    if not parts:
        raise DataError(f"{path}: the list is empty, expected the name of one part file per line")
    return parts


def _build_index(path: Path) -> Arrays:
    data = map_file(path)
    starts, lines, labels = array("q"), array("q"), array("q")
    label_first: bool | None = None
    offset, number, size = len(BOM_UTF8) if data[: len(BOM_UTF8)] == BOM_UTF8 else 0, 0, len(data)
    while offset < size:
        number += 1
        end = _line_end(data, offset)
        if data[offset : min(end, offset + 256)].strip() or data[offset:end].strip():
            if label_first is None:
                label_first = _order_of(data[offset:end], path, number)
            labels.append(_label_of(data, offset, end, label_first, path, number))
            starts.append(offset)
            lines.append(number)
        offset = end + 1
    if not len(starts):
        raise DataError(f"{path}: the file has no lines, {_EXPECTED}")
    return {
        "starts": np.asarray(starts, np.int64),
        "lines": np.asarray(lines, np.int64),
        "labels": np.asarray(labels, np.int64),
        "label_first": np.array(label_first),
    }


def _line_end(data: mmap.mmap, start: int) -> int:
    end = data.find(b"\n", start)
    return len(data) if end < 0 else end


def _columns(line: bytes) -> list[bytes]:
    line = line.strip()
    return line.split(b"\t" if b"\t" in line else None)


def _label_column(line: bytes) -> int | None:
    """The column of the label, 0 or 1; None where the line is not a label and an image."""
    columns = _columns(line)
    if len(columns) != 2:
        return None
    for label, image in ((1, 0), (0, 1)):
        if _is_label(columns[label]) and _is_image(columns[image]):
            return label
    return None


def _order_of(line: bytes, path: Path, number: int) -> bool:
    column = _label_column(line)
    if column is None:
        raise DataError(
            f"{path}, line {number}: got {line[:60]!r}..., {_EXPECTED}, and an image of the kinds "
            f"{KIND_NAMES}; the first line tells which column is which"
        )
    return column == 0


def _label_of(data: mmap.mmap, start: int, end: int, label_first: bool, path: Path, number: int) -> int:
    # The image is not read here: lines are long, and the label is at one end.
    if label_first:
        edge = data[start : min(end, start + 64)].split(None, 1)
        label = edge[0] if edge else b""
    else:
        edge = data[max(start, end - 64) : end].rsplit(None, 2)  # three parts are three columns
        label = edge[-1] if edge else b""
    if not (len(edge) == 2 and _is_label(label)):
        order = "'label<TAB>base64-image'" if label_first else "'base64-image<TAB>label'"
        raise DataError(
            f"{path}, line {number}: got {data[start : min(end, start + 60)]!r}..., expected {order} as in "
            f"the file's first line"
        )
    return int(label)


def _is_label(text: bytes) -> bool:
    return text.isdigit() and len(text) < 19  # int64 holds every number of 18 digits


def _is_image(text: bytes) -> bool:
    try:
        return base64.b64decode(text[:64] if len(text) > 64 else text, validate=True).startswith(IMAGE_STARTS)
    except (binascii.Error, ValueError):
        return False
