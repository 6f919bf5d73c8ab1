"""`run.json`: in which environments a run was started, and what it warned of, for `plsc report` and for bug reports.

    {"starts": [{"time": "2026-11-28T02:40:00+00:00", "step": 0, "ranks": 8, "plsc": "3.1.0", ...}],
     "warnings": ["num_classes is 1: ..."]}

A run that resumes in its folder adds a start. A start holds no variable of the environment and no name of a machine.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from plsc.distributed.topology import Topology
from plsc.engine.observers import Observer, Run, Step
from plsc.utils.atomic import write_file
from plsc.utils.json_text import to_json
from plsc.utils.locations import without_credentials
from plsc.version import __version__

log = logging.getLogger("plsc")

NOTES_FILE = "run.json"
MAX_STARTS, MAX_WARNINGS = 50, 200


class RunNotes(Observer):
    """Writes `run.json` in `model_save_dir`, after the first step and where a warning was added meanwhile.

    Args:
        topology: this rank, and how many there are.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._warnings = _Warnings() if topology.is_main else None
        self._start: dict[str, Any] = {}
        self._before: tuple[list[dict[str, Any]], list[str]] = ([], [])
        self._written = -1  # warnings in the file

    def close(self) -> None:
        """Listen to no more warnings."""
        if self._warnings is not None:
            log.removeHandler(self._warnings)

    def on_start(self, run: Run) -> None:
        self._folder = Path(run.config.model_save_dir)
        self._start = _environment(self._topology) | {"step": run.first_step, "global_batch": run.global_batch}
        saved = run.checkpoint
        if saved is not None and saved.resolve().parent == self._folder.resolve():
            self._before = read_notes(self._folder)

    def on_step(self, step: Step) -> None:
        if self._written < 0:  # not in on_start: a run with no step left leaves the file as it is
            self._write()

    def on_save(self, step: Step, path: Path) -> None:
        self._write()

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        if self._written >= 0:
            self._write()
        self.close()

    def _write(self) -> None:
        new = self._warnings.texts if self._warnings is not None else []
        if len(new) == self._written:
            return
        starts, warnings = self._before
        notes = {
            "starts": [*starts, self._start][-MAX_STARTS:],
            "warnings": list(dict.fromkeys([*warnings, *new]))[-MAX_WARNINGS:],
        }
        self._written = len(new)
        try:
            with write_file(self._folder / NOTES_FILE) as file:
                file.write(to_json(notes, indent=1).encode())
        except OSError as error:  # the next save tries again
            log.debug("%s: cannot be written: %s", self._folder / NOTES_FILE, error)
            self._written = max(self._written - 1, -1)


class _Warnings(logging.Handler):
    """Keeps what the library warns of, from now on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.texts) < MAX_WARNINGS:
            self.texts.append(without_credentials(record.getMessage())[:2000])


def _environment(topology: Topology) -> dict[str, Any]:
    import paddle

    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ranks": topology.world_size,
        "device": "gpu" if topology.on_gpu else "cpu",
        "plsc": __version__,
        "paddle": paddle.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
    }


def read_notes(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(starts, warnings) of the run in a folder; empty where there are none, or the file is damaged."""
    try:
        notes = json.loads((folder / NOTES_FILE).read_bytes())
        starts = [start for start in notes["starts"] if isinstance(start, dict)]
        return starts, [str(warning) for warning in notes["warnings"]]
    except (OSError, ValueError, KeyError, TypeError):
        return [], []
