"""`metrics.csv`: the numbers of `metrics.jsonl` as a table, a row per line and a column per name.

    event,step,epoch,loss,lr,images/s,lfw/accuracy
    step,200,0,23.86,0.0015625,412.5,
    verify,500,0,,,,0.9912

A cell is empty where a line lacks the number, or where it is not finite. The table is made of `metrics.jsonl`, so it
holds the same steps; it is written anew where a new column comes, as with the first verification.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plsc.utils.atomic import write_file
from plsc.utils.csv_rows import csv_bytes
from plsc.utils.files import append

log = logging.getLogger("plsc")

TABLE_FILE = "metrics.csv"

_FIRST = ("event", "step", "epoch")


class MetricsTable:
    """Writes the table. A disk that takes no row ends nothing: the table is written anew with the next row.

    Args:
        path: of the table.
        source: `metrics.jsonl`, which has all lines that the table is to have.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self._path, self._source = path, source
        self._columns: list[str] = []
        self._is_whole = self._has_failed = False

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines that `source` has already."""
        is_new = any(name not in self._columns for line in lines for name in _scalars(line))
        if is_new or not self._is_whole:
            self.rebuild()
            return
        try:
            append(self._path, csv_bytes(self._row(line) for line in lines))
        except OSError as error:
            self._failed(error)

    def rebuild(self) -> None:
        """Write the table of all lines of `source`."""
        try:
            lines = [json.loads(line) for line in self._source.read_bytes().splitlines()]
            self._columns = list(dict.fromkeys([*_FIRST, *(name for line in lines for name in _scalars(line))]))
            with write_file(self._path) as file:
                file.write(csv_bytes([self._columns, *map(self._row, lines)]))
            self._is_whole = True
        except OSError as error:
            self._failed(error)

    def _row(self, line: Mapping[str, Any]) -> list[Any]:
        return [line.get(name) for name in self._columns]

    def _failed(self, error: OSError) -> None:
        if not self._has_failed:
            log.error("%s: cannot be written: %s; training goes on, and tries again", self._path, error.strerror)
        self._is_whole, self._has_failed = False, True


def _scalars(line: Mapping[str, Any]) -> Iterable[str]:
    """The names of the numbers of a line: histograms are no cells."""
    return (name for name, value in line.items() if not isinstance(value, (dict, list)))
