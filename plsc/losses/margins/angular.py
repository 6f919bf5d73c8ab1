"""An angle of its own added to each sample's angle: what several margins share.

With theta the angle between a feature and the center of its own class, and m the sample's margin,

    psi = cos(theta + m)              while theta + m <= pi
    psi = cos(theta) + cos(m) - 1     beyond

which is `CombinedMargin` with m2 = m: continuous, and falling with slope 1 in cos(theta) beyond the turn.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle


class AddedAngle(NamedTuple):
    """psi and its derivatives; all [G].

    Attributes:
        psi: the value.
        by_cosine: d psi / d cos(theta).
        by_margin: d psi / d m.
    """

    psi: paddle.Tensor
    by_cosine: paddle.Tensor
    by_margin: paddle.Tensor


def add_angle(cosine: paddle.Tensor, margin: paddle.Tensor) -> AddedAngle:
    """The margin `margin` on the angles of `cosine`.

    Args:
        cosine: [G] target cosines, float32 or float64; those at or beyond +-1 count as a few roundings inside, as in
            `CombinedMargin`.
        margin: [G], in radians, up to pi, of the type of `cosine`.
    """
    inside = 1.0 - 8.0 * paddle.finfo(cosine.dtype).eps
    cosine = paddle.clip(cosine, -inside, inside)
    sine = paddle.sqrt((1.0 - cosine) * (1.0 + cosine))
    cosine_of_margin, sine_of_margin = paddle.cos(margin), paddle.sin(margin)
    psi = cosine * cosine_of_margin - sine * sine_of_margin
    by_angle = sine * cosine_of_margin + cosine * sine_of_margin  # with the sign reversed
    beyond = (cosine < -cosine_of_margin) & (margin > 0.0)
    return AddedAngle(
        paddle.where(beyond, cosine + cosine_of_margin - 1.0, psi),
        paddle.where(beyond, paddle.ones_like(cosine), by_angle / sine),
        -paddle.where(beyond, sine_of_margin, by_angle),
    )
