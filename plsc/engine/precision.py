"""Mixed precision of the backbone, and loss scaling."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.distributed.topology import Topology
from plsc.engine.optimizer import NamedOptimizer
from plsc.utils.hints import setter

log = logging.getLogger("plsc")


class Precision:
    """`paddle.amp` as the settings ask for it. On CPU, Paddle computes in float32, and every call has no effect.

    Args:
        config: `use_fp16`, `amp_dtype`, `amp_lists` and the settings of the loss scale.
        topology: the device.

    Attributes:
        scaler: the `paddle.amp.GradScaler`; where mixed precision is off, it changes nothing.
    """

    def __init__(self, config: Config, topology: Topology) -> None:
        self._enabled, self._dtype = config.use_fp16 and topology.on_gpu, config.amp_dtype
        if config.use_fp16 and not topology.on_gpu and topology.is_main:
            log.warning("%s has no effect on CPU: Paddle computes in float32 there", setter("use_fp16"))
        lists = config.amp_lists or {}
        self._lists = {name: lists[name] for name in ("custom_white_list", "custom_black_list") if name in lists}
        self.scaler = paddle.amp.GradScaler(
            enable=self._enabled,
            init_loss_scaling=config.init_loss_scaling,
            incr_ratio=config.incr_ratio,
            decr_ratio=config.decr_ratio,
            incr_every_n_steps=config.incr_every_n_steps,
            decr_every_n_nan_or_inf=config.decr_every_n_nan_or_inf,
            use_dynamic_loss_scaling=config.use_dynamic_loss_scaling,
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the backbone runs."""
        if not self._enabled:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(dtype=self._dtype, **self._lists)  # type: ignore[no-any-return]  # Paddle is Any

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled, so that a gradient that is not finite calls for a smaller scale."""
        return bool(self.scaler.is_enable())

    def overflows(self, optimizer: NamedOptimizer) -> bool:
        """Whether a gradient overflowed, the same on all ranks; the gradients are then divided by the loss scale.

        `GradScaler` leaves out the update of such a step and makes the scale smaller. Waits for the device.
        """
        if not self.scales_loss:
            return False
        optimizer.unscale(self.scaler)
        return bool(self.scaler._found_inf)

    def state(self) -> dict[str, Any]:
        """The loss scale and its counters, JSON-able."""
        return {key: np.asarray(value).tolist() for key, value in self.scaler.state_dict().items()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        if self._enabled and state:
            self.scaler.load_state_dict(
                {key: np.asarray(value, np.float32) if key == "scale" else value for key, value in state.items()}
            )
