"""The last layer: this rank's class centers [S, D], their loss, their gradient and their update.

The layer owns its optimizer step: with millions of classes, neither the gradient nor the optimizer's state of the whole
weight should exist in more places than necessary.

N batch on this rank, R ranks, G = N R gathered batch, D embedding, C classes, S classes of this shard.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.distributed.agreement import on_all_ranks
from plsc.distributed.collectives import Collectives
from plsc.distributed.groups import HeadGroups, head_groups
from plsc.errors import ConfigError
from plsc.losses import MARGIN_STATE, SavedState, load_tensor
from plsc.losses.centers import Centers
from plsc.losses.creation import create_parameter, create_weight, fill_weight, with_storage
from plsc.losses.fused import FusedSoftmax
from plsc.losses.fused_binary import FusedBinary
from plsc.losses.global_batch import of_global_batch
from plsc.losses.heads import FusedHead, HeadOutput, ParameterOptimizer, UnfusedHead
from plsc.losses.location import location_of
from plsc.losses.margins import (
    BinaryMargin,
    CountedMargin,
    StatefulMargin,
    SteppedMargin,
    build_margin,
    is_per_sample,
)
from plsc.losses.precision import HalfPrecision, Precision
from plsc.losses.reference import ReferenceBinary, ReferenceSoftmax
from plsc.losses.row_optimizers import RowOptimizer
from plsc.losses.shard import Shard
from plsc.losses.storage import Places
from plsc.utils.class_numbers import numbers_of_classes
from plsc.utils.hints import setter
from plsc.utils.plural import counted
from plsc.utils.ranges import shard_range
from plsc.utils.seeding import derive_seed

log = logging.getLogger("plsc")

# In the place of a rank, of which there are fewer, in the seed of what margins draw.
_MARGIN_SEED = 2**31


class Classifier:
    """Class centers, sharded over ranks (`dist_` losses) or replicated on each.

    A sharded head gathers the features of the ranks of its group and holds S of the C classes. A group is all ranks
    (G = N R), or `head_group_size` of them (G = N g): then the other groups hold the same shards, and the gradients of
    a shard are averaged over its replicas. A replicated head (S = C) sees the features of its rank only, as a group of
    one rank does.

    Args:
        config: the settings.
        collectives: over all ranks.
        make_optimizer: {name: parameter} -> the optimizer of these parameters.
        groups: of the ranks; by default those of `groups_of(config, collectives)`.
        class_counts: the number of training images [C] of each class, or None where it is not known; called where the
            margin depends on it and `config.class_counts` does not give it.

    Raises:
        ConfigError: `sample_ratio`, `momentum_storage` or `head_optimizer` does not fit the loss or the optimizer, or
            the class centers do not fit into memory.

    Example:
        >>> config = Config(num_classes=1000, emb_dim=64)
        >>> head = Classifier(config, Collectives(), make_optimizer=lambda named: NamedOptimizer(config, named))
        >>> loss = head.forward(features, labels)
        >>> feature_gradient = head.backward()
        >>> head.update(learning_rate=0.1)
    """

    def __init__(
        self,
        config: Config,
        collectives: Collectives,
        *,
        make_optimizer: Callable[[dict[str, paddle.Tensor]], ParameterOptimizer],
        groups: HeadGroups | None = None,
        class_counts: Callable[[], np.ndarray[Any, Any] | None] = lambda: None,
    ) -> None:
        self._collectives, self._groups = collectives, groups or groups_of(config, collectives)
        self._shards, self._replicas = self._groups.shards, self._groups.replicas
        place = self._shards.topology
        self.classes = shard_range(config.num_classes, place.world_size, shard=place.rank)
        if config.num_classes == 1 and collectives.topology.is_main:
            log.warning(
                "num_classes is 1: the softmax over one class has a loss of 0 and no gradient, so the network learns "
                "nothing; training needs two classes or more"
            )
        self._seed, self._scale = config.seed, config.loss_scale
        self._margin = build_margin(config)
        if isinstance(self._margin, CountedMargin):
            self._margin.set_class_counts(self._class_counts(config, class_counts), self.classes)
        self._class_weights: paddle.Tensor | None = None
        if config.class_weights:
            given = numbers_of_classes("class_weights", config.class_weights, config.num_classes)
            self._class_weights = paddle.to_tensor(given.astype(np.float32))
        self._location = location_of(config, on_gpu=collectives.topology.on_gpu)
        self.parameters = {"weight": create_weight(config, self.classes, self._location)}
        if self._margin is None and config.bias_attr is not False:
            self.parameters["bias"] = create_parameter([self.classes.size], config.bias_attr, is_bias=True)
        self._head = self._choose_head(config, make_optimizer(self.parameters))
        fill_weight(config, self.parameters["weight"], self.classes)  # after what may be refused
        self._output: HeadOutput | None = None
        self._margin_before: dict[str, paddle.Tensor] = {}

    @property
    def optimizer_kind(self) -> str:
        """Whose state `state` holds, for example 'Momentum'."""
        return self._head.kind

    @property
    def is_copy(self) -> bool:
        """Whether a lower rank holds the same rows."""
        return not self._replicas.topology.is_main

    def forward(
        self, features: paddle.Tensor, labels: paddle.Tensor, *, step: int = 0, count_above: bool = False
    ) -> paddle.Tensor:
        """The mean loss over the global batch, 0-d, the same on every rank.

        Args:
            features: [N, D] of this rank, outside autograd.
            labels: [N] int64, 0 to C - 1.
            step: decides, with the seed and the shard, which classes are sampled; the margin is told it.
            count_above: make `accuracy` available.
        """
        features, labels = self._shards.all_gather(features), self._shards.all_gather(labels)
        if isinstance(self._margin, StatefulMargin):
            self._margin_before = {name: value.clone() for name, value in self._margin.state().items()}
        if isinstance(self._margin, SteppedMargin):
            self._margin.begin_step(step, seed=max(1, derive_seed(self._seed, step, _MARGIN_SEED)))
        rank = self._shards.topology.rank
        seed, next_seed = (max(1, derive_seed(self._seed, number, rank)) for number in (step, step + 1))
        weights = None if self._class_weights is None else self._weights_of(self._class_weights, labels)
        self._output = self._head.forward(
            features, labels, weights=weights, count_above=count_above, seed=seed, next_seed=next_seed
        )
        loss = self._output.loss
        return self._groups.mean_(loss.clone()) if self._groups.has_replicas else loss

    def backward(self) -> paddle.Tensor:
        """The gradient [N, D] of the loss by this rank's features. Call it once per `forward`; no center moves.

        Raises:
            RuntimeError: there was no `forward` before.
        """
        gradient = self._shards.reduce_scatter_sum(self._last_output().feature_gradient)
        # The mean over the samples of a group becomes the mean over those of all groups.
        return gradient / self._replicas.topology.world_size if self._groups.has_replicas else gradient

    def update(self, learning_rate: float) -> None:
        """Move the centers, and the bias of a binary loss, by the gradient of the last loss.

        Raises:
            RuntimeError: there was no `forward` since the last `update` or `discard`.
        """
        by_bias = self._last_output().by_bias
        self._output = None
        self._head.update(learning_rate)
        if by_bias is not None and isinstance(self._margin, BinaryMargin):
            self._margin.move_bias(self._groups.mean_(by_bias), learning_rate)

    def discard(self) -> None:
        """Leave the last `forward` out: no center moves, and the margin's state is that of before."""
        self._output = None
        self._head.discard()
        if isinstance(self._margin, StatefulMargin):
            self._margin.load({name: value.numpy() for name, value in self._margin_before.items()})

    def sum_of_squares(self) -> paddle.Tensor | None:
        """The sum of the squares of this rank's centers after the last `update`, where their norms are known."""
        return self._head.sum_of_squares()

    def accuracy(self) -> dict[str, paddle.Tensor]:
        """acc1 and acc5 of the last `forward` with `count_above`, by the logits without margin.

        Raises:
            RuntimeError: there was no such `forward`, or `update` or `discard` came after it.
        """
        greater = self._last_output().num_greater
        if greater is None:
            raise RuntimeError("accuracy() needs forward(..., count_above=True) before it")
        return {f"acc{k}": self._groups.mean_((greater < k).astype("float32").mean()) for k in (1, 5)}

    def target_cosines(self) -> tuple[paddle.Tensor, paddle.Tensor] | None:
        """(cosines [G], weights [G]) of the last `forward`; the weights are 1 where this rank holds the class, else 0.

        None for softmax, which has no cosines.

        Raises:
            RuntimeError: there was no `forward`, or `update` or `discard` came after it.
        """
        found = self._last_output().cosines
        return None if found is None else (found.values / found.factor, found.owned.astype(found.values.dtype))

    def centers(self) -> Centers:
        """The class centers as the classification of images uses them."""
        self._location.advise(is_random=False)  # all of them are read now
        bias, place = self.parameters.get("bias"), self._replicas.topology
        own = shard_range(self.classes.size, place.world_size, shard=place.rank).shift(self.classes.start)
        return Centers(
            weight=self.parameters["weight"].detach(),
            bias=None if bias is None else bias.detach(),
            classes=self.classes,
            searched=own,
            is_cosine=self._margin is not None,
            scale=1.0 if self._margin is None else self._scale,
        )

    def state(self) -> dict[str, paddle.Tensor]:
        """The tensors to save by name.

        'weight' [S, D] or [S, K, D], 'bias' [S], the optimizer's state as '<parameter>:<kind>', the margin's as
        'margin:<name>'.
        """
        state = {**self.parameters, **self._head.state()}
        if isinstance(self._margin, StatefulMargin):
            state.update({MARGIN_STATE + name: value for name, value in self._margin.state().items()})
        return state

    def load(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Set what `state` returned, cut to this rank's classes.

        Missing state of the optimizer or of the margin starts at its initial value. Write into the weight between steps
        by this method only: it drops the norms of the earlier rows.

        Raises:
            CheckpointError: a part of the optimizer's state is missing.
        """
        for name, parameter in self.parameters.items():
            if isinstance(self._head, FusedHead):
                self._head.load_parameter(state, name)
            else:
                load_tensor(parameter, state, name)
        margin = {name[len(MARGIN_STATE) :]: state[name] for name in state if name.startswith(MARGIN_STATE)}
        rest = [name for name in state if name not in self.parameters and not name.startswith(MARGIN_STATE)]
        if rest:
            self._head.load(_Chosen(state, rest))
        if isinstance(self._margin, StatefulMargin):
            if margin.keys() == self._margin.state().keys():
                self._margin.load(margin)
            else:
                log.warning(
                    "%s keeps %s, the checkpoint holds %s: the state of the margin starts anew",
                    type(self._margin).__name__,
                    sorted(self._margin.state()),
                    sorted(margin) or "none",
                )

    def has_row_per_class(self, name: str) -> bool:
        """Whether the tensor `name` of `state` has one row per class."""
        return not name.startswith(MARGIN_STATE) and self._head.has_row_per_class(name)

    def may_copy(self, name: str) -> bool:
        """Whether memory may be taken for a copy of the tensor `name` of `state`."""
        return self._head.may_copy(name)

    def _weights_of(self, class_weights: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """The weights of the samples of `labels`, of mean 1 over the global batch; 0 where all of them are 0."""
        weights = paddle.index_select(class_weights, labels)
        total = self._groups.mean_(weights.sum())
        return weights * (len(labels) / paddle.clip(total, min=paddle.finfo(total.dtype).tiny))

    @staticmethod
    def _class_counts(config: Config, known: Callable[[], np.ndarray[Any, Any] | None]) -> np.ndarray[Any, Any]:
        if config.class_counts:
            return numbers_of_classes("class_counts", config.class_counts, config.num_classes)
        counts = known()
        if counts is None:
            raise ConfigError(
                f"loss_type '{config.loss_type}' needs the number of training images of each class, which this "
                f"training data does not say; give it: {setter('class_counts', 'counts.npy')}"
            )
        return counts

    def _last_output(self) -> HeadOutput:
        if self._output is None:
            raise RuntimeError("there was no forward() since the last update() or discard()")
        return self._output

    def _choose_head(self, config: Config, optimizer: ParameterOptimizer) -> FusedHead | UnfusedHead:
        margin = self._margin
        replicated = not config.is_sharded and self._collectives.topology.world_size > 1
        if self._groups.has_replicas and margin is not None and not is_per_sample(margin):
            margin = of_global_batch(margin, self._replicas)
        row_optimizer = None if replicated else optimizer.row_optimizer
        if config.head_optimizer is not None:
            row_optimizer = _check_head_optimizer(config, replicated)
        row_optimizer = with_storage(config, row_optimizer, kind=optimizer.kind, location=self._location)
        if row_optimizer is not None:
            half = config.use_fp16 and self._collectives.topology.on_gpu
            precision = HalfPrecision(config.amp_dtype) if half else Precision()
            weight, bias = self.parameters["weight"], self.parameters.get("bias")
            fused = FusedBinary if isinstance(margin, BinaryMargin) else FusedSoftmax
            return FusedHead(
                Shard(
                    weight,
                    row_optimizer,
                    bias=bias,
                    first_class=self.classes.start,
                    state_storage=config.momentum_storage,
                    seed=config.seed,
                    location=self._location,
                ),
                lambda logits: fused(
                    margin,
                    config.loss_scale,
                    reducer=self._shards,
                    logits=logits,
                    precision=precision,
                    filter_above=config.interclass_filter,
                    smoothing=config.label_smoothing,
                ),
                groups=self._groups,
                sample_ratio=config.sample_ratio,
                logits=config.logits,
            )
        if config.sample_ratio < 1.0:
            why = (
                f"loss_type '{config.loss_type}' holds all classes on each rank; use 'dist_{config.loss_kind}'"
                if replicated
                else f"the state of {optimizer.kind} as it was set cannot be sampled with the classes; use "
                f"a named optimizer, or Momentum, SGD or AdamW without gradient clipping, and no special param_attr"
            )
            raise ConfigError(f"{setter('sample_ratio', config.sample_ratio)}: {why}")
        reference = ReferenceBinary if isinstance(margin, BinaryMargin) else ReferenceSoftmax
        return UnfusedHead(
            reference(
                margin,
                config.loss_scale,
                first_class=self.classes.start,
                reducer=self._shards,
                filter_above=config.interclass_filter,
                smoothing=config.label_smoothing,
            ),
            self.parameters,
            optimizer=optimizer,
            reduce_gradient=self._groups.mean_,
        )


def groups_of(config: Config, collectives: Collectives) -> HeadGroups:
    """The groups of ranks that the settings ask for. Every rank must call this.

    Raises:
        ConfigError: `head_group_size` fits neither the loss nor the number of ranks; the same on all ranks.
    """
    ranks = collectives.topology.world_size
    size = config.head_group_size or ranks
    reason = ""
    if config.head_group_size and not config.is_sharded and ranks > 1:
        reason = (
            f"each rank holds all classes (loss_type '{config.loss_type}', model_parallel {config.model_parallel}); "
            f"use 'dist_{config.loss_kind}', or leave head_group_size out"
        )
    elif ranks % size:
        fitting = ", ".join(str(number) for number in range(1, ranks + 1) if ranks % number == 0)
        reason = f"{counted(ranks, 'rank')} cannot be divided into groups of {size}; give one of {fitting}"
    if reason:
        raise on_all_ranks(ConfigError(f"{setter('head_group_size', size)}: {reason}"))
    return head_groups(collectives, size if config.is_sharded else 1)


class _Chosen(SavedState):
    """Some tensors of a state."""

    def __init__(self, state: Mapping[str, np.ndarray[Any, Any]], names: list[str]) -> None:
        self._state, self._names = state, names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        if name not in self._names:
            raise KeyError(name)
        return self._state[name]

    def copy_to(self, name: str, tensor: paddle.Tensor) -> None:
        load_tensor(tensor, self._state, name)

    def blocks(self, name: str) -> Iterator[tuple[Places, np.ndarray[Any, Any]]]:
        return self._state.blocks(name) if isinstance(self._state, SavedState) else super().blocks(name)


def _check_head_optimizer(config: Config, replicated: bool) -> RowOptimizer:
    optimizer = config.head_optimizer
    if not isinstance(optimizer, RowOptimizer) or isinstance(optimizer, type):
        raise ConfigError(
            f"head_optimizer: got {optimizer!r}, expected an object with l2, state_names, state_dtype, uses_step, "
            f"prepare and apply; plsc.losses.RowOptimizer is a base class for it"
        )
    names, name = optimizer.state_names, type(optimizer).__name__
    # A text would be taken for the names of its letters, and two equal names for one tensor.
    is_tuple = isinstance(names, (tuple, list)) and all(isinstance(each, str) and each.isidentifier() for each in names)
    if not is_tuple or len(set(names)) < len(names):
        raise ConfigError(
            f"head_optimizer {name}: state_names is {names!r}, expected a tuple of different names, as ('velocity',)"
        )
    is_number = isinstance(optimizer.l2, (int, float, np.number)) and not isinstance(optimizer.l2, bool)
    if not is_number or not math.isfinite(optimizer.l2):
        raise ConfigError(f"head_optimizer {name}: l2 is {optimizer.l2!r}, expected a finite number")
    if optimizer.state_dtype not in (None, "float64", "float32", "bfloat16", "float16"):
        raise ConfigError(
            f"head_optimizer {name}: state_dtype is {optimizer.state_dtype!r}, expected None, 'float32', 'bfloat16', "
            f"'float16' or 'float64'"
        )
    if replicated:
        raise ConfigError(
            f"head_optimizer needs sharded centers ('dist_...') on several ranks; this run has '{config.loss_type}'; "
            f"use 'dist_{config.loss_kind}'"
        )
    return optimizer
