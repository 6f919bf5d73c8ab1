"""A list of images, `label.txt`: the path and the class of one image per line."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plsc.data.image_input import read_image
from plsc.data.images import is_image_name
from plsc.data.records import Record, Records
from plsc.data.sources.string_table import StringTable
from plsc.errors import DataError
from plsc.utils.files import text_lines


class ListRecords(Records):
    """The images that a `label.txt` names, one `images/00000000.jpg 0` per line.

    Args:
        list_path: the list, UTF-8 with or without byte-order marks. Image paths are absolute or relative to the folder
            of the list and may hold blanks; any white space separates a path from its label. A `#` at the start of a
            line or after the label begins a comment. Blank lines are ignored.

    Raises:
        DataError: no such file, no lines, or a line that is not `path label`; names file and line.
        StorageError: the system cannot read the list.

    Example:
        >>> records = ListRecords("faces/label.txt")
        >>> records[0].label
        0
    """

    uses_global_random = False
    format = "list of images"

    def __init__(self, list_path: str | Path) -> None:
        self.list_path = Path(list_path)
        self._folder = str(self.list_path.parent)
        labels, lines = array("q"), array("q")
        self._paths = StringTable(_parse_list(self.list_path, labels, lines))
        if not labels:
            raise DataError(f"{self.list_path}: the list is empty, expected one image per line")
        self.labels, self._lines = np.asarray(labels, np.int64), np.asarray(lines, np.int64)
        self.num_classes = int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        return Record(read_image(self.path_of(index)), int(self.labels[index]))

    def path_of(self, index: int) -> str:
        return os.path.join(self._folder, self._paths[index])

    def describe(self, index: int) -> str:
        return f"{self._paths[index][:500]} ({self.list_path}, line {self._lines[index]})"


_LIST_LINE = re.compile(r"(.*?\S)\s+([0-9]{1,18})(\s+#.*)?")


def _parse_list(path: Path, labels: array[int], lines: array[int]) -> Iterator[str]:
    """The paths of a list; the label and the line number of each are appended to `labels` and `lines`."""
    for number, line in enumerate(text_lines(path, "the list"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LIST_LINE.fullmatch(line)
        if match is None or "\0" in line:
            raise DataError(
                f"{path}, line {number}: got {line[:120]!r}, expected an image path and a label of "
                f"0 or more, as 'images/00000000.jpg 0'{_mistake_in(line)}"
            )
        labels.append(int(match[2]))
        lines.append(number)
        yield match[1]


_LABEL_FIRST = re.compile(r"[\"']?[0-9]{1,18}[\"']?\s*[\s,;]\s*\S.*")
_OTHER_SEPARATOR = re.compile(r".*\S\s*([,;|:])\s*[\"']?[0-9]{1,18}[\"']?")
_NAME_AS_LABEL = re.compile(r"(.*\S)\s+\S*[^\W\d]\S*")


def _mistake_in(line: str) -> str:
    """A hint at what is probably wrong with a line, or nothing."""
    if "\0" in line:
        return "; the line holds a zero byte: save the list as text in UTF-8, not in UTF-16"
    if line[0] == line[-1] and line[0] in "\"'":
        return "; leave the quotes out"
    if _LABEL_FIRST.fullmatch(line):
        return "; the label comes after the path"
    separator = _OTHER_SEPARATOR.fullmatch(line)
    if separator:
        return (
            f"; a space or a tab separates the label from the path, not {separator[1]!r}. Values separated by commas "
            f"are read from a file whose name ends in .csv and whose first line is image,label"
        )
    named = _NAME_AS_LABEL.fullmatch(line)
    if named and is_image_name(named[1].strip("\"'")):
        return "; a label is a number: names of classes are read from a table (.csv, .tsv) or from class folders"
    return ""
