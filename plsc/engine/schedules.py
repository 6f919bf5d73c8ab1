"""The learning rate as a function of the training step.

A schedule is any function step -> learning rate, where step counts from 0. `config.lr_schedule` holds such a function,
or the name of one of `SCHEDULES`. The named schedules share their peak and their warm-up:

    peak        lr * global_batch / 1024, the rule of PLSC 0.1 (linear scaling as in Goyal et al., 2017)
    warm-up     W = warmup_epochs * steps_per_epoch steps, linear up to the peak, from lr where peak > lr, else from 0
    afterwards  peak * decay(step)

They differ in the decay, with T the steps of the whole run and p = (step - W) / (T - W):

    step        lr_decay_factor ** (number of lr_steps that are <= step)
    cosine      (1 + cos(pi p)) / 2
    poly        (1 - p) ** 2
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.utils.hints import setter
from plsc.utils.numbers import as_number

Schedule = Callable[[int], float]


def step_decay(config: Config, *, warmup_steps: int, total_steps: int | None) -> Schedule:
    """`lr_decay_factor` at each of `lr_steps`; needs no number of steps."""
    return lambda step: config.lr_decay_factor ** bisect.bisect_right(config.lr_steps, step)


def cosine_decay(config: Config, *, warmup_steps: int, total_steps: int | None) -> Schedule:
    """Half a cosine, from 1 at the end of the warm-up to 0 at the end of the last step."""
    progress = _progress(config, warmup_steps, total_steps)
    return lambda step: 0.5 * (1.0 + math.cos(math.pi * progress(step)))


def poly_decay(config: Config, *, warmup_steps: int, total_steps: int | None) -> Schedule:
    """A polynomial of degree 2, from 1 at the end of the warm-up to 0 at the end of the last step."""
    progress = _progress(config, warmup_steps, total_steps)
    return lambda step: (1.0 - progress(step)) ** 2


# By the names of plsc.config.SCHEDULES. Each gives the factor on the peak by step, from the end of the warm-up on.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "step": step_decay,
    "cosine": cosine_decay,
    "poly": poly_decay,
}


def build_schedule(
    config: Config, global_batch: int, *, steps_per_epoch: int | None, total_steps: int | None
) -> Schedule:
    """The schedule that `config.lr_schedule` names, or the function that it holds.

    Args:
        config: the settings.
        global_batch: images per step of all ranks.
        steps_per_epoch: None where the number of training images is unknown.
        total_steps: steps of the whole run; None where unknown.

    Returns:
        A schedule, which raises `ConfigError` where a function of the user fails or returns no learning rate.

    Raises:
        ConfigError: the schedule depends on a number of steps that is unknown.
    """
    if callable(config.lr_schedule):
        return _checked(config.lr_schedule)
    if config.warmup_epochs and steps_per_epoch is None:
        raise ConfigError(
            f"warmup_epochs is {config.warmup_epochs}, but the number of training images is unknown; "
            f"give it with {setter('train_image_num')}, or {setter('warmup_epochs', 0)}"
        )
    peak = config.lr * global_batch / 1024
    start = config.lr if peak > config.lr else 0.0
    warmup_steps = config.warmup_epochs * (steps_per_epoch or 0)
    decay = SCHEDULES[config.lr_schedule](config, warmup_steps=warmup_steps, total_steps=total_steps)

    def learning_rate(step: int) -> float:
        if step < warmup_steps:
            return start + (peak - start) * (step + 1) / warmup_steps
        return peak * decay(step)

    return learning_rate


def try_schedule(schedule: Schedule, first_step: int, *, total_steps: int | None) -> dict[int, float]:
    """Find out before the first step whether a schedule gives learning rates: at some steps, the last among them.

    Args:
        schedule: made by `build_schedule`.
        first_step: where training begins.
        total_steps: steps of the whole run; None where unknown.

    Returns:
        The learning rates by step, from 0.

    Raises:
        ConfigError: it gives none; names the step.
    """
    last = first_step + 1 if total_steps is None else max(first_step, total_steps - 1)
    steps = {first_step, min(first_step + 1, last), (first_step + last) // 2, last}
    return {step: schedule(step) for step in sorted(steps)}


def _checked(function: Callable[[int], Any]) -> Schedule:
    """A user's function whose values are numbers that a class center survives: NaN would stay in it for good."""

    def learning_rate(step: int) -> float:
        try:
            value = function(step)
        except Exception as error:
            raise ConfigError(
                f"lr_schedule: the function raised {type(error).__name__} for step {step}: {error}; it is called with "
                f"any step of the run, from 0 on"
            ) from error
        number = as_number(value)
        if not 0 <= number < math.inf:
            raise ConfigError(
                f"lr_schedule: the function returned {value!r} ({type(value).__name__}) for step {step}; expected a "
                f"number of 0 or more"
            )
        return number

    return learning_rate


def _progress(config: Config, warmup_steps: int, total_steps: int | None) -> Schedule:
    """The share of the steps after the warm-up that are done before a step: 0 to 1."""
    if total_steps is None:
        raise ConfigError(
            f"lr_schedule is {config.lr_schedule!r}, which needs the number of training steps, but the length of "
            f"train_reader is unknown; give the number of images with {setter('train_image_num')}, or that of "
            f"steps with {setter('train_steps')}"
        )
    steps = max(1, total_steps - warmup_steps)
    return lambda step: min(1.0, (step - warmup_steps) / steps)
