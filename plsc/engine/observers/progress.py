"""What a run shows: a progress bar on a terminal, plain lines elsewhere. Observers are told, never asked."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

log = logging.getLogger("plsc")

# Between updates of the bar: reading the loss waits for the device.
_BAR_SECONDS = 0.5


class Progress:
    """Loss, rate, images per second (waiting for data included) and time left of one run.

    Args:
        total_steps: steps of the whole run; None where a reader's length is unknown.
        first_step: where a resumed run begins.
        images_per_step: the global batch.
        log_period: steps between lines where standard error is no terminal.
        enabled: False on all ranks but one.
    """

    def __init__(
        self, total_steps: int | None, first_step: int, images_per_step: int, log_period: int, enabled: bool = True
    ) -> None:
        self._total, self._images, self._period = total_steps, images_per_step, log_period
        self._first_step = self._last_step = first_step
        self._start = self._last_time = time.perf_counter()
        self._trained = 0.0
        self._enabled = enabled
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def wants(self, step: int) -> bool:
        """Whether `update` after this step will be shown; reading a loss that is not would be wasted."""
        if not self._enabled or self._bar is None:
            return self._enabled and ((step + 1) % self._period == 0 or step + 1 == self._total)
        return time.perf_counter() - self._last_time > _BAR_SECONDS or step + 1 == self._total

    def update(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Show that `step` (0-based) is done."""
        now = time.perf_counter()
        done = step + 1 - self._last_step
        speed = done * self._images / max(now - self._last_time, 1e-9)
        self._trained += now - self._last_time
        self._last_step, self._last_time = step + 1, now
        shown = {"epoch": epoch, **{name: f"{value:.4g}" for name, value in values.items()}, "img/s": f"{speed:.0f}"}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done)
            return
        left = ""
        if self._total:
            seconds = (now - self._start) / (step + 1 - self._first_step) * (self._total - step - 1)
            left = f", {tqdm.format_interval(seconds)} left"
        of = f"/{self._total}" if self._total else ""
        log.info("step %d%s: %s%s", step + 1, of, ", ".join(f"{k} {v}" for k, v in shown.items()), left)

    @property
    def images_per_second(self) -> float:
        """Over the whole run, waiting for data included, verification and checkpoints left out."""
        return (self._last_step - self._first_step) * self._images / max(self._trained, 1e-9)

    def pause(self) -> None:
        """Leave time that is no training (verification, checkpoints) out of images per second."""
        if self._bar is not None:
            self._bar.refresh()

    def resume(self) -> None:
        """End of `pause`."""
        self._last_time = time.perf_counter()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
