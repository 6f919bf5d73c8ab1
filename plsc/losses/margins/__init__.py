"""Margins: what a loss does to the logit of a sample's own class. A margin is independent of ranks and shards.

The heads compute z_ny = s * psi_n for the label y of sample n and z_nc = s * cos(x_n, w_c) for the other classes. A
margin is psi: an object that is called with the target cosines and returns psi and its derivatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import paddle

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.losses.margins.binary import BinaryMargin, SphereFace2, UniFace
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.margins.curricularface import CurricularFace


class Margin(Protocol):
    """psi(cos, |x|, y), the margin on the target cosine.

    A head calls its margin once per step, on every rank, with the global batch, whether the class centers are
    sharded over ranks or replicated on each.

    `norms` and `labels` are then the same on all ranks. `cosine` is not: with sharded centers a rank holds the target's
    center only for the labels of its own classes; the other entries of `cosine` are cosines to some other class, and
    what the margin returns for them is ignored. A margin that keeps a statistic, such as a running mean, must compute
    it from `norms` and `labels` only. It then has the same value on all ranks without any communication. Where it needs
    the cosines for it, an attribute `needs_all_cosines = True` makes those the same on all ranks, too, by one
    all-reduce of [G] numbers per step.

    A margin that depends on the step, or draws at random, has a method `begin_step`, see `SteppedMargin`.

    Example:
        >>> class CosFace:
        ...     def __call__(self, cosine, norms, labels):
        ...         return cosine - 0.35, paddle.ones_like(cosine)
        >>> config = plsc.Config(margin_function=CosFace())
    """

    def __call__(
        self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor, /
    ) -> tuple[paddle.Tensor, ...]:
        """psi, its derivative by the cosine and, optionally, its derivative by the norm.

        Args:
            cosine: [G] target cosines; rounding may put them a little outside -1 to 1.
            norms: [G] Euclidean norms of the features before normalization; 1e-12 for shorter ones, so above 0.
            labels: [G] int64 class ids, 0 to C - 1.

        Returns:
            (psi, d psi / d cos) or (psi, d psi / d cos, d psi / d |x|), each [G] and of the type of `cosine`. Without
            the third, psi is taken to be independent of the norm, or its dependence to be constant, as in AdaFace.
        """
        ...


@runtime_checkable
class StatefulMargin(Protocol):
    """A margin with state of its own, for example running statistics. Checkpoints hold it, as 'margin:<name>'."""

    def state(self) -> dict[str, paddle.Tensor]:
        """The tensors to save, by name; each whole and the same on all ranks."""
        ...

    def load(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Set the state to what `state` returned before."""
        ...


@runtime_checkable
class SteppedMargin(Protocol):
    """A margin that depends on the step, or draws at random."""

    def begin_step(self, step: int, *, seed: int) -> None:
        """Called on every rank before the margin is called with the batch of a step.

        Args:
            step: number of the step in the whole run, 0 for the first.
            seed: 1 to 2^31 - 1; depends on the run's seed and on the step only, so it is the same on all ranks, on any
                number of them, and in a run that is resumed. What is drawn from it must depend on nothing else.
        """
        ...


def needs_all_cosines(margin: object) -> bool:
    """Whether a margin needs the right cosines of the whole global batch on every rank."""
    return bool(getattr(margin, "needs_all_cosines", False))


class MarginOutput(NamedTuple):
    """What a margin returned; all [G].

    Attributes:
        psi: the value that replaces the target cosine.
        by_cosine: d psi / d cos.
        by_norm: d psi / d |x|; None for 0.
    """

    psi: paddle.Tensor
    by_cosine: paddle.Tensor
    by_norm: paddle.Tensor | None


def apply_margin(margin: Margin, cosine: paddle.Tensor, *, norms: paddle.Tensor, labels: paddle.Tensor) -> MarginOutput:
    """Call a margin and check the number, the shapes and the types of what it returns.

    Raises:
        ConfigError: not two or three tensors of the shape and the type of `cosine`.
    """
    # Copies, since a margin may write into its arguments, which the head uses again.
    found = margin(cosine.clone(), norms.clone(), labels.clone())
    fits = isinstance(found, tuple) and len(found) in (2, 3)
    if not fits or not all(_is_like(part, cosine) for part in found):
        raise ConfigError(
            f"margin {type(margin).__name__} returned {_describe(found)}; expected (value, derivative by the cosine) "
            f"or (value, derivative by the cosine, derivative by the norm), tensors of shape {list(cosine.shape)} each "
            f"and of type {_type_name(cosine)}"
        )
    return MarginOutput(found[0], found[1], found[2] if len(found) == 3 else None)


MARGIN_CLASSES: dict[str, Callable[..., Any]] = {
    "curricularface": CurricularFace,
    "sphereface2": SphereFace2,
    "uniface": UniFace,
}
"""Loss of `plsc.loss_types` -> class of its margin, made with the loss's parameters as keywords. A loss with margins
(m1, m2, m3) has `CombinedMargin`, and softmax none."""


def build_margin(config: Config) -> Margin | None:
    """The margin that the settings ask for; None for the softmax loss, which has plain products instead of cosines.

    Raises:
        ConfigError: the margins do not fit the loss, `margin_function` cannot be called, or it has a state that no
            checkpoint can hold.
    """
    if config.margin_function is None:
        if config.margins is not None:
            return CombinedMargin(*config.margins)
        margin_class = MARGIN_CLASSES.get(config.loss_kind)
        made: Margin | None = None if margin_class is None else margin_class(**dataclasses.asdict(config.loss_parameters))
        if isinstance(made, BinaryMargin):
            made.start(num_classes=max(1, round(config.num_classes * config.sample_ratio)), scale=config.loss_scale)
        return made
    margin: Margin = config.margin_function
    if not callable(margin) or isinstance(margin, type):
        raise ConfigError(
            f"margin_function: got {margin!r}, expected an object that is called with "
            f"(cosine, norms, labels), see plsc.losses.margins.Margin"
        )
    _check_state(margin)
    return margin


def _check_state(margin: Margin) -> None:
    """Raise `ConfigError` before training, not at the first checkpoint, where a margin's state cannot be saved."""
    name = type(margin).__name__
    if callable(getattr(margin, "state", None)) != callable(getattr(margin, "load", None)):
        raise ConfigError(f"margin {name} has one of the methods state() and load(...), expected both or neither")
    if not isinstance(margin, StatefulMargin):
        return
    state = margin.state()
    if not isinstance(state, Mapping) or not all(isinstance(value, paddle.Tensor) for value in state.values()):
        found = (
            {key: type(value).__name__ for key, value in state.items()}
            if isinstance(state, Mapping)
            else type(state).__name__
        )
        raise ConfigError(f"margin {name}: state() returned {found}, expected a dict of tensors by name")


def _is_like(part: Any, cosine: paddle.Tensor) -> bool:
    return isinstance(part, paddle.Tensor) and part.shape == cosine.shape and part.dtype == cosine.dtype


def _type_name(tensor: paddle.Tensor) -> str:
    return str(tensor.dtype).removeprefix("paddle.")


def _describe(found: Any) -> str:
    if not isinstance(found, tuple):
        return type(found).__name__
    parts = [
        f"{list(part.shape)} {_type_name(part)}" if isinstance(part, paddle.Tensor) else type(part).__name__
        for part in found
    ]
    return f"({', '.join(parts)})"
