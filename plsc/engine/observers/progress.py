"""The progress of a run: a line that changes on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from plsc.engine.observers import Observer, Run, Step
from plsc.engine.observers.best import Best, better
from plsc.utils.logging import progress_bar, shows_bars
from plsc.utils.memory import reserved_gpu_memory, resident_memory

log = logging.getLogger("plsc")

# Seconds between two updates of the bar: each reads the loss, which waits for the device.
_BAR_SECONDS = 0.5
# Seconds after which it is told how long an epoch and the rest take.
_ESTIMATE_SECONDS = 60.0
# The share of the time from which on waiting for data is shown.
_NOTABLE_WAIT = 0.05
# A terminal of so many columns has a bar beside the figures, of so many columns.
_WIDE, _BAR_COLUMNS = 120, 20
_TIMES = "{n_fmt}/{total_fmt} {elapsed}<{remaining}"
# Columns by which the times may grow until the next update, as from ? to 00:10 or from 59:59 to 1:00:00.
_SPARE = 4


class Progress(Observer):
    """Shows loss, learning rate, images per second, waiting for data, the best verification, memory and the time left.

    On a terminal it is one line, updated twice a second, with as many figures as it has columns for. Elsewhere it is a
    log line for the first step, for each logged step (`log_period`) and for the last. Images per second include waiting
    for data, and leave out verification and saving. After a minute of training the log says how long an epoch and the
    rest take.

    Args:
        on_gpu: show the memory of the GPU, too.

    Example:
        >>> Trainer(config).train()  # part of every run
    """

    def __init__(self, *, on_gpu: bool = False) -> None:
        self._on_gpu = on_gpu
        self._bar: tqdm[Any] | None = None

    def on_start(self, run: Run) -> None:
        self._run, self._start = run, time.perf_counter()
        self._shown_step, self._shown_seconds, self._shown_wait = run.first_step, 0.0, 0.0
        self._best: Best | None = None
        self._has_estimated = False
        if shows_bars() and run.has_steps:
            total, first = run.total_steps, run.first_step
            self._bar = progress_bar(
                total=total,
                initial=first,
                postfix=f"making step {first + 1}",
                bar_format=_TIMES + "{postfix}",
                dynamic_ncols=True,
            )

    def on_step(self, step: Step) -> None:
        self._estimate(step)
        if not self._is_due(step):
            return
        values = {name: f"{value:.4g}" for name, value in step.values.items()}
        seconds = step.seconds  # after the values, for which the device was waited for
        done, taken = step.number - self._shown_step, max(seconds - self._shown_seconds, 1e-9)
        wait = (step.clock.data_seconds - self._shown_wait) / taken
        self._shown_step, self._shown_seconds, self._shown_wait = step.number, seconds, step.clock.data_seconds
        figures = [f"{name} {value}" for name, value in {"epoch": str(step.epoch), **values}.items()]
        if not self._is_first(step):  # which starts processes and compiles kernels, and says nothing of the speed
            figures.append(f"img/s {done * self._run.global_batch / taken:.0f}")
            figures += [f"data wait {min(wait, 1.0):.0%}"] if wait >= _NOTABLE_WAIT else []
        if self._bar is not None:
            self._show(self._bar, figures, done)
        else:
            total = f"/{self._run.total_steps}" if self._run.total_steps else ""
            log.info("step %d%s: %s%s", step.number, total, ", ".join(figures), self._time_left(step))

    def on_verify(self, step: Step, results: Mapping[str, float]) -> None:
        self._best = better(self._best, self._run.config.keep_best, results, step=step.number)

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, bar: tqdm[Any], figures: list[str], done: int) -> None:
        columns = shutil.get_terminal_size().columns
        is_wide = columns >= _WIDE and bar.total
        begin = f"|{{bar:{_BAR_COLUMNS}}}| " if is_wide else ""
        bar.bar_format = f"{begin}{_TIMES}{{postfix}}"
        times = bar.format_meter(**{**bar.format_dict, "n": bar.n + done, "bar_format": _TIMES})
        room = columns - len(times) - len(", ") - _SPARE - (_BAR_COLUMNS + len("|| ")) * bool(is_wide)
        best = [str(self._best)] if self._best is not None else []
        bar.set_postfix_str(fitting([*figures, *best, self._memory()], room), refresh=False)
        bar.update(done)
        if self._shown_step == self._run.first_step + done:  # tqdm would wait for a tenth of a second
            bar.refresh()

    def _memory(self) -> str:
        host = f"{resident_memory() / 1e9:.1f} GB"
        return f"{host}, GPU {reserved_gpu_memory() / 1e9:.1f} GB" if self._on_gpu else host

    def _estimate(self, step: Step) -> None:
        """Say once how long an epoch and the rest take."""
        of_epoch, total = self._run.steps_per_epoch, self._run.total_steps
        if self._has_estimated or step.seconds < _ESTIMATE_SECONDS:
            return
        self._has_estimated = True
        seconds = step.seconds / (step.number - self._run.first_step)
        times = [f"an epoch about {tqdm.format_interval(seconds * of_epoch)}"] if of_epoch else []
        times += [f"the rest of the run about {tqdm.format_interval(seconds * (total - step.number))}"] if total else []
        if times:
            log.info("%s, without verification and saving", ", ".join(times))

    def _is_first(self, step: Step) -> bool:
        return step.number == self._run.first_step + 1

    def _is_due(self, step: Step) -> bool:
        if self._is_first(step):
            return True
        if self._bar is None:
            return self._run.is_logged(step)
        return step.seconds - self._shown_seconds > _BAR_SECONDS or step.number == self._run.total_steps

    def _time_left(self, step: Step) -> str:
        if not self._run.total_steps or self._is_first(step):
            return ""
        seconds_per_step = (time.perf_counter() - self._start) / (step.number - self._run.first_step)
        return f", {tqdm.format_interval(seconds_per_step * (self._run.total_steps - step.number))} left"


def fitting(figures: Sequence[str], columns: int) -> str:
    """The figures, separated by commas, without those that would take more than so many columns in all."""
    text = ""
    for figure in figures:
        longer = f"{text}, {figure}" if text else figure
        if len(longer) <= columns:
            text = longer
    return text
