"""Tables with an image column and a label column: CSV, TSV, and Parquet through pyarrow.

The image is a path relative to the folder of the table. In Parquet it may also be the encoded bytes, plain or as the
field `bytes` of a struct. Labels that are not whole numbers are class names, numbered in sorted order.
"""

from __future__ import annotations

import collections
import csv
import os
import re
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.image_input import read_image
from plsc.data.images import is_image_name
from plsc.data.records import Labels, Record, Records
from plsc.data.sources.leftovers import matching_files
from plsc.data.sources.reading import check_index, own_errors
from plsc.data.sources.string_table import StringTable, number_names
from plsc.errors import DataError
from plsc.utils.files import OpenFiles, text_lines
from plsc.utils.lazy import require
from plsc.utils.plural import counted

IMAGE_COLUMNS = ("image", "image_path", "path", "file", "filename", "file_name", "img")
LABEL_COLUMNS = ("label", "class", "class_id", "identity", "id", "target")
_FAULT = "cannot be read as Parquet"


class CsvRecords(Records):
    """The images that a `.csv` or `.tsv` names.

    Args:
        path: UTF-8 text whose first line names the columns.
        image_column: the column of image paths; by default the first of `IMAGE_COLUMNS` that the table has.
        label_column: the column of labels; by default the first of `LABEL_COLUMNS` that the table has.

    Attributes:
        class_names: the C names where labels are names, else None.

    Raises:
        DataError: no such file or column, a row of another length, or a missing label; names the file and line.
        StorageError: the system cannot read the table.

    Example:
        >>> CsvRecords("faces.csv", image_column="photo", label_column="person").class_names[:2]
        ['ann', 'bob']
    """

    uses_global_random = False

    def __init__(self, path: str | Path, *, image_column: str | None = None, label_column: str | None = None) -> None:
        self.path = Path(path)
        paths, labels, lines = self._read(image_column, label_column)
        if not paths:
            raise DataError(f"{self.path}: the table has no rows, expected one per image below the column names")
        self._paths, self._lines = StringTable(paths), np.asarray(lines, np.int64)
        self.labels, self.class_names = _to_classes(labels, self.describe)
        self.num_classes = int(self.labels.max()) + 1
        self.format = "table of image paths, " + ("tabs" if self.path.suffix.lower() == ".tsv" else "CSV")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        return Record(read_image(self.path_of(index)), int(self.labels[index]))

    def path_of(self, index: int) -> str:
        return os.path.join(self.path.parent, self._paths[index])

    def describe(self, index: int) -> str:
        return f"{self._paths[index]} ({self.path}, line {self._lines[index]})"

    def _read(self, image_column: str | None, label_column: str | None) -> tuple[list[str], list[str], list[int]]:
        paths: list[str] = []
        labels: list[str] = []
        lines: list[int] = []
        delimiter = "\t" if self.path.suffix.lower() == ".tsv" else ","
        rows = csv.reader(text_lines(self.path, "the table", newline=""), delimiter=delimiter, strict=True)
        try:
            head = next(rows, [])
            image = _column(self.path, head, IMAGE_COLUMNS, image_column, "image_column")
            label = _column(self.path, head, LABEL_COLUMNS, label_column, "label_column")
            for row in rows:
                if len(row) < 2 and not "".join(row).strip():
                    continue
                if len(row) != len(head) or not row[image].strip() or not row[label].strip():
                    raise DataError(
                        f"{self.path}, line {rows.line_num}: got {str(row)[:200]}, expected "
                        f"{counted(len(head), 'field')} as in the first line, with an image and a label"
                    )
                if "\0" in row[image] or "\0" in row[label]:
                    raise DataError(
                        f"{self.path}, line {rows.line_num}: got {str(row)[:200]}, which holds a zero byte; expected "
                        f"text in UTF-8, not in UTF-16"
                    )
                paths.append(row[image].strip())
                labels.append(row[label].strip())
                lines.append(rows.line_num)
        except csv.Error as error:
            raise DataError(f"{self.path}, line {rows.line_num}: no table in UTF-8 text: {error}") from None
        return paths, labels, lines


class ParquetRecords(Records):
    """The images of a `.parquet` file, or of a folder of such files. Needs pyarrow.

    Parquet is compressed in row groups, and reading one image unpacks its whole group. The last groups used stay in
    memory. In random order over large groups this is slow: convert the set to RecordIO or tar with `plsc data convert`.

    Args:
        path: the file; or a folder whose `.parquet` files are taken in the order of their names.
        image_column, label_column: as in `CsvRecords`.
        kept_groups: row groups kept in memory per process.

    Raises:
        DataError: no such file or column, a damaged file, or a missing label.
        StorageError: the system cannot read a file.
        MissingDependencyError: pyarrow is not installed.

    Example:
        >>> ParquetRecords("shards/train-00000.parquet").format
        'Parquet, 1 files, 8 row groups'
    """

    uses_global_random = False

    def __init__(
        self,
        path: str | Path,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        kept_groups: int = 4,
    ) -> None:
        self.path = Path(path)
        self.files = matching_files(self.path, "*.parquet") if self.path.is_dir() else [self.path]
        self._kept_groups = kept_groups
        self._images_in: list[str] = []  # the image column of each file
        self._groups: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._open = OpenFiles(self.files, _open_parquet)
        self._lock = threading.Lock()
        sizes: list[tuple[int, int, int]] = []  # (file, row group, rows)
        labels: list[Any] = []
        for number, file in enumerate(self.files):
            with own_errors(file, _FAULT):
                table = _open_parquet(file)
                names = table.schema_arrow.names
                self._images_in.append(names[_column(file, names, IMAGE_COLUMNS, image_column, "image_column")])
                label = names[_column(file, names, LABEL_COLUMNS, label_column, "label_column")]
                sizes += [
                    (number, group, table.metadata.row_group(group).num_rows) for group in range(table.num_row_groups)
                ]
                labels += table.read(columns=[label], use_threads=False).column(0).to_pylist()
        if not labels:
            raise DataError(f"{self.path}: the table has no rows, expected one per image")
        self._group_of = np.asarray(sizes, np.int64)
        self._ends = np.cumsum(self._group_of[:, 2])
        if any(label is None for label in labels):
            raise DataError(f"{self.describe(labels.index(None))} has no label")
        self.labels, self.class_names = _to_classes(labels, self.describe)
        self.num_classes = int(self.labels.max()) + 1
        self.format = f"Parquet, {counted(len(self.files), 'file')}, {counted(len(self._group_of), 'row group')}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": collections.OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        index %= len(self)
        group = int(np.searchsorted(self._ends, index, side="right"))
        value = self._images(group)[index - int(self._ends[group])].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            value = read_image(self.path.parent / value if self.path.is_file() else self.path / value)
        if not isinstance(value, bytes):
            raise DataError(
                f"{self.describe(index)}: the image column holds {type(value).__name__}, expected encoded "
                f"bytes, a struct with bytes, or a path"
            )
        return Record(value, int(self.labels[index]))

    def describe(self, index: int) -> str:
        index %= len(self)
        group = int(np.searchsorted(self._ends, index, side="right"))
        number = int(self._group_of[group, 0])
        first = int(self._ends[np.flatnonzero(self._group_of[:, 0] < number)[-1]]) if number else 0
        return f"{self.files[number]}, row {index - first}"

    def _images(self, group: int) -> Any:
        with self._lock:  # two threads that read from one ParquetFile deadlock
            if group not in self._groups:
                self._groups[group] = self._read(group)
                while len(self._groups) > self._kept_groups:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            return self._groups[group]

    def _read(self, group: int) -> Any:
        number, inner, rows = (int(value) for value in self._group_of[group])
        with own_errors(self.files[number], _FAULT):
            table = self._open[number].read_row_group(inner, columns=[self._images_in[number]], use_threads=False)
            if table.num_rows != rows:
                raise DataError(
                    f"{self.files[number]}: row group {inner} has {counted(table.num_rows, 'row')}, expected {rows}, "
                    f"as the file's end says: it is damaged"
                )
        return table.column(0).combine_chunks()


def _open_parquet(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "pyarrow", purpose="reading Parquet files")
    with own_errors(path, _FAULT):
        return parquet.ParquetFile(path)


def _column(path: Path, head: Sequence[str], known: Sequence[str], given: str | None, setting: str) -> int:
    names = [name.strip().lower() for name in head]
    found = [names.index(name) for name in ([given.lower()] if given else known) if name in names]
    if not found:
        expected = repr(given) if given else "one of " + ", ".join(known)
        hint = _mistake_in(path, head)
        raise DataError(
            f"{path}: the columns are {str(list(head))[:200]}, expected {expected}: rename the column, or "
            f"in Python name it with {setting}{hint}"
        )
    return found[0]


def _mistake_in(path: Path, head: Sequence[str]) -> str:
    """A hint at what is probably wrong with the first line of a table, or nothing."""
    if any(is_image_name(name.strip()) for name in head):
        return "; the first line names the columns, as image,label: add it"
    is_tsv, line = path.suffix.lower() == ".tsv", head[0] if len(head) == 1 else ""
    if is_tsv and "," in line:
        return "; a .tsv separates its fields by tabs: name the file .csv"
    if not is_tsv and "\t" in line:
        return "; a .csv separates its fields by commas: name the file .tsv"
    if ";" in line or "|" in line:
        return "; separate its fields by " + ("tabs" if is_tsv else "commas")
    return ""


_WHOLE = re.compile(r"([0-9]{1,15})(\.0*)?")


def _to_classes(labels: Sequence[Any], describe: Callable[[int], str]) -> tuple[Labels, list[str] | None]:
    """The labels of a table as classes [n] int64, and the C class names or None.

    Labels that are all whole numbers are the classes. Where one label is no number, or has more than 15 digits, all
    labels are names.

    Raises:
        DataError: all labels are numbers, and one is negative or a fraction, or one number is written in two ways.
    """
    texts = [format(label, "f") if isinstance(label, Decimal) else str(label).strip() for label in labels]
    number_of: dict[str, int] = dict.fromkeys(texts, 0)
    if not all(map(_is_number, number_of)):
        return number_names(texts)
    written: dict[int, str] = {}
    for text in number_of:
        match = _WHOLE.fullmatch(text)
        if match is None:
            raise DataError(
                f"{describe(texts.index(text))}: label {text[:60]!r} is no class; expected whole numbers "
                f"of 0 or more, as all labels are numbers"
            )
        number_of[text] = number = int(match[1])
        if written.setdefault(number, match[1]) != match[1]:
            raise DataError(
                f"{describe(texts.index(text))}: label {text!r} is the same number as {written[number]!r}, "
                f"which stands there as well; write one class alike everywhere, and two so that they "
                f"differ as numbers or are names"
            )
    return np.fromiter(map(number_of.__getitem__, texts), np.int64, len(texts)), None


def _is_number(text: str) -> bool:
    """Whether a label is a number. Python reads 1_0 as ten, which is a name here, and so is an id of many digits."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and not (text.isdecimal() and len(text) > 15)
