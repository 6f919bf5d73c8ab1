"""CurricularFace: the weight of hard negatives grows as training goes on.

With theta the angle to the sample's own center, psi = cos(theta + m) as ArcFace has it. A negative whose cosine is
above psi is hard. In the softmax its cosine becomes

    cos_c (t + cos_c)      derivative t + 2 cos_c

t is the moving mean of cos theta over the global batch. It is near 0 at first, where cos_c (t + cos_c) < cos_c: easy
samples come first. As the network learns, t rises, and hard negatives get more than their own weight. t has no
gradient and is updated before it is used.

Source: CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition, Huang et al., CVPR 2020, equations
5 to 8; its authors' code updates t before use, with a weight of 0.01 of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from plsc.loss_types import CurricularFaceParameters
from plsc.losses.logit_ops import harden
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.ops import no_grad


@dataclass(eq=False)
class CurricularFace(CurricularFaceParameters):
    """psi = cos(theta + m), and cos (t + cos) for negatives above psi.

    Args:
        m: margin in radians, 0 to pi.
        average: weight of a batch in the moving mean t, above 0, 1 at most.

    Attributes:
        t: [1], 0 at first.

    Raises:
        ConfigError: a parameter is outside its range.
    """

    needs_all_cosines = True
    # |t| is 1 at most, so |cos (t + cos)| is 2 at most.
    negatives_bound = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._margin = CombinedMargin(m2=self.m)
        self.t = paddle.zeros([1])

    @no_grad
    def __call__(self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        """psi and its derivative; moves t."""
        mean = paddle.clip(cosine, -1.0, 1.0).mean().astype(self.t.dtype)
        self.t = (1.0 - self.average) * self.t + self.average * mean
        return self._margin(cosine)

    def negatives(self, cosine: paddle.Tensor, *, target: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """As `plsc.losses.negatives.NegativesMargin` says."""
        return harden(cosine, threshold=target, t=self.t.astype(cosine.dtype))

    def state(self) -> dict[str, paddle.Tensor]:
        """t."""
        return {"t": self.t}

    def load(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Set t."""
        self.t = paddle.to_tensor(state["t"])
