"""The heads on problems of `tests._support.negatives_oracle`, with ranks played by threads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import paddle

from plsc.losses.fused import FusedSoftmax
from plsc.losses.fused_binary import FusedBinary
from plsc.losses.margins.binary import BinaryMargin
from plsc.losses.reference import ReferenceBinary, ReferenceSoftmax
from plsc.losses.row_optimizers import SGD
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.utils.ranges import shard_ranges
from tests._support.head_oracle import LockstepReducer
from tests._support.head_problems import collect, own_rows, train_step


class Found(NamedTuple):
    """States and margins in rank order, the feature gradient summed over ranks, the whole weight gradient."""

    states: Any
    features: np.ndarray
    weight: np.ndarray
    margins: Any


def fused_of(case, margin, **options):
    """The fused head of a case."""
    head = FusedBinary if isinstance(margin, BinaryMargin) else FusedSoftmax
    return head(margin, case.scale, filter_above=case.filter_above, **options)


def run_negatives(case, problem, ranks, head, *, precision=None, smoothing=0.0, weights=None, count_above=False):
    """One step of a head: 'reference', or the fused one as its words say; no weight changes."""
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(problem[2]), ranks)

    def play(rank):
        features, labels, weight, _ = own_rows(problem, ranges, rank)
        margin, first = case.margin(), ranges[rank].start
        v = None if weights is None else paddle.to_tensor(weights)
        options = (
            {"reducer": reducer} if isinstance(margin, BinaryMargin) else {"reducer": reducer, "smoothing": smoothing}
        )
        if head == "reference":
            made = ReferenceBinary if isinstance(margin, BinaryMargin) else ReferenceSoftmax
            softmax = made(margin, case.scale, first_class=first, filter_above=case.filter_above, **options)
            state = softmax.loss_and_feature_gradient(
                features, labels, weight=weight, weights=v, count_above=count_above
            )
            return state, softmax.row_gradients(state).weight.numpy(), margin
        logits = "recompute" if "recompute" in head else "store"
        by_rows = "by rows" in head
        softmax = fused_of(case, margin, logits=logits, by_rows=by_rows, precision=precision, **options)
        own = Shard(weight, SGD(), first_class=first)
        state = softmax.loss_and_feature_gradient(features, labels, shard=own, weights=v, count_above=count_above)
        return state, collect(softmax.row_gradients(state), own)[0].numpy().reshape(weight.shape), margin

    states, weights, margins = zip(*reducer.run(play))
    gradient = np.sum([state.feature_gradient.numpy() for state in states], axis=0)
    return Found(states, gradient, np.concatenate(weights), margins)


def run_sampled_negatives(case, problem, ranks, ratio, *, seed=5, optimizer=None):
    """One sampled step with a learning rate of 1: what was found, with the difference of the weight as its gradient,
    and the sampled classes."""
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(problem[2]), ranks)

    def play(rank):
        features, labels, weight, _ = own_rows(problem, ranges, rank)
        before = weight.numpy().copy()
        margin, full = case.margin(), Shard(weight, optimizer or SGD(), first_class=ranges[rank].start)
        sampled = SampledShard(full, ratio=ratio, samples=len(labels))
        sampled.draw(labels, seed=seed + rank)
        state = train_step(fused_of(case, margin, reducer=reducer), features, labels, sampled, 1.0)
        rows = sampled.rows.numpy().reshape(-1, case.subcenters)
        np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(case.subcenters))
        classes = rows[:, 0] // case.subcenters + ranges[rank].start
        return state, before - weight.numpy(), margin, classes

    states, moved, margins, classes = zip(*reducer.run(play))
    gradient = np.sum([state.feature_gradient.numpy() for state in states], axis=0)
    return Found(states, gradient, np.concatenate(moved), margins), np.concatenate(classes)
