"""Margins: what a loss does to the logit of a sample's own class. A margin is independent of ranks and shards.

The heads compute z_ny = s * psi_n for the label y of sample n and z_nc = s * cos(x_n, w_c) for the other classes. A
margin is psi: an object that is called with the target cosines and returns psi and its derivatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import paddle

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.losses.margins.adaface import AdaFace
from plsc.losses.margins.binary import BinaryMargin, SphereFace2, UniFace
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.margins.curricularface import CurricularFace
from plsc.losses.margins.dynamic import DynamicMargin
from plsc.losses.margins.elasticface import ElasticArc, ElasticArcPlus, ElasticCos, ElasticCosPlus
from plsc.losses.margins.magface import MagFace
from plsc.losses.margins.protocol import (
    CountedMargin,
    Margin,
    MarginOutput,
    PenalizedMargin,
    StatefulMargin,
    SteppedMargin,
    apply_margin,
    is_per_sample,
    needs_all_cosines,
    penalty_of,
)
from plsc.losses.margins.warmup import WarmupMargin

__all__ = [
    "MARGIN_CLASSES",
    "BinaryMargin",
    "CountedMargin",
    "Margin",
    "MarginOutput",
    "PenalizedMargin",
    "StatefulMargin",
    "SteppedMargin",
    "apply_margin",
    "build_margin",
    "is_per_sample",
    "needs_all_cosines",
    "penalty_of",
]

MARGIN_CLASSES: dict[str, Callable[..., Margin]] = {
    "adaface": AdaFace,
    "magface": MagFace,
    "elasticface_arc": ElasticArc,
    "elasticface_arc_plus": ElasticArcPlus,
    "elasticface_cos": ElasticCos,
    "elasticface_cos_plus": ElasticCosPlus,
    "dynamic_margin": DynamicMargin,
    "curricularface": CurricularFace,
    "sphereface2": SphereFace2,
    "uniface": UniFace,
}
"""Loss of `plsc.loss_types` -> class of its margin, made with the loss's parameters as keywords. A loss with margins
(m1, m2, m3) has `CombinedMargin`, and softmax none."""


def build_margin(config: Config) -> Margin | None:
    """The margin that the settings ask for; None for the softmax loss, which has plain products instead of cosines.

    Raises:
        ConfigError: the margins or the parameters do not fit the loss, `margin_function` cannot be called, or it has a
            state that no checkpoint can hold.
    """
    margin = _full_margin(config)
    if margin is None or not config.margin_warmup:
        return margin
    return WarmupMargin(margin, config.margin_warmup)


def _full_margin(config: Config) -> Margin | None:
    if config.margin_function is None:
        if config.margins is not None:
            return CombinedMargin(*config.margins)
        margin_class = MARGIN_CLASSES.get(config.loss_kind)
        if margin_class is None:
            return None
        parameters = dataclasses.asdict(config.loss_parameters)
        try:
            made = margin_class(**parameters)
        except ConfigError as error:  # of two parameters together
            raise ConfigError(f"loss_options: {error}") from None
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
