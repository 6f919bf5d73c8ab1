"""A list of images, `label.txt`: the path and the class of one image per line."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plsc.data.records import Record, Records, read_image
from plsc.data.sources.string_table import StringTable
from plsc.errors import DataError


class ListRecords(Records):
    """The images that a `label.txt` names, one `images/00000000.jpg 0` per line.

    Args:
        list_path: the list, UTF-8. Image paths are absolute or relative to the folder of the list and may hold blanks;
            any white space separates a path from its label. A `#` at the start of a line or after the label begins a
            comment. Blank lines are ignored.

    Raises:
        DataError: no such file, no lines, or a line that is not `path label`; names file and line.

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
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                line = line.strip()
                if not line or line.startswith("#"):
                    continue
                match = _LIST_LINE.fullmatch(line)
                if match is None:
                    raise DataError(
                        f"{path}, line {number}: got {line[:120]!r}, expected an image path and a label of "
                        f"0 or more, as 'images/00000000.jpg 0'"
                    )
                labels.append(int(match[2]))
                lines.append(number)
                yield match[1]
    except OSError as error:
        raise DataError(f"{path}: the list cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the list is not UTF-8 text (byte {error.start})") from None
