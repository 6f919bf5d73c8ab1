"""How a layer's rows are updated: as their gradient is made, or by any Paddle optimizer afterwards.

Both take two steps, because a trainer may look at the loss before it lets the update happen:
`forward` gives the loss and the feature gradient, `update` then changes the rows.

G gathered batch, D embedding, S classes of this shard.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle

from plsc.config import Config
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import Margin
from plsc.losses.precision import Products
from plsc.losses.reference import Reducer, ShardedSoftmax
from plsc.losses.row_optimizers import AdamW, UpdateRule
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.utils.ranges import Range

log = logging.getLogger("plsc")

Parameters = dict[str, paddle.Tensor]


class Outcome(NamedTuple):
    """What `forward` gives: L 0-d, its gradient by the features [G, D] (partial over shards), and `above` of
    `plsc.losses.reference.State`."""

    loss: paddle.Tensor
    features: paddle.Tensor
    above: paddle.Tensor | None


class AfterGradient:
    """The whole gradient first, then a Paddle optimizer of any kind.

    Args:
        reduce_gradients: what becomes of a parameter's gradient before the update.
    """

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        classes: Range,
        reducer: Reducer,
        optimizer: Any,
        reduce_gradients: Any,
    ) -> None:
        self._softmax = ShardedSoftmax(_margin(config), config.scale, classes.start, reducer)
        self._parameters, self._optimizer, self._reduce = parameters, optimizer, reduce_gradients
        self._gradients: dict[str, paddle.Tensor | None] = {}

    @property
    def kind(self) -> str:
        return self._optimizer.kind

    def forward(self, x: paddle.Tensor, labels: paddle.Tensor, count_above: bool, seed: int) -> Outcome:
        weight, bias = self._parameters["weight"], self._parameters.get("bias")
        state = self._softmax.forward(x, labels, weight, bias, count_above)
        features, weight_gradient, bias_gradient = self._softmax.backward(state)
        self._gradients = {"weight": weight_gradient, "bias": bias_gradient}
        return Outcome(state.loss, features, state.above)

    def update(self, rate: float) -> None:
        for name, parameter in self._parameters.items():
            if parameter.shape[0]:
                parameter.grad = self._reduce(self._gradients[name])
        self._gradients = {}
        if self._parameters["weight"].shape[0]:
            self._optimizer.step(rate)

    def state(self) -> dict[str, paddle.Tensor]:
        return self._optimizer.state()

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self._optimizer.load(state)


class WithGradient:
    """Chunk by chunk: no gradient of the whole weight ever exists. Also the way to sample classes.

    Args:
        rule: the optimizer's arithmetic.
        products: how matrices are multiplied.
    """

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        classes: Range,
        reducer: Reducer,
        rule: UpdateRule,
        products: Products,
    ) -> None:
        self._shard = Shard(parameters["weight"], parameters.get("bias"), rule, classes.start)
        self._margin, self._scale, self._reducer, self._products = _margin(config), config.scale, reducer, products
        self._ratio, self._mode = config.sample_ratio, config.logits
        self._softmax: FusedSoftmax | None = None
        self._sampled: SampledShard | None = None
        self._samples = 0
        self._state: Any = None

    @property
    def kind(self) -> str:
        # AdamW's state is another than Paddle's, which keeps powers where this counts.
        return "FusedAdamW" if self._counts else type(self._shard.rule).__name__

    def forward(self, x: paddle.Tensor, labels: paddle.Tensor, count_above: bool, seed: int) -> Outcome:
        if self._samples < x.shape[0]:
            self._prepare(x.shape[0])
        if self._sampled is not None:
            self._sampled.draw(labels, seed)
        self._state = self._softmax.forward(x, labels, self._sampled or self._shard, count_above)
        return Outcome(self._state.loss, self._state.feature_gradient, self._state.above)

    def update(self, rate: float) -> None:
        self._softmax.backward(self._state, self._sampled or self._shard, rate)
        self._state = None
        if self._sampled is not None:
            self._sampled.put_back()

    def state(self) -> dict[str, paddle.Tensor]:
        count = {"updates:pow_acc": paddle.to_tensor([self._shard.step], dtype="int64")} if self._counts else {}
        return {**self._shard.state, **count}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        for name, tensor in self._shard.state.items():
            tensor.set_value(state[name])
        if self._counts:
            self._shard.step = int(state["updates:pow_acc"][0])

    @property
    def _counts(self) -> bool:
        return isinstance(self._shard.rule, AdamW)

    def _prepare(self, samples: int) -> None:
        """Choose, for batches of up to so many samples, how logits are held and which rows can be sampled."""
        self._samples, shard = samples, self._shard
        if self._ratio < 1.0:
            self._sampled = SampledShard(shard, self._ratio, samples)
        mode = self._mode
        if mode == "auto":
            rows = (self._sampled or shard).size
            needed, free = 4 * rows * samples, _free_bytes(shard.weight)
            # Half, because the backbone's activations and the other ranks of this machine want memory too.
            mode = "store" if needed <= free / 2 else "recompute"
            log.info(
                "logits of %d classes x %d samples take %.2f GiB, %.1f GiB are free: mode '%s'",
                rows,
                samples,
                needed / 2**30,
                free / 2**30,
                mode,
            )
        self._softmax = FusedSoftmax(self._margin, self._scale, self._reducer, mode, self._products)


def _margin(config: Config) -> Margin | None:
    return None if config.margins is None else Margin(*config.margins)


def _free_bytes(tensor: paddle.Tensor) -> int:
    """Memory that is free where the tensor lies."""
    if tensor.place.is_gpu_place():
        cuda = paddle.device.cuda
        return cuda.get_device_properties().total_memory - cuda.memory_reserved()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
