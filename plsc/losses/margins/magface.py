"""MagFace: a margin that grows with the feature norm, which thereby comes to measure the quality of an image.

    a    = clip(|x|, l_a, u_a)
    m(a) = l_margin + (u_margin - l_margin) (a - l_a) / (u_a - l_a)
    psi  = cos(theta + m(a)), beyond theta + m(a) = pi as in `plsc.losses.margins.angular`
    penalty = lambda_g (a / u_a^2 + 1 / a), averaged over the global batch

The gradient goes through the norm, in the margin and in the penalty; it is 0 where the norm is clipped.

Source: MagFace: A Universal Representation for Face Recognition and Quality Assessment, Meng et al., CVPR 2021,
section 3, and the authors' code (github.com/IrvingMeng/MagFace), whose margin leaves cosines below 0 as they are.
lambda_g is 35 in the paper. The paper's proof that norms converge asks for lambda_g of at least s k u_a^2 l_a^2 /
(u_a^2 - l_a^2), where k is the slope of m(a).
"""

from __future__ import annotations

import paddle

from plsc.errors import ConfigError
from plsc.loss_types import MagFaceParameters
from plsc.losses.margins.angular import add_angle


class MagFace(MagFaceParameters):
    """The margin of MagFace, with its penalty on the norms.

    Raises:
        ConfigError: a parameter is outside its range, or `u_a` is not above `l_a`.

    Example:
        >>> config = Config(loss_type="dist_magface", loss_options={"lambda_g": 20})
    """

    is_per_sample = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.u_a <= self.l_a:
            raise ConfigError(f"u_a: got {self.u_a:g}, expected a number above l_a, {self.l_a:g}")
        self._slope = (self.u_margin - self.l_margin) / (self.u_a - self.l_a)

    def __call__(
        self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """psi and its derivatives by the cosine and by the norm, all [G]."""
        length = paddle.clip(norms, self.l_a, self.u_a)
        added = add_angle(cosine, self.l_margin + self._slope * (length - self.l_a))
        return added.psi, added.by_cosine, added.by_margin * self._slope * self._is_inside(norms)

    def penalty(self, norms: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """What is added to each sample's loss, and its derivative by the norm, both [G]."""
        length = paddle.clip(norms, self.l_a, self.u_a)
        value = self.lambda_g * (length / self.u_a**2 + 1.0 / length)
        return value, self.lambda_g * (1.0 / self.u_a**2 - 1.0 / (length * length)) * self._is_inside(norms)

    def _is_inside(self, norms: paddle.Tensor) -> paddle.Tensor:
        return ((norms > self.l_a) & (norms < self.u_a)).astype(norms.dtype)
