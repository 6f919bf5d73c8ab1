"""The loss scale of training in float16.

Gradients below 6e-8 are zero in float16, and those above 65,504 are infinite. The gradient that enters the backbone is
multiplied by the loss scale, and the gradients of the parameters, which are float32, are divided by it.

The scale is a number of the host, and each rank computes the same one from the verdicts that ranks share.
`paddle.amp.GradScaler` is not used: with NumPy 2.4 that of Paddle 3.3.1 raises a TypeError where its scale shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.losses.ops import unscale_

# Both ends of float32's range: the scale and its inverse are float32 on the device.
_LEAST, _GREATEST = 2.0**-126, 2.0**126


class LossScale:
    """A factor that grows after many steps without an overflow and shrinks after overflows.

    Args:
        config: `init_loss_scaling`, and the settings by which it grows and shrinks.

    Attributes:
        value: the factor.

    Example:
        >>> scale = LossScale(Config())
        >>> features.backward(gradient * scale.value)
        >>> found = scale.unscale_(gradients)
        >>> scale.update(overflowed=bool(found))
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.value = float(config.init_loss_scaling)
        self._good_steps, self._overflows = 0, 0
        self._tensor: paddle.Tensor | None = None

    def unscale_(self, gradients: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """Divide gradients by the scale, in place.

        Returns:
            [1] bool, on the device: whether a gradient was not finite.
        """
        if self._tensor is None:  # kept, since each new one is copied to the device
            self._tensor = paddle.to_tensor([self.value], "float32")
        return unscale_(gradients, self._tensor)

    def update(self, *, overflowed: bool) -> None:
        """Count a step, and grow or shrink where that is due."""
        config = self._config
        if not config.use_dynamic_loss_scaling:
            return
        self._good_steps = 0 if overflowed else self._good_steps + 1
        self._overflows = self._overflows + 1 if overflowed else 0
        if self._overflows >= config.decr_every_n_nan_or_inf:  # beyond, where a run resumes with other settings
            self._set(self.value * config.decr_ratio)
            self._overflows = 0
        elif self._good_steps >= config.incr_every_n_steps:
            self._set(self.value * config.incr_ratio)
            self._good_steps = 0

    def state(self) -> dict[str, Any]:
        """The scale, its counters and its settings, JSON-able, under the names of `paddle.amp.GradScaler`."""
        names = ("incr_ratio", "decr_ratio", "incr_every_n_steps", "decr_every_n_nan_or_inf")
        return {
            "scale": [self.value],
            **{name: getattr(self._config, name) for name in names},
            "incr_count": self._good_steps,
            "decr_count": self._overflows,
            "use_dynamic_loss_scaling": self._config.use_dynamic_loss_scaling,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the scale and the counters of what `state` returned, or of a `GradScaler`'s state.

        How the scale grows and shrinks stays as the settings of this run say.

        Raises:
            KeyError: a part is missing.
            ValueError: the scale is not one positive number.
        """
        value = float(np.asarray(state["scale"], np.float64).reshape([]))
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the scale is {value}, expected a number above 0")
        self._set(value)
        self._good_steps, self._overflows = int(state["incr_count"]), int(state["decr_count"])

    def _set(self, value: float) -> None:
        self.value, self._tensor = min(max(value, _LEAST), _GREATEST), None
