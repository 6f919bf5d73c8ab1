"""Observers by name that write the record of a run for other tools: TensorBoard, SwanLab, MLflow, Weights & Biases.

`loggers` chooses them. Each needs a package, which is imported where it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from plsc.config import LOGGERS
from plsc.engine.observers import Observer
from plsc.errors import ConfigError
from plsc.utils.hints import setter

_CLASSES = {"tensorboard": "TensorBoard", "swanlab": "SwanLab", "mlflow": "MLflow", "wandb": "WeightsAndBiases"}


def make_loggers(names: Sequence[str], *, is_main: bool) -> list[Observer]:
    """The observers that the setting `loggers` names.

    Args:
        names: of `LOGGERS`, or 'package.module:Class' of an `Observer` that is made without arguments.
        is_main: whether this is rank 0. Another rank makes only those of other modules, which may be on every rank.

    Raises:
        ConfigError: a class does not exist, cannot be made, or is no observer.
        MissingDependencyError: the package of one is not installed.
    """
    made: list[Observer] = []
    for name in names:
        if name not in LOGGERS:
            made.append(_make_other(name))
        elif is_main:
            module = importlib.import_module(f"plsc.engine.observers.loggers.{name}_logger")
            made.append(getattr(module, _CLASSES[name])())
    return made


def _make_other(name: str) -> Observer:
    module, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # a user's module may raise any
        raise ConfigError(
            f"{setter('loggers', name)}: {type(error).__name__}: {error}; expected one of {', '.join(LOGGERS)}, or "
            f"'package.module:Class' of an observer that is made without arguments"
        ) from error
    if not isinstance(made, Observer):
        raise ConfigError(
            f"{setter('loggers', name)}: {attribute} is no observer; expected a subclass of "
            f"plsc.engine.observers.Observer"
        )
    return made
