"""The optimizer that the settings name or give, with state that has the same names in every process."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import paddle

from plsc.config import OPTIMIZERS, Config
from plsc.errors import CheckpointError, ConfigError
from plsc.losses.row_optimizers import SGD, AdamW, Lars, Lion, Momentum, RowOptimizer, are_plain, row_optimizer_of
from plsc.utils.hints import setter
from plsc.utils.imports import import_object

MASTER = "master"  # the kind of a float32 copy of a parameter of lower precision


class NamedOptimizer:
    """Paddle optimizers whose state is named '<parameter>:<kind>', for example 'conv.weight:velocity'.

    They are those of `config.optimizer`: one that is named there, or what the user's function returns.

    Args:
        config: the settings.
        named: the parameters under names that do not change between processes.
        of_centers: the parameters are class centers and their bias, whose rows are apart from each other.

    Raises:
        ConfigError: the user's factory does not return a Paddle optimizer whose learning rate can be set.
    """

    def __init__(self, config: Config, named: Mapping[str, paddle.Tensor], *, of_centers: bool = False) -> None:
        self._named = dict(named)
        self._rows: RowOptimizer | None = None
        if config.optimizer in OPTIMIZERS:
            self._rows = optimizer_by_name(config, by_row=of_centers)
            self._optimizers = _apply_to(self._rows, config.lr, self._named.values())
        else:
            factory = config.optimizer if callable(config.optimizer) else _imported(config)
            self._optimizers = [_build(factory, config.lr, list(self._named.values()))]

    @property
    def parameters(self) -> Mapping[str, paddle.Tensor]:
        """The parameters by name."""
        return self._named

    @property
    def kind(self) -> str:
        """Whose state `state` returns."""
        return type(self._rows or self._optimizers[0]).__name__

    @property
    def row_optimizer(self) -> RowOptimizer | None:
        """The same arithmetic for any rows of a parameter; None where the optimizer does more than that."""
        if self._rows is not None:
            return self._rows if are_plain(self._named.values()) else None
        return row_optimizer_of(self._optimizers[0], self._named.values())

    def step(self, learning_rate: float) -> None:
        """Update the parameters from their gradients, and drop the gradients."""
        for optimizer in self._optimizers:
            optimizer.set_lr(learning_rate)
            # Paddle numbers the names of an optimizer's state with a counter of the process. The guard restarts the
            # counter, so that a state has the same name in every process; `load` relies on it.
            with paddle.utils.unique_name.guard():
                optimizer.step()
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Drop the gradients of the parameters."""
        for optimizer in self._optimizers:
            optimizer.clear_grad(set_to_zero=False)

    def gradients(self) -> list[paddle.Tensor]:
        """The gradients of the parameters that have one."""
        return [tensor.grad for tensor in self._named.values() if tensor.grad is not None]

    def state(self) -> dict[str, paddle.Tensor]:
        """The tensors to save; none before the first step.

        Raises:
            CheckpointError: a tensor belongs to no parameter.
        """
        return {name: value for optimizer in self._optimizers for name, value in self._state_of(optimizer).items()}

    def _state_of(self, optimizer: paddle.optimizer.Optimizer) -> dict[str, paddle.Tensor]:
        longest_first = sorted(self._named.items(), key=lambda item: -len(item[1].name))
        found = optimizer.state_dict()
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
        for optimizer in self._optimizers:
            parameters = list(optimizer._parameter_list)
            own = tuple(f"{parameter.name}_" for parameter in parameters)
            found = {key: value for key, value in restored.items() if key == "master_weights" or key.startswith(own)}
            if found:
                names = [key for key in found if key != "master_weights"]
                found.update(_new_state(optimizer, [each for each in parameters if not _has_state(each, names)]))
                optimizer.set_state_dict(found)


def _has_state(parameter: paddle.Tensor, names: list[str]) -> bool:
    return parameter.stop_gradient or any(name.startswith(f"{parameter.name}_") for name in names)


def _new_state(optimizer: paddle.optimizer.Optimizer, parameters: list[paddle.Tensor]) -> dict[str, paddle.Tensor]:
    """The state of parameters before their first step, as of those that were frozen in the run before.

    Paddle refuses to make it once an optimizer has loaded the state of others.
    """
    if not parameters:
        return {}
    with paddle.utils.unique_name.guard():
        optimizer._create_accumulators(paddle.static.default_main_program().global_block(), parameters)
    others = ("LR_Scheduler", "master_weights")
    return {key: value for key, value in optimizer.state_dict().items() if key not in others}


class RowWise(paddle.optimizer.Optimizer):
    """A row optimizer as a Paddle optimizer of whole parameters.

    Args:
        rows: with `l2` 0, and without use of the number of the step.
        learning_rate: of the first step.
        parameters: to update.
    """

    def __init__(self, rows: RowOptimizer, learning_rate: float, parameters: list[paddle.Tensor]) -> None:
        super().__init__(learning_rate=learning_rate, parameters=parameters)
        self._rows = rows

    def _create_accumulators(self, block: Any, parameters: list[paddle.Tensor]) -> None:
        for parameter in parameters:
            for kind in self._rows.state_names:
                self._add_accumulator(kind, parameter)

    def _append_optimize_op(self, block: Any, param_and_grad: tuple[paddle.Tensor, paddle.Tensor]) -> None:
        parameter, gradient = param_and_grad
        learning_rate = self.get_lr() * parameter.optimize_attr["learning_rate"]
        self._rows.apply(
            parameter.detach(),
            gradient,
            state=[self._get_accumulator(kind, parameter) for kind in self._rows.state_names],
            prepared=self._rows.prepare(learning_rate, step=0, dtype=parameter.dtype),
        )


def optimizer_by_name(config: Config, *, by_row: bool) -> RowOptimizer:
    """The row optimizer that `config.optimizer` names, with the settings of it.

    Args:
        config: the settings.
        by_row: what has a length, for LARS, is a row; otherwise a whole parameter.
    """
    decay, decays_bias = config.weight_decay, config.decay_norms
    made: dict[str, RowOptimizer] = {
        "momentum": Momentum(config.momentum, decay, decays_bias=decays_bias),
        "sgd": SGD(decay, decays_bias=decays_bias),
        "adamw": AdamW(decay=decay, decays_bias=decays_bias),
        "lars": Lars(config.momentum, decay, by_row=by_row, decays_bias=decays_bias),
        "lion": Lion(decay=decay, decays_bias=decays_bias),
    }
    return made[str(config.optimizer)]


def _apply_to(
    rows: RowOptimizer, learning_rate: float, parameters: Iterable[paddle.Tensor]
) -> list[paddle.optimizer.Optimizer]:
    """Paddle optimizers with the arithmetic of a row optimizer of `optimizer_by_name`.

    There are two where the parameters of one dimension have no weight decay: the parameter groups of Paddle's
    optimizers would do it too, but drop the learning rate of a `paddle.ParamAttr`.
    """
    every = list(parameters)
    if getattr(rows, "decays_bias", True) or isinstance(rows, (Lars, Lion)):
        return [_paddle_optimizer(rows, learning_rate, every)] if every else []
    matrices = [parameter for parameter in every if len(parameter.shape) > 1]
    vectors = [parameter for parameter in every if len(parameter.shape) <= 1]
    without = {"decay": 0.0} if isinstance(rows, AdamW) else {"l2": 0.0}
    # `dataclasses.replace` takes dataclasses, and a protocol does not say that it is one.
    plain: RowOptimizer = dataclasses.replace(rows, **without)  # type: ignore[type-var]
    groups = ((rows, matrices), (plain, vectors))
    return [_paddle_optimizer(own, learning_rate, group) for own, group in groups if group]


def _paddle_optimizer(
    rows: RowOptimizer, learning_rate: float, parameters: list[paddle.Tensor]
) -> paddle.optimizer.Optimizer:
    if isinstance(rows, Momentum):
        return paddle.optimizer.Momentum(learning_rate, rows.momentum, parameters=parameters, weight_decay=rows.l2)
    if isinstance(rows, SGD):
        return paddle.optimizer.SGD(learning_rate, parameters=parameters, weight_decay=rows.l2 or None)
    if isinstance(rows, AdamW):
        return paddle.optimizer.AdamW(
            learning_rate, rows.beta1, rows.beta2, rows.epsilon, parameters=parameters, weight_decay=rows.decay
        )
    return RowWise(rows, learning_rate, parameters)


def _imported(config: Config) -> Callable[..., Any]:
    """The class that 'package.module:Class' names, with the settings that are given."""
    found: Callable[..., Any] = import_object(str(config.optimizer), "optimizer")
    given = {name: getattr(config, name) for name in ("momentum", "weight_decay") if config.is_given(name)}
    return functools.partial(found, **given) if given else found


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
    except Exception as error:  # the code of others may raise anything
        raise ConfigError(f"{setter('optimizer')}: {factory!r} failed: {type(error).__name__}: {error}") from error
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
