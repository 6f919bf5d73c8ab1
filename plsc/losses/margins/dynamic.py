"""Dynamic margin: rare classes get a greater margin.

    m_c = low + (high - low) (t_c - min t) / (max t - min t),   t_c = n_c^-power, n_c images of class c
    psi = cos(theta + m_y), beyond theta + m_y = pi as in `plsc.losses.margins.angular`

A class without images gets `high`. Where all classes have equally many, all get (low + high) / 2. A rank keeps the
margins of its own classes, beside their centers.

Source: Google Landmark Recognition 2020 Competition Third Place Solution, Ha, Liu et al., arXiv 2010.05350, section
2.2, with power 1/4, 0.05 to 0.5 and s 80, as in the authors' code
(github.com/haqishen/Google-Landmark-Recognition-2020-3rd-Place-Solution).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from plsc.errors import ConfigError
from plsc.loss_types import DynamicMarginParameters
from plsc.losses.margins.angular import add_angle
from plsc.utils.ranges import Range


class DynamicMargin(DynamicMarginParameters):
    """The margin of each class from its number of images, which `set_class_counts` gives.

    Raises:
        ConfigError: a parameter is outside its range, or `high` is below `low`.

    Example:
        >>> config = Config(loss_type="dist_dynamic_margin", loss_options={"low": 0.1})
    """

    is_per_sample = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high < self.low:
            raise ConfigError(f"high: got {self.high:g}, expected at least low, {self.low:g}")
        self._margins, self._first_class = paddle.zeros([0]), 0

    def set_class_counts(self, counts: np.ndarray[Any, Any], classes: Range) -> None:
        """Compute the margins.

        Args:
            counts: [C] images of each class, 0 or more.
            classes: the classes whose centers this rank holds.
        """
        seen = counts > 0
        inverse = np.where(seen, np.maximum(counts, 1).astype(np.float64) ** -self.power, 1.0)
        least = inverse.min(where=seen, initial=np.inf)
        spread = inverse.max(where=seen, initial=-np.inf) - least
        share = (inverse - least) / spread if spread > 0 else np.full(len(counts), 0.5)
        margins = self.low + (self.high - self.low) * np.where(seen, share, 1.0)
        self._margins = paddle.to_tensor(margins[classes.start : classes.stop].astype(np.float32))
        self._first_class = classes.start

    def __call__(
        self, cosine: paddle.Tensor, norms: paddle.Tensor, labels: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """psi and its derivative by the cosine, both [G]; of meaning for the classes of this rank."""
        if not self._margins.shape[0]:  # an empty shard, whose values nobody uses
            return cosine, paddle.ones_like(cosine)
        row = paddle.clip(labels - self._first_class, 0, self._margins.shape[0] - 1)
        margin = paddle.index_select(self._margins, row).astype(cosine.dtype)
        added = add_angle(cosine, margin)
        return added.psi, added.by_cosine
