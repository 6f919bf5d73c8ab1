"""The last layer: class centers, their loss, its gradients and their update.

`Head` is what the trainer needs of a last layer; `plsc.losses.classifier.Classifier` is the library's. `Margin` and
`RowOptimizer` are the two parts of it that can be replaced alone.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import paddle

from plsc.errors import ConfigError
from plsc.losses.centers import Centers
from plsc.losses.margins import CountedMargin, Margin, PenalizedMargin, StatefulMargin, SteppedMargin
from plsc.losses.negatives import NegativesMargin
from plsc.losses.row_optimizers import RowOptimizer
from plsc.losses.storage import Places
from plsc.utils.ranges import Range

__all__ = [
    "CountedMargin",
    "Head",
    "Margin",
    "NegativesMargin",
    "PenalizedMargin",
    "RowOptimizer",
    "SavedState",
    "StatefulMargin",
    "SteppedMargin",
    "MARGIN_STATE",
    "check_gradient",
    "check_head",
    "load_tensor",
]

MARGIN_STATE = "margin:"
"""Prefix of the names under which a head's state holds that of its margin, which no optimizer's kind concerns."""


class SavedState(Mapping[str, "np.ndarray[Any, Any]"]):
    """Tensors of a checkpoint by name, which are read when they are asked for: each access reads one."""

    def __contains__(self, name: object) -> bool:
        return any(name == own for own in self)  # the method of Mapping would read the tensor

    @abc.abstractmethod
    def copy_to(self, name: str, tensor: paddle.Tensor) -> None:
        """Read a tensor block by block into one of its shape and type, so that memory for a block is enough.

        Raises:
            CheckpointError: the checkpoint is damaged, or the tensor in it is of another shape or type.
        """

    def blocks(self, name: str) -> Iterator[tuple[Places, np.ndarray[Any, Any]]]:
        """A tensor that has one row per class, in blocks: (which rows of this rank, these rows as they are saved).

        By default one block, of all rows.
        """
        rows = self[name]
        yield slice(0, len(rows)), rows


def load_tensor(tensor: paddle.Tensor, state: Mapping[str, np.ndarray[Any, Any]], name: str) -> None:
    """Set a tensor to what `state` holds under a name; block by block where `state` is that of a checkpoint."""
    if isinstance(state, SavedState):
        state.copy_to(name, tensor)
    else:
        tensor.set_value(state[name])


class Head(Protocol):
    """The last layer as the trainer uses it. A subclass inherits the methods that have a body here.

    In every step the trainer calls `forward`, then `backward`, on every rank and outside autograd. Neither moves a
    parameter. The trainer then judges the step, and calls exactly one of `update` and `discard`. A head owns its
    parameters: no gradient of them leaves it.

    Shapes: N batch on this rank, R ranks, D embedding, C classes, S classes of this rank.

    Attributes:
        classes: the classes whose rows this rank holds; `Range(0, C)` for a head that is replicated on every rank.
        parameters: the trained tensors by name, each with one row per class in `classes`.

    Example:
        docs/extending.md has a complete head. A head is passed to the trainer as `Trainer(config, head=head)`.
    """

    classes: Range
    parameters: dict[str, paddle.Tensor]

    @property
    def optimizer_kind(self) -> str:
        """Name of the optimizer whose state `state` returns; by default the class of the head.

        Where a checkpoint has another, only the parameters are loaded from it.
        """
        return type(self).__name__

    @property
    def is_copy(self) -> bool:
        """Whether a lower rank holds the same rows and saves them; by default not.

        A head that holds all classes on every rank need not say so: rank 0 saves them.
        """
        return False

    def forward(
        self, features: paddle.Tensor, labels: paddle.Tensor, *, step: int = 0, count_above: bool = False
    ) -> paddle.Tensor:
        """The loss, 0-d: the mean over the global batch of N * R samples, the same on every rank.

        Args:
            features: [N, D] of this rank, float32, outside autograd.
            labels: [N] int64, 0 to C - 1.
            step: number of the step, 0 for the first; seeds what is random.
            count_above: make `accuracy` available.
        """
        ...

    def backward(self) -> paddle.Tensor:
        """The gradient [N, D] of the last loss by this rank's features. No parameter moves."""
        ...

    def update(self, learning_rate: float) -> None:
        """Move the parameters by the gradient of the last loss."""
        ...

    def discard(self) -> None:
        """Leave the last `forward` out: set back what it moved, such as a statistic. By default nothing."""

    def sum_of_squares(self) -> paddle.Tensor | None:
        """The sum of the squares of all parameters after the last `update`, of one element; None where it costs a
        pass over them, as by default.

        The trainer takes a number that is not finite for a parameter that is not. With None, such a parameter is
        noticed by the loss of the step that uses it, and before a checkpoint is written.
        """
        return None

    def accuracy(self) -> dict[str, paddle.Tensor]:
        """Figures of the last `forward` with `count_above`, for example acc1 and acc5, 0-d; none by default."""
        return {}

    def target_cosines(self) -> tuple[paddle.Tensor, paddle.Tensor] | None:
        """(cosines [n], weights [n]) of samples of the last `forward` with the centers of their own classes.

        They are logged, and asked for before `update`. A weight is 1 for a sample that this rank counts and 0 for any
        other; each sample of the global batch is counted by one rank. None, the default: there are no cosines.
        """
        return None

    def centers(self) -> Centers | None:
        """The class centers as the classification of images uses them, for validation data (`val_dataset`, `val_split`)
        and `plsc export --classifier`. By default None: there are none.

        A head that returns them saves the same rows as 'weight' and, where there is a bias, 'bias'.
        """
        return None

    def state(self) -> dict[str, paddle.Tensor]:
        """The tensors to save, `parameters` among them; by default nothing else."""
        return dict(self.parameters)

    def load(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Set the state to what `state` returned; by default the parameters.

        Args:
            state: arrays by name. Those that `has_row_per_class` hold the rows of `classes` only. All parameters are
                there; the other tensors are missing where the checkpoint has another `optimizer_kind`. Each access
                reads from the checkpoint; `load_tensor` does it with less memory.
        """
        for name, parameter in self.parameters.items():
            load_tensor(parameter, state, name)

    def has_row_per_class(self, name: str) -> bool:
        """Whether the tensor `name` of `state` has one row per class.

        True: each rank saves the rows of its own `classes`. False: a whole tensor, the same on all ranks. It is asked
        about the names in a checkpoint too, before there is any state. By default, true for the parameters.
        """
        return name in self.parameters

    def may_copy(self, name: str) -> bool:
        """Whether memory may be taken for a copy of the tensor `name` of `state`; by default it may.

        False: training waits while checkpoints are written, from the tensors themselves.
        """
        return True


_OWN = ("forward", "backward", "update")  # what every head defines
_METHODS = (
    *(*_OWN, "discard", "sum_of_squares", "accuracy", "target_cosines", "centers"),
    *("state", "load", "has_row_per_class"),
)


def check_head(head: Any, num_classes: int) -> Head:
    """Return `head` if it has what the trainer needs.

    Raises:
        ConfigError: it is a class, lacks a method or an attribute, its `backward` takes a learning rate, as before
            `update` was a method of its own, or a parameter does not have one row per class. It is raised when the
            trainer is made, since a checkpoint would find it only at the end of an epoch.
    """
    name = head.__name__ if isinstance(head, type) else type(head).__name__
    if isinstance(head, type):
        raise ConfigError(f"head: got the class {name}, expected an object of it")
    missing = [method for method in _METHODS if not callable(getattr(head, method, None))]
    missing += [method for method in _OWN if getattr(type(head), method, None) is getattr(Head, method)]
    _check_backward(head, name)
    missing += [attribute for attribute in ("classes", "parameters", "optimizer_kind") if not hasattr(head, attribute)]
    if missing:
        raise ConfigError(
            f"head {name} has no {', '.join(missing)}; plsc.losses.Head is a base class that has all but classes, "
            f"parameters, forward, backward and update"
        )
    classes = head.classes
    if not isinstance(classes, Range) or not 0 <= classes.start <= classes.stop <= num_classes:
        raise ConfigError(f"head {name}: classes is {classes!r}, expected a Range within 0 to {num_classes}")
    for key, parameter in head.parameters.items():
        shape = list(parameter.shape)
        if shape[:1] != [classes.size]:
            raise ConfigError(
                f"head {name}: parameter '{key}' is {shape}, expected {classes.size} rows, one per class of {classes}"
            )
    checked: Head = head
    return checked


def _check_backward(head: Any, name: str) -> None:
    try:
        inspect.signature(head.backward).bind()
    except TypeError as error:
        raise ConfigError(
            f"head {name}: backward cannot be called without an argument: {error}; backward() returns the gradient by "
            f"the features, and a method update(learning_rate) moves the parameters"
        ) from None
    except (AttributeError, ValueError):  # no such method, which is said elsewhere, or one without a signature
        pass


def check_gradient(gradient: Any, head: Head, *, features: paddle.Tensor) -> None:
    """Raise `ConfigError` where `head.backward` did not return a tensor of the features' shape."""
    found = list(gradient.shape) if isinstance(gradient, paddle.Tensor) else type(gradient).__name__
    if found != list(features.shape):
        raise ConfigError(
            f"head {type(head).__name__}: backward returned {found}, expected the gradient by the features, "
            f"{list(features.shape)}"
        )
