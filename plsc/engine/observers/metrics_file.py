"""`metrics.jsonl`: the metrics of a run, a JSON object per line, in the folder of its checkpoints.

    {"event": "step", "step": 200, "epoch": 0, "loss": 23.86, "lr": 0.0015625, "images/s": 412.5}
    {"event": "verify", "step": 500, "epoch": 0, "lfw/accuracy": 0.9912, "lfw/pairs": 6000.0}

There is a line per logged step (`log_period`, and the last step) and per verification. A number that is not finite is
null. Each line is written as a whole when it is known, so that other programs can read along.

The file records each step and each verification once. A run that resumes from a checkpoint in this folder appends to
the file; any other run starts an empty one. Lines of steps that this run has yet to train, and lines that are damaged
because a process was killed, move to `metrics.superseded.jsonl` before the first step. Nothing is deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from plsc.engine.observers import Observer, Run, Step
from plsc.utils.atomic import write_file
from plsc.utils.files import sync
from plsc.utils.json_text import to_json
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

METRICS_FILE = "metrics.jsonl"
SUPERSEDED_FILE = "metrics.superseded.jsonl"


class MetricsFile(Observer):
    """Writes `metrics.jsonl` in `model_save_dir`; the module describes its lines.

    Raises:
        OSError: of every method: the file cannot be written.

    Example:
        >>> Trainer(config).train()  # part of every run
        >>> import pandas
        >>> metrics = pandas.read_json("output/metrics.jsonl", lines=True)
        >>> metrics[metrics.event == "step"].plot("step", "loss")
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._verified: set[int] = set()  # steps whose verification the file has from the run before

    def on_start(self, run: Run) -> None:
        self._run = run
        self._path = Path(run.config.model_save_dir) / METRICS_FILE
        self._written_step, self._written_seconds = run.first_step, 0.0

    def on_step(self, step: Step) -> None:
        if self._file is None:  # not in on_start: a run with no step left to train leaves the file as it is
            self._file = self._open()
        if not self._run.is_logged(step):
            return
        values = dict(step.values)
        seconds = step.seconds  # after the values, for which the device was waited for
        images = (step.number - self._written_step) * self._run.global_batch
        values["images/s"] = round(images / max(seconds - self._written_seconds, 1e-9), 1)
        self._written_step, self._written_seconds = step.number, seconds
        self._write("step", step, values)

    def on_verify(self, step: Step, results: Mapping[str, float]) -> None:
        # A run that was stopped while a verification was recorded is verified again when it resumes.
        if self._file is None:
            self._file = self._open()
        if step.number not in self._verified:
            self._write("verify", step, results)

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: str, step: Step, values: Mapping[str, float]) -> None:
        assert self._file is not None
        line: dict[str, Any] = {"event": event, "step": step.number, "epoch": step.epoch}
        # A user's head names its metrics; a run that resumes relies on the number of the step.
        line.update({name: value for name, value in values.items() if name not in line})
        self._file.write(to_json(line) + "\n")

    def _open(self) -> TextIO:
        checkpoint = self._run.checkpoint
        is_own = checkpoint is not None and checkpoint.resolve().parent == self._path.parent.resolve()
        if self._path.exists():
            kept = _supersede(self._path, self._run.first_step if is_own else 0)
            self._verified = {line["step"] for line in map(json.loads, kept) if line.get("event") == "verify"}
        return open(self._path, "a", encoding="utf-8", buffering=1)


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
