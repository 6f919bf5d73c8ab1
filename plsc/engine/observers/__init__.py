"""Observers: what watches a training run without taking part in it, such as a progress bar or a file of metrics.

The trainer calls an observer's methods at the events of a run. Six observers are part of every run,
`plsc.engine.observers.progress.Progress`, `plsc.engine.observers.summary.Summary`,
`plsc.engine.observers.metrics_file.MetricsFile`, `plsc.engine.observers.launch_report.LaunchReport`,
`plsc.engine.observers.run_notes.RunNotes` and, unless it is switched off,
`plsc.engine.observers.training_doctor.TrainingDoctor`. Those that the setting `loggers` names and the
user's own are called in addition, the user's last, in the order in which they were given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from plsc.config import Config
from plsc.engine.observers.measures import Measures

_Batch = TypeVar("_Batch")


class Observer:
    """Base class of observers. Every method does nothing; override those of interest.

    Only rank 0 calls its observers, unless `every_rank` is True. All values are the same on all ranks. An exception in
    an observer stops training with a `plsc.TrainingError` that names the observer.

    Attributes:
        every_rank: call this observer on every rank. Default False.

    Example:
        >>> class PrintLoss(Observer):
        ...     def on_step(self, step):
        ...         if step.number % 100 == 0:
        ...             print(step.number, step.values["loss"])
        >>> entry.add_observer(PrintLoss())
    """

    every_rank: bool = False

    def on_start(self, run: Run) -> None:
        """Training begins."""

    def on_step(self, step: Step) -> None:
        """A step is done, and the device may still be computing it.

        Reading one of `step.values` waits for the device. An observer that does so at every step slows training down.
        """

    def on_verify(self, step: Step, results: Mapping[str, float]) -> None:
        """The network was verified.

        Args:
            step: the last step before.
            results: metrics as '<set>/<metric>', for example 'lfw/accuracy'.
        """

    def on_save(self, step: Step, path: Path) -> None:
        """A checkpoint was saved. At the end of an epoch, after `on_verify`, also where the verification failed.

        Args:
            step: the last step in it.
            path: its folder.
        """

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        """Training ends. Called once, also where an error stopped it.

        Args:
            results: the last value of everything, as `Trainer.train` returns it.
            error: what stopped training; None where training is complete.
        """


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run as it begins.

    Attributes:
        config: the settings.
        first_step: steps done before: 0, or more where training resumes from a checkpoint.
        total_steps: steps of the whole run; None where a `train_reader` has an unknown length.
        global_batch: images per step of all ranks, G.
        checkpoint: the checkpoint that training resumes from; None for a new run.
        steps_per_epoch: of every rank; None where it is unknown.
    """

    config: Config
    first_step: int
    total_steps: int | None
    global_batch: int
    checkpoint: Path | None
    steps_per_epoch: int | None = None

    @property
    def has_steps(self) -> bool:
        """Whether a step is left to train."""
        return self.total_steps is None or self.first_step < self.total_steps

    def is_logged(self, step: Step) -> bool:
        """Whether a step is logged: one in `log_period`, and the last."""
        return is_logged(step.number, log_period=self.config.log_period, total_steps=self.total_steps)


def is_logged(number: int, *, log_period: int, total_steps: int | None) -> bool:
    """Whether the step after which `number` are done is logged: one in `log_period`, and the last."""
    return number % log_period == 0 or number == total_steps


class Values(Mapping[str, float]):
    """Numbers by name that are read from the device when they are asked for, once each.

    Args:
        values: numbers, or tensors of one element.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> float:
        value = self._values[name]
        if not isinstance(value, float):
            value = self._values[name] = float(value.item() if hasattr(value, "item") else value)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._values  # Mapping would read the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class TrainingClock:
    """Seconds of training: all time since it was made, verification and saving left out.

    Attributes:
        data_seconds: of these, those in which training waited for data.
    """

    def __init__(self) -> None:
        self.data_seconds = 0.0
        self._start = time.perf_counter()
        self._paused_at: float | None = None

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self._paused_at is None else self._paused_at) - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of a `with` block."""
        self._paused_at = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - self._paused_at
            self._paused_at = None

    def reading(self, batches: Iterator[_Batch]) -> Iterator[_Batch]:
        """The batches, with the time that each takes to come added to `data_seconds`."""
        while True:
            begin = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.data_seconds += time.perf_counter() - begin
            yield batch


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step that is done.

    Attributes:
        number: steps done in the whole run, this one included: 1 after the first.
        epoch: the epoch of the step, from 0.
        values: 'loss', 'lr' (the learning rate) and, with `calc_acc`, 'acc1' and 'acc5'. Each is read from the device
            when it is asked for, which waits for the step to be computed. Read them during the call: the next step may
            overwrite what has not been read.
        clock: of the run.
        measures: what is measured at logged steps in addition; empty at other steps. Read them during the call, too.
    """

    number: int
    epoch: int
    values: Values
    clock: TrainingClock
    measures: Measures = Measures()

    @property
    def seconds(self) -> float:
        """Seconds of training in this process up to now, waiting for data included, verification and saving not."""
        return self.clock.seconds
