"""The training doctor: warnings where the course of a run shows that something is wrong.

It looks at what is logged anyway: the values of logged steps, which are read from the device for `metrics.jsonl`, and
verifications. Other steps cost it one comparison. Each finding is one warning in the log, once per run, and a line of
`findings.jsonl` in the folder of the checkpoints; a run without findings has no such file.

A run that resumes reads `metrics.jsonl` up to its checkpoint, so that it finds what an unbroken run would have found,
and `findings.jsonl`, so that it tells nothing twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.records import Records
from plsc.engine.diagnosis import Case, ClassCounts, Diagnosis, Point, Symptom, SymptomMaker
from plsc.engine.diagnosis.at_start import AbsentLabels, LargeMargin, SingleLabels, UnfitRate
from plsc.engine.diagnosis.in_course import CollapsedFeatures, DataWait, FallingVerification, StuckLoss
from plsc.engine.observers import Observer, Run, Step
from plsc.engine.observers.metrics_file import METRICS_FILE
from plsc.utils.json_text import to_json

log = logging.getLogger("plsc")

FINDINGS_FILE = "findings.jsonl"
SYMPTOMS: tuple[SymptomMaker, ...] = (
    *(AbsentLabels, SingleLabels, LargeMargin, UnfitRate),
    *(StuckLoss, CollapsedFeatures, DataWait, FallingVerification),
)


class TrainingDoctor(Observer):
    """Tells the symptoms of a run, each once. docs/doctor.md lists them.

    Args:
        records: the training data; None where it is not the library's own.
        symptoms: by default all.

    Example:
        >>> Trainer(config).train()  # part of every run, unless training_doctor is off
    """

    def __init__(self, records: Records | None = None, symptoms: Sequence[SymptomMaker] = SYMPTOMS) -> None:
        self._records, self._makers = records, symptoms
        self._symptoms: list[Symptom] = []

    def on_start(self, run: Run) -> None:
        self._run, self._path = run, Path(run.config.model_save_dir) / FINDINGS_FILE
        self._guarded(self._begin)

    def on_step(self, step: Step) -> None:
        if self._symptoms and self._run.is_logged(step):
            self._guarded(lambda: self._see_point(_point_of(step)))

    def on_verify(self, step: Step, results: Mapping[str, float]) -> None:
        if self._symptoms:
            self._guarded(lambda: self._see_verification(step.number, results))

    def _begin(self) -> None:
        run, checkpoint, settings = self._run, self._run.checkpoint, self._run.config
        if not run.has_steps:
            return
        is_own = checkpoint is not None and checkpoint.resolve().parent == self._path.parent.resolve()
        case = Case(
            config=settings,
            global_batch=run.global_batch,
            steps_per_epoch=_steps_per_epoch(run),
            counts=None if self._records is None else count_classes(self._records, settings.num_classes),
            is_trained=bool(settings.pretrained) or (not is_own and bool(settings.checkpoint_dir or run.first_step)),
        )
        self._symptoms = [make(case) for make in self._makers]
        if not is_own:
            self._path.unlink(missing_ok=True)  # of the run before in this folder
            self._ask(run.first_step, lambda symptom: symptom.at_start())
            return
        told = {line.get("finding") for line in _lines(self._path)}
        self._symptoms = [symptom for symptom in self._symptoms if symptom.name not in told]
        for line in _lines(self._path.with_name(METRICS_FILE)):
            if line["step"] <= run.first_step:
                self._see_again(line)

    def _see_again(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, of the part of the run that was trained before."""
        numbers = {name: math.nan if value is None else value for name, value in line.items() if name != "event"}
        numbers = {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))}
        if line.get("event") == "verify":
            self._see_verification(line["step"], numbers)
        elif line.get("event") == "step":
            loss, rate = numbers.get("loss", math.nan), numbers.get("lr", math.nan)
            self._see_point(Point(line["step"], loss, rate, numbers))

    def _see_point(self, point: Point) -> None:
        self._ask(point.step, lambda symptom: symptom.at_point(point))

    def _see_verification(self, step: int, results: Mapping[str, float]) -> None:
        self._ask(step, lambda symptom: symptom.at_verification(step, results))

    def _ask(self, step: int, question: Callable[[Symptom], Diagnosis | None]) -> None:
        for symptom in list(self._symptoms):
            found = question(symptom)
            if found is not None:
                self._symptoms.remove(symptom)
                self._tell(symptom.name, step, found)

    def _tell(self, name: str, step: int, found: Diagnosis) -> None:
        log.warning("training doctor: %s", found)
        line = {"finding": name, "step": step, **found._asdict()}
        with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as file:  # it is in the log, too
            file.write(to_json(line) + "\n")

    def _guarded(self, action: Callable[[], None]) -> None:
        """Carry out an action; one that fails ends the doctor, and not the training."""
        try:
            action()
        except Exception as error:
            self._symptoms = []
            log.warning("training doctor: it failed and looks no more in this run: %s: %s", type(error).__name__, error)


def count_classes(records: Records, num_classes: int) -> ClassCounts:
    """How many classes have no image, and how many have one, where the source knows its labels without reading images.

    Args:
        records: the training data.
        num_classes: C, for a source that does not know its labels.
    """
    labels = records.known_labels()
    if labels is None or not len(labels):
        return ClassCounts(len(records), num_classes, None, None)
    counts = np.bincount(labels)
    absent = int((counts == 0).sum())
    return ClassCounts(len(labels), len(counts) - absent, absent, int((counts == 1).sum()))


def _point_of(step: Step) -> Point:
    """A logged step. Its numbers were read for metrics.jsonl, so that the device is not waited for."""
    return Point(step.number, step.values["loss"], step.values["lr"], step.measures.scalars)


def _steps_per_epoch(run: Run) -> int | None:
    epochs, steps = run.config.train_epochs, run.total_steps
    return None if epochs is None or steps is None else max(1, steps // epochs)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON objects, damaged ones left out; none where there is no file."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and isinstance(found.get("step"), int):
                yield found
