"""What the folder of a training run holds for a report: metrics, settings, results, scores, notes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plsc.checkpoint import MANIFEST, Checkpoint, list_checkpoints
from plsc.engine.details import CLASSES, SCORES, PairScores, read_classes, read_scores
from plsc.engine.observers.metrics_file import METRICS_FILE
from plsc.engine.observers.run_notes import read_notes
from plsc.errors import CheckpointError, ConfigError
from plsc.utils.locations import is_remote, keep_credentials
from plsc.utils.plural import counted

Line = dict[str, Any]


@dataclass
class Run:
    """A training run.

    Attributes:
        name: what the report calls it, different from the others of a report.
        path: its folder.
        steps: the lines of metrics.jsonl of logged steps.
        verifications: those of verifications.
        settings: of the newest checkpoint; empty where there is none.
        about: what that checkpoint says of the run.
        scores: of each verification set, of the newest checkpoint that has any.
        classes: the worst ones of the validation data, of the newest checkpoint that has any.
        details: the checkpoint of both; '' for none.
        starts: the environments in which the run was started.
        warnings: what the run warned of, and what the report could not read.
    """

    name: str
    path: Path
    steps: list[Line] = field(default_factory=list)
    verifications: list[Line] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, PairScores] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)
    details: str = ""
    starts: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def curve(self, metric: str, *, of: str = "steps") -> tuple[list[float], list[float]]:
        """(steps, values) of a metric, without those that are not known."""
        lines = self.steps if of == "steps" else self.verifications
        known = [(line["step"], line[metric]) for line in lines if is_number(line.get(metric))]
        return [float(step) for step, _ in known], [float(value) for _, value in known]

    def last_verification(self) -> dict[str, float]:
        """The newest value of each metric of verification."""
        return {
            name: value
            for line in self.verifications
            for name, value in line.items()
            if "/" in name and is_number(value)
        }


def is_number(value: object) -> bool:
    """Whether a value of a file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs of some folders.

    Raises:
        ConfigError: one is no folder of a training run, is given twice, or is a URL.
    """
    runs = [_read_run(path) for path in paths]
    resolved = [run.path.resolve() for run in runs]
    for run, path in zip(runs, resolved):
        if resolved.count(path) > 1:
            raise ConfigError(
                f"{run.path}: is given {resolved.count(path)} times, expected different runs; name it once"
            )
    for depth in range(1, 64):  # as much of the path as tells them apart
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    for run, name in zip(runs, names):
        run.name = name
    return runs


def _read_run(given: str | Path) -> Run:
    location = keep_credentials(str(given))
    if is_remote(location):
        raise ConfigError(f"{location}: plsc report takes local folders; copy the run to one first")
    path = Path(given)
    expected = "expected the folder in which a training saved (model_save_dir), with metrics.jsonl or checkpoints"
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise ConfigError(f"{path}: {found}, {expected}")
    checkpoints = list_checkpoints(path)
    if not (path / METRICS_FILE).is_file() and not checkpoints:
        above = "; that is a checkpoint: name the folder above it" if (path / MANIFEST).is_file() else ""
        raise ConfigError(f"{path}: is no folder of a run: it holds neither, {expected}{above}")
    run = Run(name=path.name, path=path)
    _read_metrics(run)
    _read_checkpoints(run, checkpoints)
    run.starts, warnings = read_notes(path)
    run.warnings = [*warnings, *run.warnings]
    return run


def _read_metrics(run: Run) -> None:
    path, damaged = run.path / METRICS_FILE, 0
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    for text in lines:
        line = _parsed(text)
        if line is None:
            damaged += 1
        elif line.get("event") in ("step", "verify"):
            (run.steps if line["event"] == "step" else run.verifications).append(line)
    if damaged:
        run.warnings.append(f"{METRICS_FILE}: left out {counted(damaged, 'line')} that cannot be read")


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and is_number(line.get("step")) else None


def _read_checkpoints(run: Run, checkpoints: Sequence[Path]) -> None:
    for path, about in _opened(run, reversed(checkpoints)):
        run.about = run.about or about
        settings = run.about.get("settings")
        run.settings = settings if isinstance(settings, dict) else {}
        if (path / SCORES).is_file() or (path / CLASSES).is_file():
            run.scores, run.classes, run.details = read_scores(path), read_classes(path), path.name
            return


def _opened(run: Run, checkpoints: Iterator[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in checkpoints:
        try:
            yield path, Checkpoint(path).about
        except CheckpointError as error:
            run.warnings.append(str(error))
