"""`metrics.jsonl`: the metrics of a run, a JSON object per line, in the folder of its checkpoints; `metrics.csv`: the
same numbers as a table.

    {"event": "step", "step": 200, "epoch": 0, "loss": 23.86, "lr": 0.0015625, "images/s": 412.5, ...,
     "histograms": {"target_cosine": [[0.05, 0.1, 31], [0.1, 0.15, 97]], ...}}
    {"event": "verify", "step": 500, "epoch": 0, "lfw/accuracy": 0.9912, "lfw/pairs": 6000.0}

There is a line per logged step (`log_period`, and the last step) and per verification. A number that is not finite is
null. A histogram is a list of [from, to, count], without empty bins. Each line is written as a whole when it is known,
so that other programs can read along.

The file records each step and each verification once. A run that resumes from a checkpoint in this folder appends to
the file; any other run starts an empty one. Lines of steps that this run has yet to train, and lines that are damaged
because a process was killed, move to `metrics.superseded.jsonl` before the first step. Nothing is deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plsc.engine.observers import Observer, Run, Step
from plsc.engine.observers.measures import Histogram
from plsc.engine.observers.metrics_table import TABLE_FILE, MetricsTable
from plsc.utils.atomic import write_file
from plsc.utils.files import append, sync
from plsc.utils.json_text import to_json
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

METRICS_FILE = "metrics.jsonl"
SUPERSEDED_FILE = "metrics.superseded.jsonl"


class MetricsFile(Observer):
    """Writes `metrics.jsonl` and `metrics.csv` in `model_save_dir`; the module describes them.

    A disk that fails later than at the first step ends nothing: the lines are written when it works again.

    Raises:
        OSError: of `on_step` and `on_verify`: the file cannot be opened at first.

    Example:
        >>> Trainer(config).train()  # part of every run
        >>> import pandas
        >>> metrics = pandas.read_json("output/metrics.jsonl", lines=True)
        >>> metrics[metrics.event == "step"].plot("step", "loss")
    """

    def __init__(self) -> None:
        self._is_open = False
        self._waiting: list[str] = []  # lines that the disk has not taken yet
        self._verified: set[int] = set()  # steps whose verification the file has from the run before

    def on_start(self, run: Run) -> None:
        self._run = run
        self._path = Path(run.config.model_save_dir) / METRICS_FILE
        self._table = MetricsTable(self._path.with_name(TABLE_FILE), self._path)

    def on_step(self, step: Step) -> None:
        self._open()  # not in on_start: a run with no step left to train leaves the file as it is
        if not self._run.is_logged(step):
            return
        self._write("step", step, {**step.values, **step.measures.scalars}, step.measures.histograms)

    def on_verify(self, step: Step, results: Mapping[str, float]) -> None:
        # A run that was stopped while a verification was recorded is verified again when it resumes.
        self._open()
        if step.number not in self._verified:
            self._write("verify", step, results)

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        self._flush()
        if self._waiting:
            log.error("%s: %s could not be written", self._path, counted(len(self._waiting), "line"))
        self._is_open, self._waiting = False, []

    def _write(
        self, event: str, step: Step, values: Mapping[str, float], histograms: Mapping[str, Histogram] | None = None
    ) -> None:
        line: dict[str, Any] = {"event": event, "step": step.number, "epoch": step.epoch}
        # A user's head names its metrics; a run that resumes relies on the number of the step.
        line.update({name: value for name, value in values.items() if name not in line})
        if histograms:
            line["histograms"] = {name: histogram.occupied() for name, histogram in histograms.items()}
        had_failed = bool(self._waiting)
        self._waiting.append(to_json(line) + "\n")
        failure = self._flush()
        if failure is not None and not had_failed:
            log.error("%s: cannot be written: %s; training goes on, and tries again", self._path, failure.strerror)

    def _flush(self) -> OSError | None:
        """Write the lines that wait; returns why the disk takes none."""
        if self._waiting:
            try:
                append(self._path, "".join(self._waiting).encode())
            except OSError as error:
                return error
            self._table.add([json.loads(line) for line in self._waiting])
            self._waiting.clear()
        return None

    def _open(self) -> None:
        if self._is_open:
            return
        checkpoint = self._run.checkpoint
        is_own = checkpoint is not None and checkpoint.resolve().parent == self._path.parent.resolve()
        if self._path.exists():
            kept = _supersede(self._path, self._run.first_step if is_own else 0)
            self._verified = {line["step"] for line in map(json.loads, kept) if line.get("event") == "verify"}
        else:
            self._path.touch()
        self._table.rebuild()
        self._is_open = True


def _supersede(path: Path, last_step: int) -> list[bytes]:
    """Move the lines of steps after `last_step`, and damaged lines, to `metrics.superseded.jsonl`.

    Returns:
        The other lines.
    """
    lines = [line + b"\n" for line in path.read_bytes().splitlines()]
    kept = [line for line in lines if _is_until(line, last_step)]
    moved = [line for line in lines if not _is_until(line, last_step)]
    if moved:
        # First the copy: a process that is killed in between leaves these lines twice, and loses none.
        with open(path.with_name(SUPERSEDED_FILE), "ab") as file:
            file.writelines(moved)
            sync(file)
        log.info(
            "%s: training begins after step %d; moved %s of later steps, or damaged, to %s",
            path,
            last_step,
            counted(len(moved), "line"),
            SUPERSEDED_FILE,
        )
    with write_file(path) as file:
        file.writelines(kept)
    return kept


def _is_until(line: bytes, last_step: int) -> bool:
    """Whether a line is complete and of a step up to `last_step`."""
    try:
        return int(json.loads(line)["step"]) <= last_step
    except (ValueError, TypeError, KeyError, OverflowError):
        return False
