"""What a rank tells `plsc launch`: the step of the newest whole checkpoint, and how the rank ends.

The variable `PLSC_REPORT_DIR` names a folder; without it nothing is written. Rank 3 writes two files, each complete or
not at all:

| file              | content                                                                | written              |
|-------------------|------------------------------------------------------------------------|----------------------|
| `position-3.json` | `{"step": 5000}`, from which a restart would go on                     | at start, each save  |
| `end-3.json`      | `{"rank": 3, "time": 1.7e9, "status": 1, "message": "DataError: ..."}` | when training ends   |

Where a rank reports several ends, the first one whose status is not 0 stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from plsc.distributed.topology import place_from_environment
from plsc.utils.atomic import write_file

REPORT_DIR = "PLSC_REPORT_DIR"
SAVED = 75  # exit status of `plsc.Interrupted`: the run has saved its state and is to be started again
_MOST_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a rank ended.

    Attributes:
        rank: of the process.
        time: seconds since 1970, by the clock of its machine.
        status: its exit status. 0 and `SAVED` are no faults.
        message: class and text of the exception; empty without one.
    """

    rank: int
    time: float
    status: int
    message: str


def report_position(step: int) -> None:
    """Tell that a restart would go on from this step: at the start of a run, and when a checkpoint is whole.

    Every rank tells it, since each machine has a `plsc launch` of its own. A script without a `Trainer` calls it to be
    started again.
    """
    _write("position", {"step": step})


def report_end(error: BaseException | None = None) -> None:
    """Tell that this rank ends, by an exception or because training is complete."""
    if REPORT_DIR not in os.environ:
        return
    rank, _ = place_from_environment()
    if not any(earlier.rank == rank and earlier.status for earlier in read_endings(Path(os.environ[REPORT_DIR]))):
        message = f"{type(error).__name__}: {error}" if error is not None else ""
        status = _exit_status(error)
        _write("end", asdict(Ending(rank=rank, time=time.time(), status=status, message=message[:_MOST_CHARACTERS])))


def report_uncaught() -> None:
    """Report the exception that ends this process, where `plsc launch` started it."""
    if REPORT_DIR not in os.environ:
        return
    show = sys.excepthook

    def report_and_show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report_end(error)
        show(kind, error, trace)

    sys.excepthook = report_and_show


def read_position(folder: Path) -> int | None:
    """The newest step that a rank has told, or None."""
    return max((report["step"] for report in _read(folder, "position")), default=None)


def read_endings(folder: Path) -> list[Ending]:
    """What ranks have told, the first one first."""
    return sorted((Ending(**report) for report in _read(folder, "end")), key=lambda ending: ending.time)


def _exit_status(error: BaseException | None) -> int:
    if not isinstance(error, SystemExit):
        return int(error is not None)
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def _write(kind: str, content: dict[str, Any]) -> None:
    if REPORT_DIR in os.environ:
        rank, _ = place_from_environment()
        # A run must not end because its launcher cannot be told something.
        with contextlib.suppress(OSError), write_file(Path(os.environ[REPORT_DIR], f"{kind}-{rank}.json")) as file:
            file.write(json.dumps(content).encode())


def _read(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob(f"{kind}-*.json")]
