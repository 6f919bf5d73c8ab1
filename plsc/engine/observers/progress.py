"""The progress of a run: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from plsc.engine.observers import Observer, Run, Step
from plsc.utils.logging import is_terminal, progress_bar

log = logging.getLogger("plsc")

# Seconds between two updates of the bar: each reads the loss, which waits for the device.
_BAR_SECONDS = 0.5


class Progress(Observer):
    """Shows loss, learning rate, images per second and the time left.

    On a terminal it is a bar, updated twice a second. Elsewhere it is a log line per logged step (`log_period`).
    Images per second include waiting for data, and leave out verification and saving.

    Example:
        >>> Trainer(config).train()  # part of every run
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def on_start(self, run: Run) -> None:
        self._run = run
        self._start = time.perf_counter()
        self._shown_step, self._shown_seconds = run.first_step, 0.0
        if is_terminal(sys.stderr):
            self._bar = progress_bar(total=run.total_steps, initial=run.first_step, unit="step", dynamic_ncols=True)

    def on_step(self, step: Step) -> None:
        if not self._is_due(step):
            return
        values = {name: f"{value:.4g}" for name, value in step.values.items()}
        seconds = step.seconds  # after the values, for which the device was waited for
        done = step.number - self._shown_step
        speed = done * self._run.global_batch / max(seconds - self._shown_seconds, 1e-9)
        self._shown_step, self._shown_seconds = step.number, seconds
        shown = {"epoch": str(step.epoch), **values, "img/s": f"{speed:.0f}"}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done)
            return
        total = f"/{self._run.total_steps}" if self._run.total_steps else ""
        text = ", ".join(f"{name} {value}" for name, value in shown.items())
        log.info("step %d%s: %s%s", step.number, total, text, self._time_left(step))

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def _is_due(self, step: Step) -> bool:
        if self._bar is None:
            return self._run.is_logged(step)
        return step.seconds - self._shown_seconds > _BAR_SECONDS or step.number == self._run.total_steps

    def _time_left(self, step: Step) -> str:
        if not self._run.total_steps:
            return ""
        seconds_per_step = (time.perf_counter() - self._start) / (step.number - self._run.first_step)
        return f", {tqdm.format_interval(seconds_per_step * (self._run.total_steps - step.number))} left"
