"""The learning rate as a function of the training step.

A schedule is any function step -> learning rate, where step counts from 0. `config.lr_schedule` holds such a function,
or the name of one of `SCHEDULES`. The named schedules share their peak and their warm-up:

    peak        lr * global_batch / 1024, the rule of PLSC 0.1 (linear scaling as in Goyal et al., 2017)
    warm-up     W steps, linear up to the peak, from lr where peak > lr, else from 0; W is warmup_steps, or
                warmup_epochs * steps_per_epoch
    afterwards  peak * decay(step)

They differ in the decay, with T the steps of the whole run and p = (step - W) / (T - W):

    step        lr_decay_factor ** (number of lr_steps, or of lr_epochs in steps, that are <= step)
    cosine      (1 + cos(pi p)) / 2                       SGDR without restarts, Loshchilov and Hutter, 2017
    polynomial  (1 - p) ** lr_power
    one_cycle   e + (1 - e) (1 + cos(pi p)) / 2           after Smith and Topin, 2018, with e = 1 / 250,000

The warm-up of one_cycle starts at peak / 25, and takes 30 % of the run where no warm-up is set. Its momentum stays as
it is.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.utils.hints import setter
from plsc.utils.numbers import as_number
from plsc.utils.settings import text_of

Schedule = Callable[[int], float]


# Of one_cycle: the part of a run that the rise takes, what the peak is divided by at the start, and at the end.
_RISE, _START, _END = 0.3, 25.0, 250_000.0


class Length(NamedTuple):
    """What a schedule knows of a run.

    Attributes:
        steps_per_epoch: None where the number of training images is unknown.
        total: T, steps of the whole run; None where unknown.
        warmup: W.
    """

    steps_per_epoch: int | None
    total: int | None
    warmup: int


def step_decay(config: Config, length: Length) -> Schedule:
    """`lr_decay_factor` at each of `lr_epochs`, or else of `lr_steps`, which need no number of steps."""
    boundaries = list(config.lr_steps)
    if config.lr_epochs:
        steps_per_epoch = _steps_per_epoch(config, length.steps_per_epoch, "lr_epochs")
        boundaries = [epoch * steps_per_epoch for epoch in config.lr_epochs]
    return lambda step: config.lr_decay_factor ** bisect.bisect_right(boundaries, step)


def cosine_decay(config: Config, length: Length) -> Schedule:
    """Half a cosine, from 1 at the end of the warm-up to 0 at the end of the last step."""
    progress = _progress(config, length)
    return lambda step: 0.5 * (1.0 + math.cos(math.pi * progress(step)))


def polynomial_decay(config: Config, length: Length) -> Schedule:
    """A polynomial of degree `lr_power`, from 1 at the end of the warm-up to 0 at the end of the last step."""
    progress = _progress(config, length)
    return lambda step: (1.0 - progress(step)) ** config.lr_power


def one_cycle_decay(config: Config, length: Length) -> Schedule:
    """Half a cosine, from 1 at the end of the rise to 1 / 250,000 at the end of the last step."""
    cosine = cosine_decay(config, length)
    return lambda step: 1.0 / _END + (1.0 - 1.0 / _END) * cosine(step)


# By the names of plsc.config.SCHEDULES. Each gives the factor on the peak by step, from the end of the warm-up on.
SCHEDULES: dict[str, Callable[[Config, Length], Schedule]] = {
    "step": step_decay,
    "cosine": cosine_decay,
    "polynomial": polynomial_decay,
    "one_cycle": one_cycle_decay,
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
    length = _length(config, steps_per_epoch, total_steps)
    peak, warmup_steps = peak_of(config, global_batch), length.warmup
    start = config.lr if peak > config.lr else 0.0
    if config.lr_schedule == "one_cycle":
        start = peak / _START
    decay = SCHEDULES[config.lr_schedule](config, length)

    def learning_rate(step: int) -> float:
        if step < warmup_steps:
            return start + (peak - start) * (step + 1) / warmup_steps
        return peak * decay(step)

    return learning_rate


def peak_of(config: Config, global_batch: int) -> float:
    """The learning rate at the end of the warm-up, by the rule of linear scaling."""
    return config.lr * global_batch / 1024


def explain_learning_rate(
    config: Config,
    schedule: Schedule,
    step: int,
    *,
    global_batch: int,
    steps_per_epoch: int | None,
    total_steps: int | None,
) -> str:
    """The learning rate of a step and its reason, as 'learning rate of step 1: 0.003125 (lr 0.1 at 1024 -> 0.003125 at
    32)', with those of backbone and class centers where they differ.

    Args:
        config: the settings.
        schedule: made by `build_schedule` of the same settings.
        step: from 0.
        global_batch: images per step of all ranks.
        steps_per_epoch: as for `build_schedule`.
        total_steps: as for `build_schedule`.
    """
    value = schedule(step)
    if callable(config.lr_schedule):
        reasons = ["by the function of lr_schedule"]
    else:
        peak, length = peak_of(config, global_batch), _length(config, steps_per_epoch, total_steps)
        reasons = [f"lr {config.lr:g} at 1024 -> {peak:g} at {global_batch}"]
        if step < length.warmup:
            reasons.append(f"step {step + 1} of {length.warmup} of the warm-up")
            if total_steps is not None and total_steps < length.warmup:
                reasons.append(f"the run ends at step {total_steps}, before the warm-up")
        elif value != peak:
            reasons.append(f"{config.lr_schedule}, {value / peak:.3g} of that at step {step + 1}")
    factors = {"backbone": config.backbone_lr_factor, "class centers": config.head_lr_factor}
    own = [f"{name} {value * factor:g} (x {factor:g})" for name, factor in factors.items() if factor != 1.0]
    reason = "; ".join(reasons)
    return ", ".join([f"learning rate of step {step + 1}: {value:g} ({reason})", *own])


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


def _length(config: Config, steps_per_epoch: int | None, total_steps: int | None) -> Length:
    warmup = config.warmup_steps
    if config.warmup_epochs:
        warmup = config.warmup_epochs * _steps_per_epoch(config, steps_per_epoch, "warmup_epochs")
    if config.lr_schedule == "one_cycle" and not warmup and total_steps is not None:
        warmup = max(1, round(_RISE * total_steps))
    return Length(steps_per_epoch, total_steps, warmup)


def _steps_per_epoch(config: Config, steps_per_epoch: int | None, setting: str) -> int:
    """The number that a setting in epochs depends on."""
    if steps_per_epoch is None:
        in_steps = setter("warmup_steps") if setting == "warmup_epochs" else setter("lr_steps")
        raise ConfigError(
            f"{setting} is {text_of(getattr(config, setting))}, but the number of training images is unknown; "
            f"give it with {setter('train_image_num')}, or use {in_steps}"
        )
    return steps_per_epoch


def _progress(config: Config, length: Length) -> Schedule:
    """The share of the steps after the warm-up that are done before a step: 0 to 1."""
    if length.total is None:
        raise ConfigError(
            f"lr_schedule is {config.lr_schedule!r}, which needs the number of training steps, but the length of "
            f"train_reader is unknown; give the number of images with {setter('train_image_num')}, or that of "
            f"steps with {setter('train_steps')}"
        )
    steps = max(1, length.total - length.warmup)
    return lambda step: min(1.0, (step - length.warmup) / steps)
