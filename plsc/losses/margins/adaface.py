"""AdaFace: a margin that depends on image quality, measured by the feature norm.

    z   = clip(h (a - mean) / (std + 0.001), -1, 1)        a = clip(|x|, 0.001, 100)
    psi = cos(clip(theta - m z, 0.001, pi - 0.001)) - (m + m z)

mean and std are moving averages, from 20 and 100, of the mean and the standard deviation (n - 1) of a over the global
batch. They take in a batch before it is computed with. The norm has no gradient. Where the angle is clipped, psi does
not depend on theta and the own class has no gradient.

Source: AdaFace: Quality Adaptive Margin for Face Recognition, Kim, Jain and Liu, CVPR 2022, section 3, and the
authors' head.py (github.com/mk-minchul/AdaFace), which also clips all cosines to +-0.999; here they are not clipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from plsc.loss_types import AdaFaceParameters

_LEAST_ANGLE = 1e-3
_LEAST_NORM, _GREATEST_NORM = 1e-3, 100.0


class AdaFace(AdaFaceParameters):
    """The margin of AdaFace. Its state, the two moving averages, is the same on all ranks.

    Example:
        >>> config = Config(loss_type="dist_adaface", loss_options={"m": 0.4, "h": 0.333})
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._mean, self._std = paddle.full([1], 20.0), paddle.full([1], 100.0)

    def __call__(
        self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """psi and its derivative by the cosine, both [G]; the moving averages take in the norms [G] first."""
        norms = paddle.clip(norms, _LEAST_NORM, _GREATEST_NORM)
        self._take_in(norms)
        quality = paddle.clip((norms - self._mean) / (self._std + 1e-3) * self.h, -1.0, 1.0)
        inside = 1.0 - 8.0 * paddle.finfo(cosine.dtype).eps
        angle = paddle.acos(paddle.clip(cosine, -inside, inside))
        moved = angle - self.m * quality
        kept = paddle.clip(moved, _LEAST_ANGLE, math.pi - _LEAST_ANGLE)
        derivative = paddle.where(moved == kept, paddle.sin(kept) / paddle.sin(angle), paddle.zeros_like(angle))
        return paddle.cos(kept) - self.m * (1.0 + quality), derivative

    def _take_in(self, norms: paddle.Tensor) -> None:
        mean = norms.mean()
        self._mean = self._mean.astype(norms.dtype) * (1.0 - self.average) + mean * self.average
        self._std = self._std.astype(norms.dtype)
        if norms.shape[0] > 1:  # one sample has no deviation
            deviations = norms - mean
            squares = (deviations * deviations).sum() / (norms.shape[0] - 1)
            self._std = self._std * (1.0 - self.average) + paddle.sqrt(squares) * self.average

    def state(self) -> dict[str, paddle.Tensor]:
        """'mean' and 'std', [1] each."""
        return {"mean": self._mean, "std": self._std}

    def load(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Set the averages."""
        self._mean, self._std = paddle.to_tensor(state["mean"]), paddle.to_tensor(state["std"])
