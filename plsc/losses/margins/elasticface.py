"""ElasticFace: margins drawn anew for each sample of each step, from a normal distribution.

    elasticface_arc    psi = cos(theta + m_n), beyond theta + m_n = pi as in `plsc.losses.margins.angular`
    elasticface_cos    psi = cos(theta) - m_n
    m_n from N(m, std^2)

The "plus" variants draw as many margins, and give the greatest to the sample with the least target cosine, the second
to the next, and so on: a sample far from its center is pushed more. That sorts over the global batch.

What is drawn depends on the run's seed, the step and a sample's place in the global batch, and on nothing else.

Source: ElasticFace: Elastic Margin Loss for Deep Face Recognition, Boutros et al., CVPR Workshops 2022, section 3, and
the authors' utils/losses.py (github.com/fdbtrs/ElasticFace). That code sorts both, and then takes the k-th sample's
margin at the place that the k-th of the sorted samples has in the batch; here each sample has the margin of its rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import paddle

from plsc.loss_types import ElasticArcParameters, ElasticCosParameters, Parameters
from plsc.losses.margins.angular import add_angle


class _Elastic(Parameters, ABC):
    """Draws the margins of a step, N(m, std^2).

    Attributes:
        needs_all_cosines: whether the margins are sorted by cosine.
    """

    needs_all_cosines: ClassVar[bool] = False
    m: float
    std: float
    _seed = 1

    def begin_step(self, step: int, *, seed: int) -> None:
        """Draw from this seed."""
        self._seed = seed

    def __call__(
        self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """psi and its derivative by the cosine, both [G]."""
        # In NumPy, so that a GPU draws what a CPU draws.
        drawn = np.random.default_rng(self._seed).normal(self.m, self.std, cosine.shape[0])
        if not self.needs_all_cosines:
            return self._apply(cosine, paddle.to_tensor(drawn, cosine.dtype))
        order = paddle.argsort(cosine, descending=True, stable=True)
        margin = paddle.to_tensor(np.sort(drawn), cosine.dtype)
        # The place of each sample among the sorted ones.
        return self._apply(cosine, paddle.index_select(margin, paddle.argsort(order)))

    @abstractmethod
    def _apply(self, cosine: paddle.Tensor, margin: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]: ...


class ElasticArc(ElasticArcParameters, _Elastic):
    """A drawn angle is added."""

    def _apply(self, cosine: paddle.Tensor, margin: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        added = add_angle(cosine, margin)
        return added.psi, added.by_cosine


class ElasticCos(ElasticCosParameters, _Elastic):
    """A drawn number is subtracted from the cosine."""

    def _apply(self, cosine: paddle.Tensor, margin: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        return cosine - margin, paddle.ones_like(cosine)


class ElasticArcPlus(ElasticArc):
    """As `ElasticArc`, with the drawn angles sorted."""

    needs_all_cosines = True


class ElasticCosPlus(ElasticCos):
    """As `ElasticCos`, with the drawn numbers sorted."""

    needs_all_cosines = True
