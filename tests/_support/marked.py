"""The processes of one run, which have a variable of their environment in common: RUN, a folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    pid: int
    parent: int


def marked_processes(folder: Path) -> list[Found]:
    """Those that run, the zombies left out."""
    mark, found = f"RUN={folder}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0"):
                state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    found.append(Found(int(path.name), int(parent)))
        except OSError:  # it has ended
            continue
    return found
