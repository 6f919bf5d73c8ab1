"""Mixed precision of the backbone, loss scaling, and how GPUs compute float32."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import paddle

from plsc.config import Config
from plsc.distributed.topology import Topology
from plsc.engine import numerics
from plsc.engine.loss_scale import LossScale
from plsc.engine.soundness import Stage
from plsc.losses.precision import check_capability
from plsc.utils.hints import setter

log = logging.getLogger("plsc")

# Paddle has half-precision kernels of these, but lists them nowhere, so that their float32 weight makes them float32.
_ALSO_HALF = frozenset({"prelu"})
# What a half-precision forward pass makes, and the head of it. Images come as float32.
_MADE_IN_HALF = frozenset({Stage.STATISTIC, Stage.FEATURES, Stage.LOSS, Stage.FEATURE_GRADIENT})


class Precision:
    """`paddle.amp` as the settings ask for it. On CPU, Paddle computes in float32, and every call has no effect.

    On a GPU it also sets, for the process, what `tf32` and `deterministic` ask for.

    Args:
        config: `use_fp16`, `amp_dtype`, `amp_lists`, the settings of the loss scale, `tf32`, `deterministic`.
        topology: the device.

    Attributes:
        scale: the loss scale; None where the loss is not scaled: float32 and bfloat16 have the same exponents.

    Raises:
        ConfigError: the GPU cannot multiply in `amp_dtype`.
    """

    def __init__(self, config: Config, topology: Topology) -> None:
        self._enabled, self._dtype = config.use_fp16 and topology.on_gpu, config.amp_dtype
        if config.use_fp16 and not topology.on_gpu and topology.is_main:
            log.warning("%s has no effect on CPU: Paddle computes in float32 there", setter("use_fp16"))
        if self._enabled:
            check_capability(self._dtype)
        self._lists = _operator_lists(config.amp_lists or {})
        self.scale = LossScale(config) if self._enabled and self._dtype == "float16" else None
        self._tf32 = config.tf32 and topology.on_gpu
        if topology.on_gpu:
            _set_up_gpu(config)
            if topology.is_main:
                log.info(self._describe(config))

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """The context in which the backbone computes its features."""
        with self.backward(), self._autocast():
            yield

    def backward(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the backbone computes its gradients: they are computed in the types of the features."""
        return numerics.tf32_allowed() if self._tf32 else contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self._enabled:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(dtype=self._dtype, **self._lists)  # type: ignore[no-any-return]  # Paddle is Any

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled: such a step may overflow, and is then left out."""
        return self.scale is not None

    def scaled(self, gradient: paddle.Tensor) -> paddle.Tensor:
        """A gradient of the loss times the loss scale."""
        return gradient if self.scale is None else gradient * self.scale.value

    def unscale_(self, gradients: Sequence[paddle.Tensor]) -> paddle.Tensor | None:
        """Divide the gradients of the parameters by the loss scale.

        Returns:
            [1] bool, on the device: whether one was not finite; None where the loss is not scaled.
        """
        return None if self.scale is None else self.scale.unscale_(gradients)

    def may_have_overflowed(self, stage: Stage) -> bool:
        """Whether float16's range explains that a tensor of a step is not finite.

        It always explains a scaled gradient. The loss scale has no part in the forward pass, but where half precision
        overflows there, other images or weights may do without; a step with a scale of 1 or less is trusted no longer.
        """
        if self.scale is None:
            return False
        return stage is Stage.SCALED_GRADIENT or (stage in _MADE_IN_HALF and self.scale.value > 1.0)

    def update(self, *, overflowed: bool) -> None:
        """Let the loss scale grow or shrink after a step."""
        if self.scale is not None:
            self.scale.update(overflowed=overflowed)

    def state(self) -> dict[str, Any]:
        """The loss scale and its counters, JSON-able; empty where the loss is not scaled."""
        return {} if self.scale is None else self.scale.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        if self.scale is not None and state:
            self.scale.load(state)

    def _describe(self, config: Config) -> str:
        mixed = ""
        if self._enabled:
            start = "" if self.scale is None else f", first loss scale {self.scale.value:g}"
            mixed = f"mixed precision: {self._dtype}{start}; "
        where = "of the backbone" if config.tf32 else "nowhere"
        order = "; deterministic algorithms" if config.deterministic else ""
        return f"{mixed}TF32 in float32 products {where} ({setter('tf32')}){order}"


def _set_up_gpu(config: Config) -> None:
    numerics.set_tf32(False)
    if config.tf32:
        numerics.prepare_tf32()
    if config.deterministic:
        numerics.make_deterministic()


def _operator_lists(lists: Mapping[str, Any]) -> dict[str, set[str]]:
    """The lists of the user, who has the last word, and the operators that Paddle's own lists lack."""
    black = set(lists.get("custom_black_list") or ())
    white = set(lists.get("custom_white_list") or ()) | (_ALSO_HALF - black)
    return {"custom_white_list": white, "custom_black_list": black}
