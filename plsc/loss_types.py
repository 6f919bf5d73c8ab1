"""The losses by name: what `loss_type` accepts, and the parameters of each.

This table needs no Paddle, so that settings are checked before it is loaded. The mathematics of a loss lies in
`plsc.losses`: a margin on the target in a file of `plsc.losses.margins`, whose class inherits the parameters here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from plsc.errors import ConfigError
from plsc.utils.hints import setter
from plsc.utils.names import did_you_mean


def number(
    default: float, meaning: str, *, least: float = -math.inf, most: float = math.inf, above: bool = False
) -> Any:
    """A parameter of a loss, for a subclass of `Parameters`.

    Args:
        default: used where the parameter is not given.
        meaning: what it is, with its unit.
        least: the least value.
        most: the greatest value.
        above: `least` itself is refused.
    """
    return dataclasses.field(
        default=default, metadata={"meaning": meaning, "least": least, "most": most, "above": above}
    )


@dataclass(eq=False)
class Parameters:
    """The parameters of a loss. A subclass has one field per parameter, made by `number`.

    Raises:
        ConfigError: a parameter is no number within its range.

    Example:
        >>> @dataclass(eq=False)
        ... class CosFaceParameters(Parameters):
        ...     m: float = number(0.35, "Margin on the cosine.", least=0.0)
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least, most = getattr(self, field.name), field.metadata["least"], field.metadata["most"]
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not least <= value <= most or (field.metadata["above"] and value == least):
                raise ConfigError(f"{field.name}: got {value!r}, expected {_range_text(field)}")

    @classmethod
    def names(cls) -> list[str]:
        """The names of the parameters."""
        return [field.name for field in dataclasses.fields(cls)]


@dataclass(eq=False)
class AdaFaceParameters(Parameters):
    m: float = number(0.4, "Margin: part of an angle, in radians, and part of a cosine.", least=0.0)
    h: float = number(0.333, "How far the norm moves the margin, per standard deviation of norms.", least=0.0)
    average: float = number(0.01, "Weight of a batch in the moving averages.", least=0.0, most=1.0)


@dataclass(eq=False)
class MagFaceParameters(Parameters):
    l_a: float = number(10.0, "Norm with the least margin.", least=0.0, above=True)
    u_a: float = number(110.0, "Norm with the greatest margin.", least=0.0, above=True)
    l_margin: float = number(0.45, "Least margin, in radians.", least=0.0, most=math.pi)
    u_margin: float = number(0.8, "Greatest margin, in radians.", least=0.0, most=math.pi)
    lambda_g: float = number(35.0, "Factor of the penalty on the norm.", least=0.0)


@dataclass(eq=False)
class ElasticArcParameters(Parameters):
    m: float = number(0.5, "Mean of the drawn margins, in radians.", least=0.0, most=math.pi)
    std: float = number(0.05, "Standard deviation of the drawn margins, in radians.", least=0.0)


@dataclass(eq=False)
class ElasticCosParameters(Parameters):
    m: float = number(0.35, "Mean of the drawn margins on the cosine.", least=0.0)
    std: float = number(0.05, "Standard deviation of the drawn margins.", least=0.0)


@dataclass(eq=False)
class DynamicMarginParameters(Parameters):
    low: float = number(0.05, "Margin of the class with the most images, in radians.", least=0.0, most=math.pi)
    high: float = number(0.5, "Margin of the class with the fewest images, in radians.", least=0.0, most=math.pi)
    power: float = number(0.25, "The margin grows as n^-power in the images n of a class.", least=0.0, above=True)


class LossType(NamedTuple):
    """One loss.

    Attributes:
        scale: the default of s.
        margins: the defaults of (m1, m2, m3) in cos(m1 theta + m2) - m3; None for a loss without these. NaN stands for
            a margin that must be given.
        main: which of the three the setting `margin` means; None for none.
        parameters: the class of its own parameters, which `loss_options` sets.
        is_softmax: whether the loss is a cross-entropy over classes, whose labels can be smoothed.
        has_margin: whether a margin of the user's own can take the place of the margin on the target.
    """

    scale: float = 64.0
    margins: tuple[float, float, float] | None = None
    main: int | None = None
    parameters: type[Parameters] = Parameters
    is_softmax: bool = True
    has_margin: bool = True


@dataclass(eq=False)
class CurricularFaceParameters(Parameters):
    """Those of CurricularFace."""

    m: float = number(0.5, "Margin in radians.", least=0.0, most=math.pi)
    average: float = number(0.01, "Weight of a batch in the moving mean t.", least=0.0, most=1.0, above=True)


@dataclass(eq=False)
class SphereFace2Parameters(Parameters):
    """Those of SphereFace2."""

    m: float = number(0.4, "Margin on g(cos).", least=0.0)
    t: float = number(3.0, "Exponent of g(cos) = 2 ((cos + 1) / 2)^t - 1.", least=1.0)
    balance: float = number(0.7, "Weight lambda of the own class, between 0 and 1.", least=0.01, most=0.99)
    weight: float = number(50.0, "Factor of the loss.", least=0.0, above=True)


@dataclass(eq=False)
class UniFaceParameters(Parameters):
    """Those of UniFace."""

    m: float = number(0.4, "Margin on the cosine.", least=0.0)
    balance: float = number(1.0, "Weight lambda of the other classes.", least=0.0, above=True)


LOSSES: dict[str, LossType] = {
    "softmax": LossType(has_margin=False),
    "arcface": LossType(margins=(1.0, 0.5, 0.0), main=1),
    "cosface": LossType(margins=(1.0, 0.0, 0.35), main=2),
    "sphereface": LossType(margins=(1.35, 0.0, 0.0), main=0),
    "combined": LossType(margins=(math.nan, math.nan, math.nan)),
    "curricularface": LossType(parameters=CurricularFaceParameters),
    "sphereface2": LossType(scale=40.0, parameters=SphereFace2Parameters, is_softmax=False, has_margin=False),
    "uniface": LossType(parameters=UniFaceParameters, is_softmax=False, has_margin=False),
    "adaface": LossType(parameters=AdaFaceParameters),
    "magface": LossType(parameters=MagFaceParameters),
    "elasticface_arc": LossType(parameters=ElasticArcParameters),
    "elasticface_arc_plus": LossType(parameters=ElasticArcParameters),
    "elasticface_cos": LossType(parameters=ElasticCosParameters),
    "elasticface_cos_plus": LossType(parameters=ElasticCosParameters),
    "dynamic_margin": LossType(scale=80.0, parameters=DynamicMarginParameters),
}
LOSS_KINDS = tuple(LOSSES)
LOSS_TYPES = LOSS_KINDS + tuple("dist_" + kind for kind in LOSS_KINDS)


def check_option_names(options: Mapping[str, float]) -> None:
    """Raise `ValueError` where a name is that of no loss's parameter."""
    known = sorted({name for loss in LOSSES.values() for name in loss.parameters.names()})
    for name in options:
        if name in ("s", "scale"):
            raise ValueError(f"'{name}' is no parameter of a loss; {setter('scale')} sets the scale of any loss")
        if name not in known:
            raise ValueError(f"no loss has a parameter '{name}'; {did_you_mean(name, known)}known: {', '.join(known)}")


def parameters_of(kind: str, options: Mapping[str, float]) -> Parameters:
    """The parameters of a loss, those of `options` set.

    Args:
        kind: the loss, without dist_.
        options: values by name.

    Raises:
        ConfigError: the loss has no such parameter, or a value is outside its range.
    """
    parameters = LOSSES[kind].parameters
    for name in options:
        if name not in parameters.names():
            hint = did_you_mean(name, parameters.names())
            raise ConfigError(f"loss_options: loss '{kind}' has no parameter '{name}'; {hint}{_settings_of(kind)}")
    try:
        return parameters(**options)
    except ConfigError as error:
        raise ConfigError(f"loss_options: {error}") from None


def _settings_of(kind: str) -> str:
    """What can be set of a loss, in words."""
    loss = LOSSES[kind]
    if loss.parameters.names():
        return f"its parameters are {', '.join(loss.parameters.names())}"
    if loss.margins is None:
        return "it has none, and neither a margin nor a scale"
    margin = setter("loss_type") + " with margin1, margin2 and margin3" if loss.main is None else setter("margin")
    return f"its margin is that of {margin}, its scale that of {setter('scale')}"


def _range_text(field: dataclasses.Field[Any]) -> str:
    least, most = field.metadata["least"], field.metadata["most"]
    low = "" if least == -math.inf else f"{'above' if field.metadata['above'] else 'at least'} {least:g}"
    high = "" if most == math.inf else f"at most {most:g}"
    return "a number" + (f", {low}" if low else "") + (f" and {high}" if low and high else f", {high}" if high else "")
