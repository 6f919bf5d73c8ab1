"""The last layer on one rank, once the features are gathered: its loss, its feature gradient and its update.

`FusedHead` updates each block of rows as soon as its gradient is made. `UnfusedHead` makes the gradient of the whole
weight and passes it to a Paddle optimizer. Both take two steps, so that a trainer can judge a step before the update:
`forward`, then one of `update` and `discard`.
`plsc.losses.classifier.Classifier` gathers the features and chooses one of the two.

G gathered batch, D embedding, S classes of this shard.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import paddle

from plsc.distributed.groups import HeadGroups
from plsc.errors import CheckpointError
from plsc.losses import SavedState
from plsc.losses.fused import FusedSoftmax, FusedState
from plsc.losses.ops import split_rows
from plsc.losses.passes import Gradients
from plsc.losses.reference import ReferenceSoftmax, State, TargetCosines
from plsc.losses.row_optimizers import AdamW, RowOptimizer
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.losses.storage import RowStore, put_classes
from plsc.utils.files import size_text
from plsc.utils.memory import available_gpu_memory, available_memory
from plsc.utils.plural import counted
from plsc.utils.row_types import decoded

log = logging.getLogger("plsc")

Arrays = Mapping[str, np.ndarray[Any, Any]]

STEP = "optimizer:step"
_STEP_BEFORE_3 = "updates:pow_acc"  # the same count in checkpoints of PLSC 1.0
# In the state of Paddle's optimizers, only Adam's powers of beta are one number per parameter.
_SCALAR_STATE = "_pow_acc"


class HeadOutput(NamedTuple):
    """What `forward` returns.

    Attributes:
        loss: L, 0-d.
        feature_gradient: [G, D], partial over shards.
        num_greater: [G], as in `plsc.losses.reference.State`.
        by_bias: 0-d, the derivative of L by the bias of a binary loss; None for other losses.
        cosines: of the targets; None for softmax.
    """

    loss: paddle.Tensor
    feature_gradient: paddle.Tensor
    num_greater: paddle.Tensor | None
    by_bias: paddle.Tensor | None = None
    cosines: TargetCosines | None = None


class ParameterOptimizer(Protocol):
    """An optimizer of whole parameters, from their `grad`; its state has names '<parameter>:<kind>'."""

    @property
    def kind(self) -> str:
        """Name of the optimizer's class."""
        ...

    @property
    def row_optimizer(self) -> RowOptimizer | None:
        """The same arithmetic for any rows; None where the optimizer does more than that."""
        ...

    def step(self, learning_rate: float, /) -> None: ...

    def state(self) -> dict[str, paddle.Tensor]: ...

    def load(self, state: Arrays, /) -> None: ...


class UnfusedHead:
    """The gradient of the whole weight first, then a Paddle optimizer of any kind.

    Args:
        softmax: the loss.
        parameters: 'weight' [S, D] and, for softmax, 'bias' [S].
        optimizer: of these parameters.
        reduce_gradient: applied to a parameter's gradient before the update.
    """

    def __init__(
        self,
        softmax: ReferenceSoftmax,
        parameters: dict[str, paddle.Tensor],
        *,
        optimizer: ParameterOptimizer,
        reduce_gradient: Callable[[paddle.Tensor], paddle.Tensor],
    ) -> None:
        self._softmax, self._parameters = softmax, parameters
        self._optimizer, self._reduce = optimizer, reduce_gradient
        self._state: State | None = None

    @property
    def kind(self) -> str:
        """Whose state `state` returns."""
        return self._optimizer.kind

    def forward(
        self,
        features: paddle.Tensor,
        labels: paddle.Tensor,
        *,
        weights: paddle.Tensor | None = None,
        count_above: bool,
        seed: int,
        next_seed: int | None = None,
    ) -> HeadOutput:
        """The loss on features [G, D] and labels [G], weighted with `weights` [G] of mean 1; no seed is used."""
        self._state = self._softmax.loss_and_feature_gradient(
            features, labels, **self._parameters, weights=weights, count_above=count_above
        )
        state = self._state
        return HeadOutput(state.loss, state.feature_gradient, state.num_greater, state.by_bias, state.cosines)

    def update(self, learning_rate: float) -> None:
        """Update the parameters by the gradient of the last `forward`."""
        if self._state is None:
            return
        gradients, self._state = self._softmax.row_gradients(self._state)._asdict(), None
        if not self._parameters["weight"].shape[0]:
            return
        for name, parameter in self._parameters.items():
            parameter.grad = self._reduce(gradients.pop(name))
        self._optimizer.step(learning_rate)

    def discard(self) -> None:
        """Leave the last `forward` out."""
        self._state = None

    def sum_of_squares(self) -> paddle.Tensor | None:
        """None: it would take a pass over the parameters."""
        return None

    def state(self) -> dict[str, paddle.Tensor]:
        """The optimizer's state."""
        return self._optimizer.state()

    def load(self, state: Arrays) -> None:
        """Set the optimizer's state."""
        width = self._parameters["weight"].shape[-1]
        # Only a fused head has the number of its steps, where it rounds by it.
        self._optimizer.load({name: decoded(state[name], width) for name in state if name != STEP})

    def has_row_per_class(self, name: str) -> bool:
        """Whether the state tensor `name` has one row per class."""
        return not name.endswith(_SCALAR_STATE) and name != STEP

    def may_copy(self, name: str) -> bool:
        """Whether memory may be taken for a copy of the state tensor `name`."""
        return True


class FusedHead:
    """Chunk by chunk, with a row optimizer: the gradient of the whole weight never exists. Can sample classes.

    Args:
        shard: the class centers and their row optimizer.
        make_softmax: 'store' or 'recompute' -> the loss that works so.
        groups: of the ranks: the rows' gradients are averaged over the replicas of the shard; by default it has none.
        sample_ratio: part of the classes in each step.
        logits: 'store', 'recompute', or 'auto' to choose by the free memory.
    """

    def __init__(
        self,
        shard: Shard,
        make_softmax: Callable[[str], FusedSoftmax],
        *,
        groups: HeadGroups | None = None,
        sample_ratio: float = 1.0,
        logits: str = "auto",
    ) -> None:
        self._shard, self._make_softmax, self._groups = shard, make_softmax, groups or HeadGroups.single()
        self._ratio, self._logits = sample_ratio, logits
        self._softmax: FusedSoftmax | None = None
        self._sampled: SampledShard | None = None
        self._samples = 0
        self._state: FusedState | None = None

    @property
    def kind(self) -> str:
        """Whose state `state` returns."""
        # Paddle's AdamW stores beta^step where this one stores the step, so its state must not be taken for this.
        optimizer = self._shard.optimizer
        return "FusedAdamW" if type(optimizer) is AdamW else type(optimizer).__name__

    def forward(
        self,
        features: paddle.Tensor,
        labels: paddle.Tensor,
        *,
        weights: paddle.Tensor | None = None,
        count_above: bool,
        seed: int,
        next_seed: int | None = None,
    ) -> HeadOutput:
        """The loss on features [G, D] and labels [G], weighted with `weights` [G] of mean 1.

        `seed` decides the sample of classes, and `next_seed` that of the next step.
        """
        softmax = self._prepare(features.shape[0])
        if self._sampled is not None:
            # All replicas draw the same classes, those of the global batch among them.
            self._sampled.draw(self._groups.replicas.all_gather(labels), seed=seed, next_seed=next_seed)
        self._state = softmax.loss_and_feature_gradient(
            features, labels, shard=self._sampled or self._shard, weights=weights, count_above=count_above
        )
        state = self._state
        return HeadOutput(state.loss, state.feature_gradient, state.num_greater, state.by_bias, state.cosines)

    def update(self, learning_rate: float) -> None:
        """Update the rows by the gradient of the last `forward`."""
        if self._state is None or self._softmax is None:
            return
        state, self._state = self._state, None
        l2 = self._shard.optimizer.l2
        decays_bias = getattr(self._shard.optimizer, "decays_bias", True)  # a user's row optimizer may not say it
        gradients = self._softmax.row_gradients(state, l2=l2, bias_l2=l2 if decays_bias else 0.0)
        if self._groups.has_replicas:
            gradients = self._averaged(gradients, state.shard)
        state.shard.update(gradients, learning_rate=learning_rate)

    def _averaged(self, gradients: Gradients, shard: Shard) -> Gradients:
        """The means over the replicas of the shard, all blocks of a chunk in one collective."""
        for chunk in shard.chunks:
            # No more than these: the next chunk is loaded where the rows of this one lie.
            blocks, parts = zip(*itertools.islice(gradients, len(chunk.blocks)))
            mean = self._groups.mean_(paddle.concat(parts) if len(parts) > 1 else parts[0])
            yield from zip(blocks, split_rows(mean, sizes=chunk.sizes))
        for block, gradient in gradients:  # of the bias
            yield block, self._groups.mean_(gradient)

    def discard(self) -> None:
        """Leave the last `forward` out."""
        self._state = None

    def sum_of_squares(self) -> paddle.Tensor | None:
        """The sum of the squares of the weight, 0-d, by the norms of its rows; None where these are not known."""
        return self._shard.squared_norms().sum() if self._shard.has_norms else None

    def state(self) -> dict[str, paddle.Tensor]:
        """The row optimizer's state and, where it uses that, the number of its steps."""
        self._shard.location.advise(is_random=False)  # all of it is read now
        state = dict(self._shard.state)
        if self._shard.optimizer.uses_step or self._shard.rounds:
            state[STEP] = paddle.to_tensor([self._shard.step], dtype="int64")
        return state

    def load_parameter(self, state: Arrays, name: str) -> None:
        """Set the rows of 'weight' or 'bias', of any storage type."""
        self._load_rows(self._shard.stores[name], state, name)
        self._shard.invalidate_norms()

    def _load_rows(self, store: RowStore, state: Arrays, name: str) -> None:
        blocks = state.blocks(name) if isinstance(state, SavedState) else [(slice(0, len(state[name])), state[name])]
        for places, rows in blocks:
            put_classes(store, places, rows, subcenters=1 if name.startswith("bias") else self._shard.subcenters)

    def load(self, state: Arrays) -> None:
        """Set the row optimizer's state.

        Raises:
            CheckpointError: a state tensor is missing.
        """
        for name, store in self._shard.stores.items():
            if name in ("weight", "bias"):
                continue
            if name not in state:
                raise CheckpointError(
                    f"the checkpoint holds no head.{name}, which {self.kind} needs; found {sorted(state)}. It was "
                    f"written by another optimizer of that name: rename this one's class, and its state starts anew"
                )
            self._load_rows(store, state, name)
        for name in (STEP, _STEP_BEFORE_3):
            if name in state:
                self._shard.step = int(state[name][0])
                break

    def has_row_per_class(self, name: str) -> bool:
        """Whether the state tensor `name` has one row per class."""
        return name not in (STEP, _STEP_BEFORE_3)

    def may_copy(self, name: str) -> bool:
        """Whether memory may be taken for a copy of the parameter or state tensor `name`."""
        store = self._shard.stores.get(name)
        return store is None or store.may_copy

    def _prepare(self, samples: int) -> FusedSoftmax:
        """For batches of up to so many samples: choose how logits are kept, and allocate the sampled rows."""
        if self._softmax is not None and self._samples >= samples:
            return self._softmax
        self._samples = samples
        self._shard.fit(samples)
        if self._ratio < 1.0:
            every = samples * self._groups.replicas.topology.world_size
            self._sampled = SampledShard(self._shard, ratio=self._ratio, samples=every)
        self._softmax = self._make_softmax("store" if self._logits == "auto" else self._logits)
        if self._logits == "auto" and not self._fits(self._softmax, samples):
            self._softmax = self._make_softmax("recompute")
        return self._softmax

    def _fits(self, softmax: FusedSoftmax, samples: int) -> bool:
        """Whether there is memory to keep the logits."""
        shard = self._sampled or self._shard
        needed, free = softmax.memory(shard, samples), _free_bytes(shard.place)
        # Half, since the backbone's activations and the other ranks of this machine need memory too.
        fits = needed.kept + needed.temporary <= free / 2
        log.info(
            "logits of %s x %s take %s, a chunk of them %s, %s are free: mode '%s'",
            counted(shard.size, "class center"),
            counted(samples, "sample"),
            size_text(needed.kept),
            size_text(needed.temporary),
            size_text(free),
            "store" if fits else "recompute",
        )
        return fits


def _free_bytes(place: Any) -> int:
    """Free memory of the device of a tensor's place."""
    return available_gpu_memory() if place.is_gpu_place() else available_memory()
