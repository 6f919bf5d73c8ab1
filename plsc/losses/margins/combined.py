"""ArcFace, CosFace, SphereFace and their combination: one margin with three parameters.

One file holds all of them, since each is the combination with two of the parameters at their neutral values.

With theta the angle between a feature and the center of its own class, the target cosine becomes

    psi(cos theta) = cos(m1 * theta + m2) - m3          while m1 * theta + m2 <= pi
    psi(cos theta) = cos theta - cos theta* - 1 - m3    beyond, where m1 * theta* + m2 = pi

Past theta* the cosine would rise again and reward a larger angle. The second line starts at the value where the first
ends and falls on with slope 1 in cos theta, so psi is continuous and monotone.

Sources: ArcFace (m2), Deng et al., CVPR 2019, whose equation 4 combines all three; CosFace (m3), Wang et al., CVPR
2018; SphereFace (m1), Liu et al., CVPR 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import paddle

from plsc.errors import ConfigError


@dataclass(frozen=True)
class CombinedMargin:
    """The margin cos(m1 * theta + m2) - m3 on the target cosine.

    Args:
        m1: factor on the angle, above 0; 1 for none (SphereFace: 1.35).
        m2: added to the angle, in radians, 0 to pi; 0 for none (ArcFace: 0.5).
        m3: subtracted from the cosine, 0 or more; 0 for none (CosFace: 0.35).

    Raises:
        ConfigError: a margin is outside its range.

    Example:
        >>> arcface = CombinedMargin(m2=0.5)
        >>> value, derivative = arcface(paddle.to_tensor([0.8]))
    """

    is_per_sample: ClassVar[bool] = True
    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.0

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        if not (0.0 < self.m1 < math.inf and 0.0 <= self.m2 <= math.pi and 0.0 <= self.m3 < math.inf):
            raise ConfigError(
                f"margins (m1, m2, m3) = ({self.m1}, {self.m2}, {self.m3}); expected m1 > 0, "
                f"0 <= m2 <= pi (radians) and m3 >= 0"
            )

    def __call__(
        self, cosine: paddle.Tensor, norms: paddle.Tensor | None = None, labels: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """psi and its derivative d psi / d cosine. Norms and labels have no part in it.

        Args:
            cosine: target cosines of any shape and float dtype. Cosines at or beyond +-1, which rounding makes, count
                as a few roundings inside, where the derivative is large but finite.
            norms: not used.
            labels: not used.

        Returns:
            (value, derivative), both like `cosine`. The derivative is never negative.
        """
        if cosine.dtype not in (paddle.float32, paddle.float64):
            value, derivative = self(cosine.astype("float32"))
            return value.astype(cosine.dtype), derivative.astype(cosine.dtype)
        if self.m1 == 1.0 and self.m2 == 0.0:
            return cosine - self.m3, paddle.ones_like(cosine)
        inside = 1.0 - 8.0 * paddle.finfo(cosine.dtype).eps
        cosine = paddle.clip(cosine, -inside, inside)
        sine = paddle.sqrt((1.0 - cosine) * (1.0 + cosine))
        # The value, and its derivative by the angle with the sign reversed.
        if self.m1 == 1.0:
            # cos(theta + m2) and sin(theta + m2) without the angle: exact, and cheaper than acos.
            value = cosine * math.cos(self.m2) - sine * math.sin(self.m2)
            by_angle = sine * math.cos(self.m2) + cosine * math.sin(self.m2)
        else:
            angle = paddle.acos(cosine) * self.m1 + self.m2
            value, by_angle = paddle.cos(angle), paddle.sin(angle) * self.m1
        derivative = by_angle / sine
        if self._turns:
            beyond = cosine < self._turning_cosine
            value = paddle.where(beyond, cosine - (self._turning_cosine + 1.0), value)
            derivative = paddle.where(beyond, paddle.ones_like(derivative), derivative)
        # At the turning point rounding leaves a derivative of -1e-7.
        return value - self.m3, paddle.clip(derivative, min=0.0)

    @property
    def _turns(self) -> bool:
        """Whether some theta in [0, pi] has m1 * theta + m2 > pi."""
        return self.m1 * math.pi + self.m2 > math.pi

    @property
    def _turning_cosine(self) -> float:
        return math.cos((math.pi - self.m2) / self.m1)
