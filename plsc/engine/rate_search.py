"""The range test of learning rates: train a few steps with a rate that grows, and see where the loss falls and rises.

After Smith, "Cyclical Learning Rates for Training Neural Networks" (WACV 2017, arXiv 1506.01186), section 3.3. The rate
of step t of T is least (most / least)^(t / (T - 1)). Two rates are read off the smoothed loss: where it falls most
steeply by the logarithm of the rate, and a tenth of that at which it diverges. The smaller one is suggested.

It makes a trainer with this schedule and calls `Trainer.train_step`, so that nothing is saved, verified or recorded.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plsc.config import Config
from plsc.data.loader import Batch, TrainLoader
from plsc.distributed import watch
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.engine.dataloading import agreed_batches
from plsc.engine.trainer import Trainer
from plsc.engine.transfer import transfers_of
from plsc.errors import ConfigError, TrainingError
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

LEAST_STEPS, MOST_STEPS = 20, 10_000
# The loss is averaged over a tenth of the steps around each: the noise of a batch is greater than what one step gains.
_WINDOW = 10
# A loss that falls by less of its start has not fallen: batches differ by as much.
_FALLEN_SHARE = 0.02
# The loss diverges where it has given back half of what it had fallen.
_GIVEN_BACK = 0.5
# The search ends early where the mean of its last losses is so many times that of its first.
_TOO_HIGH = 2.0


class RatePoint(NamedTuple):
    """A step of the search.

    Attributes:
        rate: the learning rate.
        loss: of the step.
        smoothed: mean of the losses around it.
    """

    rate: float
    loss: float
    smoothed: float


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """What a search has found. Rates are those of a step, at the global batch of the search.

    Attributes:
        points: one for each step, in ascending order of rates.
        global_batch: images per step of all ranks, G.
        steepest: the rate at which the smoothed loss falls most steeply; None where it does not fall.
        diverged: the rate at which it diverges after it has fallen; None where it does not.
    """

    points: list[RatePoint]
    global_batch: int
    steepest: float | None
    diverged: float | None

    @property
    def suggestion(self) -> float | None:
        """The smaller of `steepest` and a tenth of `diverged`; None where the loss does not fall."""
        if self.steepest is None:
            return None
        return self.steepest if self.diverged is None else min(self.steepest, self.diverged / 10)

    @property
    def setting(self) -> float | None:
        """The setting `lr` whose peak is `suggestion`: that at 1024 images."""
        return None if self.suggestion is None else self.as_setting(self.suggestion)

    def as_setting(self, rate: float) -> float:
        """The setting `lr` whose peak is a rate of this search, to two digits."""
        return float(f"{rate * 1024 / self.global_batch:.2g}")

    def to_csv(self) -> str:
        """A line for each step: rate, loss, smoothed."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(RatePoint._fields)
        writer.writerows([f"{number:.8g}" for number in point] for point in self.points)
        return text.getvalue()


def search_rate(config: Config, *, steps: int = 100, least: float = 1e-5, most: float = 10.0) -> RateSearch:
    """Train with a growing learning rate, in memory. Every rank must call this.

    Args:
        config: the settings of the training. Those of its schedule, length, verification and saving have no effect.
        steps: of the search, 20 to 10,000.
        least: the first learning rate, above 0.
        most: the last learning rate, above `least`.

    Raises:
        ConfigError: a number is outside of its range, or as for `Trainer`.
        DataError: the training data cannot be read.
    """
    _check(steps, least, most)

    def rate_of(step: int) -> float:
        return float(least * (most / least) ** (min(step, steps - 1) / (steps - 1)))

    collectives = Collectives(init_topology(config.rank_timeout))
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(prefix="plsc-lr-find-", ignore_cleanup_errors=True))
        folder = collectives.gather_objects(own)[0]  # ranks must have the same settings
        trainer = Trainer(_settings(config, folder, steps, rate_of))
        losses = _losses(trainer, steps)
        global_batch = trainer.global_batch
    return judge([rate_of(step) for step in range(len(losses))], losses, global_batch=global_batch)


def judge(rates: Sequence[float], losses: Sequence[float], *, global_batch: int) -> RateSearch:
    """Read the rates off a course of losses.

    Args:
        rates: [n], in ascending order.
        losses: [n]; what follows the first that is not finite is left out.
        global_batch: images per step of all ranks.
    """
    finite = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    smoothed = smooth(losses[:finite])
    points = [RatePoint(*each) for each in zip(rates, losses, smoothed.tolist())]
    steepest = diverged = None
    lowest = int(smoothed.argmin()) if finite else 0
    if lowest > 0 and smoothed[0] - smoothed[lowest] > _FALLEN_SHARE * abs(smoothed[0]):
        slopes = np.gradient(smoothed, np.log10(rates[:finite]))
        first = min(_half_window(finite), lowest)  # before, fewer losses are averaged
        steepest = rates[first + int(slopes[first : lowest + 1].argmin())]
        limit = smoothed[lowest] + _GIVEN_BACK * (smoothed[0] - smoothed[lowest])
        above = [index for index in range(lowest, finite) if smoothed[index] > limit]
        last = above[0] if above else finite  # the first that is not finite
        diverged = rates[last] if last < len(rates) and (above or finite < len(losses)) else None
    return RateSearch(points=points, global_batch=global_batch, steepest=steepest, diverged=diverged)


def smooth(losses: Sequence[float]) -> npt.NDArray[np.float64]:
    """[n]: the mean of a tenth of the losses around each; of fewer at both ends, as many on either side."""
    values, half = np.asarray(losses, np.float64), _half_window(len(losses))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(half, np.minimum(places, places[::-1]))
    means: npt.NDArray[np.float64] = (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
    return means


def _half_window(count: int) -> int:
    return max(1, count // (2 * _WINDOW))


def _check(steps: int, least: float, most: float) -> None:
    if not LEAST_STEPS <= steps <= MOST_STEPS:
        raise ConfigError(f"steps: got {steps}; expected {LEAST_STEPS} to {MOST_STEPS:,}")
    if not 0 < least < most < math.inf:
        raise ConfigError(
            f"the learning rates run from {least:g} to {most:g}; expected numbers above 0, the first below the second"
        )


def _settings(config: Config, folder: str, steps: int, rate_of: object) -> Config:
    """The settings of a run of so many steps that leaves nothing behind."""
    found = config.model_copy()
    found.assign(
        lr_schedule=rate_of,
        train_epochs=None,
        train_steps=steps,
        warmup_epochs=0,
        warmup_steps=0,
        lr_epochs=(),
        with_test=False,
        keep_best=None,
        auto_resume=False,
        model_save_dir=folder,
        stage_dir="",
        on_nonfinite="stop",
        training_doctor=False,
    )
    if found.checkpoint_dir:
        found.assign(counters="anew")
    return found


def _losses(trainer: Trainer, steps: int) -> list[float]:
    """The losses of the steps, up to the first that is not finite or much too high."""
    losses: list[float] = []
    window = max(1, steps // _WINDOW)
    with watch.watched(), contextlib.closing(trainer.loader):
        for batch in _batches(trainer):
            try:
                losses.append(float(trainer.train_step(batch)["loss"]))
            except TrainingError as error:  # of the step before, on all ranks
                log.info("the search ends after %d of %s: %s", len(losses), counted(steps, "step"), error)
                losses[-1:] = [math.nan]
                break
            first, last = losses[:window], losses[-window:]
            is_too_high = sum(last) / len(last) > _TOO_HIGH * sum(first) / len(first)
            if len(losses) == steps or not math.isfinite(losses[-1]) or is_too_high:
                break
    return losses


def _batches(trainer: Trainer) -> Iterator[Batch]:
    """The batches of one epoch after the other."""
    while True:
        batches = trainer.loader.epoch(trainer.epoch, 0)
        if not isinstance(trainer.loader, TrainLoader):
            batches = agreed_batches(batches, trainer.collectives, transfers_of(trainer.topology))
        yield from batches
        if not trainer.step_in_epoch:
            raise TrainingError(f"epoch {trainer.epoch}: the training data yielded no batch")
        trainer.epoch, trainer.step_in_epoch = trainer.epoch + 1, 0
