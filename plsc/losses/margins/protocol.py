"""The protocol of a margin, what a margin may have beyond it, and how heads call one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import paddle

from plsc.errors import ConfigError
from plsc.utils.ranges import Range


class Margin(Protocol):
    """psi(cos, `|x|`, y), the margin on the target cosine.

    A head calls its margin once per step, on every rank, with the global batch, whether the class centers are
    sharded over ranks or replicated on each.

    `norms` and `labels` are then the same on all ranks. `cosine` is not: with sharded centers a rank holds the target's
    center only for the labels of its own classes; the other entries of `cosine` are cosines to some other class, and
    what the margin returns for them is ignored. A margin that keeps a statistic, such as a running mean, must compute
    it from `norms` and `labels` only. It then has the same value on all ranks without any communication. Where it needs
    the cosines for it, an attribute `needs_all_cosines = True` makes those the same on all ranks, too, by one
    all-reduce of [G] numbers per step.

    A margin that depends on the step, or draws at random, has a method `begin_step`, see `SteppedMargin`; one that
    keeps a state has the methods of `StatefulMargin`. `PenalizedMargin` and `CountedMargin` say what else it may have.
    An attribute `is_per_sample = True` says that what is returned for a sample depends on no other sample.

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
            (psi, d psi / d cos) or (psi, d psi / d cos, `d psi / d |x|`), each [G] and of the type of `cosine`. Without
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


@runtime_checkable
class PenalizedMargin(Protocol):
    """A margin whose loss has a term that depends on the features' norms alone, as MagFace's has."""

    def penalty(self, norms: paddle.Tensor, /) -> tuple[paddle.Tensor, paddle.Tensor]:
        """What is added to the loss of each sample, and its derivative by the norm; both [G]."""
        ...


@runtime_checkable
class CountedMargin(Protocol):
    """A margin that depends on how many training images a class has."""

    def set_class_counts(self, counts: np.ndarray[Any, Any], classes: Range, /) -> None:
        """Called once, before the first step.

        Args:
            counts: [C] images of each class, 0 or more.
            classes: the classes whose centers this rank holds.
        """
        ...


def needs_all_cosines(margin: object) -> bool:
    """Whether a margin needs the right cosines of the whole global batch on every rank."""
    return bool(getattr(margin, "needs_all_cosines", False))


def is_per_sample(margin: object) -> bool:
    """Whether a margin says that what it returns for a sample depends on no other sample.

    A replicated head then calls it with the samples of its rank, and gathers nothing.
    """
    return bool(getattr(margin, "is_per_sample", False))


class MarginOutput(NamedTuple):
    """What a margin returned; all [G].

    Attributes:
        psi: the value that replaces the target cosine.
        by_cosine: d psi / d cos.
        by_norm: `d psi / d |x|`; None for 0.
    """

    psi: paddle.Tensor
    by_cosine: paddle.Tensor
    by_norm: paddle.Tensor | None


def penalty_of(margin: object, norms: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor] | None:
    """The penalty [G] of a margin on the norms [G], and its derivative; None where it has none.

    Raises:
        ConfigError: not two tensors of the shape and the type of `norms`.
    """
    if not isinstance(margin, PenalizedMargin):
        return None
    found = margin.penalty(norms.clone())
    if not isinstance(found, tuple) or len(found) != 2 or not all(_is_like(part, norms) for part in found):
        raise ConfigError(
            f"margin {type(margin).__name__}: penalty(norms) returned {_describe(found)}; expected (value, derivative "
            f"by the norm), tensors of shape {list(norms.shape)} each and of type {_type_name(norms)}"
        )
    return found


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
