"""Warm-up of a margin: it rises from the plain cosine to itself over the first steps.

    psi_f = cos(theta) + f (psi - cos(theta)),   f = min(1, (step + 1) / steps)

A network that starts from random weights may find no way down from the loss of a full margin, and the loss stays at
that of guessing.
"""

from __future__ import annotations

import paddle

from plsc.losses.margins.protocol import (
    CountedMargin,
    Margin,
    PenalizedMargin,
    StatefulMargin,
    SteppedMargin,
    apply_margin,
    is_per_sample,
    needs_all_cosines,
)
from plsc.losses.negatives import NegativesMargin


class WarmupMargin:
    """Any margin, times f.

    It has the state, the penalty and the other properties of that margin; its penalty is not multiplied by f. What the
    margin does to other classes, it does from the first step on, compared with psi_f.

    Args:
        margin: the margin.
        steps: after so many steps the margin is full; 1 or more.

    Example:
        >>> margin = WarmupMargin(CombinedMargin(m2=0.5), steps=1000)
        >>> margin.begin_step(499, seed=1)  # half of it
    """

    def __init__(self, margin: Margin, steps: int) -> None:
        self._margin, self._steps, self._share = margin, steps, 1.0 / steps
        self.needs_all_cosines, self.is_per_sample = needs_all_cosines(margin), is_per_sample(margin)
        # Only what the margin has, since heads ask by `isinstance`.
        if isinstance(margin, StatefulMargin):
            self.state, self.load = margin.state, margin.load
        if isinstance(margin, PenalizedMargin):
            self.penalty = margin.penalty
        if isinstance(margin, NegativesMargin):
            self.negatives, self.negatives_bound = margin.negatives, margin.negatives_bound
        if isinstance(margin, CountedMargin):
            self.set_class_counts = margin.set_class_counts

    def begin_step(self, step: int, *, seed: int) -> None:
        """Choose f."""
        self._share = min(1.0, (step + 1) / self._steps)
        if isinstance(self._margin, SteppedMargin):
            self._margin.begin_step(step, seed=seed)

    def __call__(self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        """psi_f and its derivatives by the cosine and, where the margin has one, by the norm; all [G]."""
        found = apply_margin(self._margin, cosine, norms=norms, labels=labels)
        share = self._share
        by_norm = () if found.by_norm is None else (found.by_norm * share,)
        return cosine + share * (found.psi - cosine), 1.0 + share * (found.by_cosine - 1.0), *by_norm
