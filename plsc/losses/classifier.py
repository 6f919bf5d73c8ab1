"""The last layer: this rank's class centers [S, D], their loss, their gradient and their update.

The layer owns its optimizer step, because with millions of classes neither the gradient nor the
optimizer's state of the whole weight should ever exist in more places than they must.

N batch on this rank, G gathered batch, R ranks, D embedding, C classes, S classes of this shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.errors import ConfigError
from plsc.losses.heads import AfterGradient, Outcome, WithGradient
from plsc.losses.precision import HalfProducts, Products
from plsc.losses.row_optimizers import HalfMomentum, Momentum
from plsc.utils.ranges import Range, shard_range
from plsc.utils.seeding import derive_seed

# Initial centers are drawn in blocks of this many classes, each from its own seed, so that they do not
# depend on how classes are sharded.
_INIT_BLOCK = 4096
_INIT_STD = 0.01


class Classifier:
    """Class centers, sharded over ranks (`dist_` losses) or whole on each.

    A sharded layer gathers the features of all ranks (G = N * R) and sees its own S of C classes. A whole
    layer (S = C) sees the features of its rank alone (G = N), and its ranks sum their gradients.

    Args:
        config: the settings.
        collectives: over all ranks.
        make_optimizer: {name: parameter} -> an optimizer with `step(rate)`, `state()`, `load(state)`, `kind`, and
            `rule`: its arithmetic where rows can be updated as their gradient is made, else None.
    """

    def __init__(
        self, config: Config, collectives: Collectives, make_optimizer: Callable[[dict[str, paddle.Tensor]], Any]
    ) -> None:
        topology = collectives.topology
        self._collectives, self._sharded = collectives, config.is_sharded
        self._ranks = topology.world_size
        self.classes = (
            shard_range(config.num_classes, topology.world_size, topology.rank)
            if self._sharded
            else Range(0, config.num_classes)
        )
        self._seed = config.seed
        self.parameters = {"weight": self._create_weight(config)}
        if config.margins is None and config.bias_attr is not False:
            self.parameters["bias"] = self._create([self.classes.size], config.bias_attr, is_bias=True)
        self._layer = self._choose_layer(config, make_optimizer(self.parameters))
        self._outcome: Outcome | None = None

    @property
    def optimizer_kind(self) -> str:
        """Whose state `state` holds, for example 'Momentum'."""
        return self._layer.kind

    def forward(
        self, features: paddle.Tensor, labels: paddle.Tensor, step: int = 0, count_above: bool = False
    ) -> paddle.Tensor:
        """The mean loss over the global batch, 0-d, the same on every rank.

        Args:
            features: [N, D] of this rank, outside autograd.
            labels: [N] int64, 0 to C - 1.
            step: decides, with the seed and the rank, which classes are sampled.
            count_above: make `accuracy` available.
        """
        if self._sharded:
            features, labels = self._collectives.all_gather(features), self._collectives.all_gather(labels)
        seed = max(1, derive_seed(self._seed, step, self._collectives.topology.rank))
        self._outcome = self._layer.forward(features, labels, count_above, seed)
        loss = self._outcome.loss
        return loss if self._sharded else self._collectives.all_reduce_sum(loss.clone()) / self._ranks

    def backward(self, rate: float) -> paddle.Tensor:
        """Update the centers and return the gradient [N, D] of the loss by this rank's features.

        Args:
            rate: learning rate.
        """
        gradient, self._outcome = self._outcome.features, None
        if not self._sharded:
            self._layer.update(rate)
            # The mean over this rank's samples becomes the mean over all ranks' samples.
            return gradient / self._ranks
        finish = self._collectives.begin_reduce_scatter_sum(gradient)
        self._layer.update(rate)
        return finish()

    def accuracy(self) -> dict[str, paddle.Tensor]:
        """acc1 and acc5 of the last `forward` with `count_above`, by the logits without margin."""
        above = self._outcome.above
        found = {f"acc{k}": (above < k).astype("float32").mean() for k in (1, 5)}
        if not self._sharded:
            found = {name: self._collectives.all_reduce_sum(value) / self._ranks for name, value in found.items()}
        return found

    def state(self) -> dict[str, paddle.Tensor]:
        """'weight' [S, D], 'bias' [S] and their optimizer state, as '<parameter>:<kind>'."""
        return {**self.parameters, **self._layer.state()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned, cut to this rank's classes; without optimizer state, that starts anew."""
        for name, parameter in self.parameters.items():
            parameter.set_value(state[name])
        rest = {name: value for name, value in state.items() if name not in self.parameters}
        if rest:
            self._layer.load(rest)

    def _choose_layer(self, config: Config, optimizer: Any) -> Any:
        reducer = self._collectives if self._sharded else Collectives()
        whole_on_many = not self._sharded and self._ranks > 1
        rule = None if whole_on_many else optimizer.rule
        if config.momentum_storage == "bfloat16":
            if type(rule) is not Momentum or config.emb_dim % 2:
                raise ConfigError(
                    "set_momentum_storage('bfloat16') needs sharded centers ('dist_...'), plain Momentum "
                    f"and an even embedding size; this run has '{config.loss_type}', {optimizer.kind} "
                    f"and {config.emb_dim}"
                )
            rule = HalfMomentum(rule.momentum, rule.l2)
        if rule is not None:
            half = config.use_fp16 and self._collectives.topology.on_gpu
            products = HalfProducts(config.amp_dtype) if half else Products()
            return WithGradient(config, self.parameters, self.classes, reducer, rule, products)
        if config.sample_ratio < 1.0:
            why = (
                f"loss_type '{config.loss_type}' holds all classes on each rank; use 'dist_{config.loss_kind}'"
                if whole_on_many
                else f"the state of {optimizer.kind} as it was set cannot travel with the sampled classes; use "
                f"Momentum, SGD or AdamW without gradient clipping, and no special param_attr"
            )
            raise ConfigError(f"set_sample_ratio({config.sample_ratio}): {why}")
        return AfterGradient(config, self.parameters, self.classes, reducer, optimizer, self._sum_over_ranks)

    def _sum_over_ranks(self, gradient: paddle.Tensor) -> paddle.Tensor:
        """A whole layer's gradient of the mean over all ranks' samples."""
        return gradient if self._sharded else self._collectives.all_reduce_sum(gradient) / self._ranks

    def _create_weight(self, config: Config) -> paddle.Tensor:
        shape = [self.classes.size, config.emb_dim]
        weight = self._create(shape, config.param_attr)
        if getattr(config.param_attr, "initializer", None) is None:
            weight.set_value(initial_centers(self.classes, config.emb_dim, config.seed))
        return weight

    def _create(self, shape: list, attr: Any, is_bias: bool = False) -> paddle.Tensor:
        return paddle.nn.Layer().create_parameter(shape, attr or None, "float32", is_bias=is_bias)


def initial_centers(classes: Range, emb_dim: int, seed: int) -> np.ndarray:
    """[S, D] float32 of N(0, 0.01), the same for a class however classes are sharded."""
    centers = np.empty([classes.size, emb_dim], np.float32)
    for block in range(classes.start // _INIT_BLOCK, -(-classes.stop // _INIT_BLOCK)):
        first = block * _INIT_BLOCK
        rows = classes.overlap(Range(first, first + _INIT_BLOCK))
        drawn = np.random.default_rng(derive_seed(seed, block)).standard_normal([_INIT_BLOCK, emb_dim], np.float32)
        centers[rows.start - classes.start : rows.stop - classes.start] = drawn[rows.start - first : rows.stop - first]
    return np.multiply(centers, _INIT_STD, out=centers)
