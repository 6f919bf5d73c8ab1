"""A Paddle optimizer whose state has the same names in every process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.errors import CheckpointError, ConfigError
from plsc.losses.row_optimizers import RowOptimizer, row_optimizer_of
from plsc.utils.hints import setter

MASTER = "master"  # the kind of a float32 copy of a parameter of lower precision


class NamedOptimizer:
    """A Paddle optimizer whose state is named '<parameter>:<kind>', for example 'conv.weight:velocity'.

    It is the one that `set_optimizer` gave, or Momentum 0.9 with L2 weight decay 5e-4, as in PLSC 0.1.

    Args:
        config: the settings.
        named: the parameters under names that do not change between processes.

    Raises:
        ConfigError: the user's factory does not return a Paddle optimizer whose learning rate can be set.
    """

    def __init__(self, config: Config, named: Mapping[str, paddle.Tensor]) -> None:
        self._named = dict(named)
        self._optimizer = _build(config.optimizer or _default, config.lr, list(self._named.values()))

    @property
    def kind(self) -> str:
        return type(self._optimizer).__name__

    @property
    def row_optimizer(self) -> RowOptimizer | None:
        """The same arithmetic for any rows of a parameter; None where the optimizer does more than that."""
        return row_optimizer_of(self._optimizer, self._named.values())

    def step(self, learning_rate: float) -> None:
        """Update the parameters from their gradients, and drop the gradients."""
        self._optimizer.set_lr(learning_rate)
        # Paddle numbers the names of an optimizer's state with a counter of the process. The guard restarts the
        # counter, so that a state has the same name in every process; `load` relies on it.
        with paddle.utils.unique_name.guard():
            self._optimizer.step()
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Drop the gradients of the parameters."""
        self._optimizer.clear_grad(set_to_zero=False)

    def gradients(self) -> list[paddle.Tensor]:
        """The gradients of the parameters that have one."""
        return [tensor.grad for tensor in self._named.values() if tensor.grad is not None]

    def state(self) -> dict[str, paddle.Tensor]:
        """The tensors to save; none before the first step.

        Raises:
            CheckpointError: a tensor belongs to no parameter.
        """
        longest_first = sorted(self._named.items(), key=lambda item: -len(item[1].name))
        found = self._optimizer.state_dict()
        state = {}
        for key, value in found.items():
            if key in ("LR_Scheduler", "master_weights"):
                continue
            owner = next((item for item in longest_first if key.startswith(item[1].name + "_")), None)
            if owner is None:
                raise CheckpointError(
                    f"{self.kind}: its state {key!r} belongs to no parameter, so no checkpoint can hold it; expected "
                    f"names that begin with a parameter's"
                )
            name, parameter = owner
            kind = re.sub(r"_\d+$", "", key[len(parameter.name) + 1 :])
            state[f"{name}:{kind}"] = value
        for name, parameter in self._named.items():
            if parameter.name in found.get("master_weights", {}):
                state[f"{name}:{MASTER}"] = found["master_weights"][parameter.name]
        return state

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Load what `state` returned in another process, before the first step.

        Raises:
            CheckpointError: the state is of a parameter that this network does not have.
        """
        restored: dict[str, Any] = {}
        for key, value in state.items():
            name, _, kind = key.rpartition(":")
            if name not in self._named:
                raise CheckpointError(f"the checkpoint holds optimizer state of '{name}', which this network lacks")
            own_name, tensor = self._named[name].name, paddle.to_tensor(value)
            if kind == MASTER:
                restored.setdefault("master_weights", {})[own_name] = tensor
            else:
                restored[f"{own_name}_{kind}_0"] = tensor
        self._optimizer.set_state_dict(restored)


def _default(learning_rate: float, parameters: list[paddle.Tensor]) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.Momentum(learning_rate, 0.9, parameters=parameters, weight_decay=5e-4)


def _build(
    factory: Callable[..., Any], learning_rate: float, parameters: list[paddle.Tensor]
) -> paddle.optimizer.Optimizer:
    try:
        optimizer = factory(learning_rate=learning_rate, parameters=parameters)
    except TypeError as error:
        raise ConfigError(
            f"{setter('optimizer')}: {factory!r} could not be called as factory(learning_rate=..., parameters=[...]): "
            f"{error}"
        ) from None
    if not isinstance(optimizer, paddle.optimizer.Optimizer):
        raise ConfigError(
            f"{setter('optimizer')}: the factory returned {type(optimizer).__name__}, expected a "
            f"paddle.optimizer.Optimizer"
        )
    decay = getattr(optimizer, "regularization", None)
    if decay is not None and not callable(decay):  # Paddle calls what is no float, at the first step
        raise ConfigError(
            f"{setter('optimizer')}: weight_decay is {decay!r} ({type(decay).__name__}), expected a float or a "
            f"paddle.regularizer; give float(...)"
        )
    if isinstance(optimizer._learning_rate, paddle.optimizer.lr.LRScheduler):
        raise ConfigError(
            f"{setter('optimizer')}: the optimizer has its own LRScheduler, which a resumed run cannot restore; give "
            f"the learning rate with {setter('lr')}: a number, 'cosine' or a function of the step"
        )
    return optimizer
