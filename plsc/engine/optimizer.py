"""The learning rate as a function of the step, the optimizer, and its state under names that last."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.errors import CheckpointError, ConfigError
from plsc.losses import row_optimizers as updates

Schedule = Callable[[int], float]
MASTER = "master"  # the kind of a float32 copy of a parameter of lower precision


def step_schedule(config: Config, global_batch: int, steps_per_epoch: int) -> Schedule:
    """The rate by step that a configuration asks for, 0-based: warm-up, then decay at `lr_steps`.

    The peak is lr * global_batch / 1024 (the rule of PLSC 0.1; linear scaling as in Goyal et al., 2017).
    Warm-up rises linearly to it over `warmup_epochs`: from lr where the peak is higher, else from 0.
    """
    if callable(config.lr_schedule):
        return config.lr_schedule
    peak = config.lr * global_batch / 1024
    warmup_steps = config.warmup_epochs * steps_per_epoch
    start = config.lr if peak > config.lr else 0.0

    def rate(step: int) -> float:
        if step < warmup_steps:
            return start + (peak - start) * (step + 1) / warmup_steps
        return peak * config.lr_decay_factor ** bisect.bisect_right(config.lr_steps, step)

    return rate


class NamedOptimizer:
    """A Paddle optimizer whose state has names that last: '<parameter>:<kind>', e.g. 'conv.weight:velocity'.

    It is the user's (`set_optimizer`), or Momentum 0.9 with L2 5e-4, as in PLSC 0.1.

    Args:
        config: the settings.
        named: the parameters under names that do not change between processes.

    Raises:
        ConfigError: the user's factory does not return a Paddle optimizer whose rate can be set.
    """

    def __init__(self, config: Config, named: Mapping[str, paddle.Tensor]) -> None:
        self._named = dict(named)
        self._optimizer = _build(config.optimizer or _default, config.lr, list(self._named.values()))

    @property
    def kind(self) -> str:
        return type(self._optimizer).__name__

    @property
    def rule(self) -> updates.UpdateRule | None:
        """The same arithmetic for some rows at a time, or None where the optimizer does more than that."""
        plain = all(
            parameter.optimize_attr["learning_rate"] == 1.0 and parameter.regularizer is None and parameter.trainable
            for parameter in self._named.values()
        )
        return _rule_of(self._optimizer) if plain else None

    def step(self, rate: float, scaler: paddle.amp.GradScaler | None = None) -> None:
        """Update the parameters from their gradients and clear those."""
        self._optimizer.set_lr(rate)
        # Paddle names an optimizer's state by a counter of the process. The guard restarts that counter, so
        # that the state of a parameter has one name in every process, which `load` relies on.
        with paddle.utils.unique_name.guard():
            if scaler is None:
                self._optimizer.step()
            else:
                scaler.step(self._optimizer)
        self._optimizer.clear_grad(set_to_zero=False)

    def state(self) -> dict[str, paddle.Tensor]:
        """The tensors to save; none before the first step."""
        longest_first = sorted(self._named.items(), key=lambda item: -len(item[1].name))
        found = self._optimizer.state_dict()
        state = {}
        for key, value in found.items():
            if key in ("LR_Scheduler", "master_weights"):
                continue
            name, parameter = next(item for item in longest_first if key.startswith(item[1].name + "_"))
            kind = re.sub(r"_\d+$", "", key[len(parameter.name) + 1 :])
            state[f"{name}:{kind}"] = value
        for name, parameter in self._named.items():
            if parameter.name in found.get("master_weights", {}):
                state[f"{name}:{MASTER}"] = found["master_weights"][parameter.name]
        return state

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over the state of another process, before the first step.

        Raises:
            CheckpointError: the state names a parameter that is not there.
        """
        restored: dict[str, Any] = {}
        for key, value in state.items():
            name, kind = key.rsplit(":", 1)
            if name not in self._named:
                raise CheckpointError(f"the checkpoint holds optimizer state of '{name}', which this network lacks")
            own_name, tensor = self._named[name].name, paddle.to_tensor(value)
            if kind == MASTER:
                restored.setdefault("master_weights", {})[own_name] = tensor
            else:
                restored[f"{own_name}_{kind}_0"] = tensor
        self._optimizer.set_state_dict(restored)


def _rule_of(optimizer: Any) -> updates.UpdateRule | None:
    # Paddle's optimizers tell their settings through these attributes alone.
    if optimizer._grad_clip is not None or getattr(optimizer, "_multi_precision", False):
        return None
    decay = optimizer.regularization
    l2 = 0.0 if decay is None else decay._coeff if isinstance(decay, paddle.regularizer.L2Decay) else None
    if type(optimizer) is paddle.optimizer.Momentum and not optimizer._use_nesterov and l2 == 0.0:
        return updates.Momentum(optimizer._momentum, optimizer._regularization_coeff)
    if type(optimizer) is paddle.optimizer.SGD and l2 is not None:
        return updates.SGD(l2)
    if (
        type(optimizer) is paddle.optimizer.AdamW
        and not optimizer._amsgrad
        and not optimizer._lazy_mode
        and optimizer._lr_ratio is None
        and optimizer._apply_decay_param_fun is None
    ):
        return updates.AdamW(optimizer._beta1, optimizer._beta2, optimizer._epsilon, optimizer._weight_decay)
    return None


def _default(learning_rate: float, parameters: list) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.Momentum(learning_rate, 0.9, parameters=parameters, weight_decay=5e-4)


def _build(factory: Callable[..., Any], rate: float, parameters: list) -> paddle.optimizer.Optimizer:
    try:
        optimizer = factory(learning_rate=rate, parameters=parameters)
    except TypeError as error:
        raise ConfigError(
            f"set_optimizer: {factory!r} could not be called as factory(learning_rate=..., parameters=[...]): {error}"
        ) from None
    if not isinstance(optimizer, paddle.optimizer.Optimizer):
        raise ConfigError(
            f"set_optimizer: the factory returned {type(optimizer).__name__}, expected a paddle.optimizer.Optimizer"
        )
    if isinstance(optimizer._learning_rate, paddle.optimizer.lr.LRScheduler):
        raise ConfigError(
            "set_optimizer: the optimizer brings its own LRScheduler; give the rate with "
            "set_lr(lr), or set_lr(lambda step: ...), so that a resumed run finds it again"
        )
    return optimizer
