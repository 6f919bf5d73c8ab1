"""Problems for the losses, and both heads on them, with ranks played by threads."""

from __future__ import annotations

import numpy as np
import paddle

from plsc.losses.fused import FusedSoftmax
from plsc.losses.reference import ReferenceSoftmax
from plsc.losses.row_optimizers import SGD
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.utils.ranges import shard_ranges
from tests._support.head_oracle import LockstepReducer
from tests._support.workers.cases import CENTER_LENGTHS, FEATURE_LENGTHS, shortened

ARCFACE = (1.0, 0.5, 0.0)
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
# (classes, ranks, samples): uneven shards, an empty shard, one sample, one rank.
SHARDINGS = [(6, 4, 5), (5, 4, 8), (3, 4, 6), (7, 1, 4), (40, 3, 1), (50, 2, 16)]


def make_problem(classes, samples, size=16, dtype="float64", seed=0, with_bias=False):
    """(features [G, D], labels [G] with duplicates, weight [C, D], bias [C] or None)."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, size)).astype(dtype) * 0.1
    labels = rng.integers(0, classes, samples)
    labels[-1] = labels[0]
    # Near their centers, as after some training, with losses well above the rounding of a float32 logit.
    features = (3.0 * weight[labels] + rng.standard_normal((samples, size))).astype(dtype)
    bias = rng.standard_normal(classes).astype(dtype) if with_bias else None
    return features, labels, weight, bias


def with_short_vectors(problem):
    """The problem with some features and class centers of length zero or nearly so, the others as they are."""
    features, labels, weight, bias = problem
    return shortened(features, FEATURE_LENGTHS), labels, shortened(weight, CENTER_LENGTHS), bias


def own_rows(problem, ranges, rank):
    """(features, labels, this rank's weight, its bias or None) as tensors."""
    features, labels, weight, bias = problem
    start, stop = ranges[rank]
    own_bias = None if bias is None else paddle.to_tensor(bias[start:stop])
    return paddle.to_tensor(features), paddle.to_tensor(labels), paddle.to_tensor(weight[start:stop]), own_bias


def of_rank(margin, rank):
    """The margin, or that of the rank where there is one for each, since it has a state of its own."""
    return margin[rank] if isinstance(margin, list) else margin


def run_reference(problem, ranks, margin, scale, *, smoothing=0.0, **options):
    """(states in rank order, dX summed over ranks, dW, dbias or None)."""
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(problem[2]), ranks)

    def play(rank):
        features, labels, weight, bias = own_rows(problem, ranges, rank)
        softmax = ReferenceSoftmax(of_rank(margin, rank), scale, ranges[rank].start, reducer, smoothing=smoothing)
        state = softmax.loss_and_feature_gradient(features, labels, weight=weight, bias=bias, **options)
        return state, softmax.row_gradients(state)

    states, gradients = zip(*reducer.run(play))
    return (
        states,
        np.sum([state.feature_gradient.numpy() for state in states], axis=0),
        np.concatenate([gradient.weight.numpy() for gradient in gradients]),
        None if problem[3] is None else np.concatenate([gradient.bias.numpy() for gradient in gradients]),
    )


def collect(gradients, shard):
    """(dW [S, D], dbias [S] or None) of what `FusedSoftmax.row_gradients` yields."""
    parts = {"weight": [], "bias": []}
    for block, gradient in gradients:
        assert gradient.shape == block.rows.shape
        parts[block.parameter].append(gradient)
    weight = paddle.concat(parts["weight"]) if shard.size else paddle.zeros([0, shard.weight.shape[1]])
    if shard.bias is None:
        assert not parts["bias"]
        return weight, None
    return weight, paddle.concat(parts["bias"]) if shard.size else paddle.zeros([0])


def run_fused(
    problem, ranks, margin, scale, *, logits="store", precision=None, l2=0.0, by_rows=None, smoothing=0.0, **options
):
    """(states in rank order, dX summed over ranks, dW, dbias or None); no weight changes."""
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(problem[2]), ranks)

    def play(rank):
        features, labels, weight, bias = own_rows(problem, ranges, rank)
        shard = Shard(weight, SGD(), bias=bias, first_class=ranges[rank].start)
        softmax = FusedSoftmax(
            of_rank(margin, rank),
            scale,
            reducer=reducer,
            logits=logits,
            precision=precision,
            by_rows=by_rows,
            smoothing=smoothing,
        )
        state = softmax.loss_and_feature_gradient(features, labels, shard=shard, **options)
        d_w, d_b = collect(softmax.row_gradients(state, l2=l2), shard)
        return state, d_w.numpy(), None if d_b is None else d_b.numpy()

    states, d_w, d_b = zip(*reducer.run(play))
    return (
        states,
        np.sum([state.feature_gradient.numpy() for state in states], axis=0),
        np.concatenate(d_w),
        None if problem[3] is None else np.concatenate(d_b),
    )


def train_fused(problem, ranks, margin, scale, *, optimizer, steps, learning_rate, **options):
    """The shards in rank order, after so many updates."""
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(problem[2]), ranks)

    def play(rank):
        features, labels, weight, bias = own_rows(problem, ranges, rank)
        shard = Shard(weight, optimizer, bias=bias, first_class=ranges[rank].start)
        softmax = FusedSoftmax(of_rank(margin, rank), scale, reducer=reducer, **options)
        for _ in range(steps):
            train_step(softmax, features, labels, shard, learning_rate)
        return shard

    return reducer.run(play)


def run_sampled(problem, ranks, ratio, margin, scale, *, optimizer=None, learning_rate=1.0, seed=5, **options):
    """(state, dX summed over ranks, full shards, sampled global classes) of one step."""
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(problem[2]), ranks)

    def play(rank):
        features, labels, weight, bias = own_rows(problem, ranges, rank)
        full = Shard(weight, optimizer or SGD(), bias=bias, first_class=ranges[rank].start)
        sampled = SampledShard(full, ratio=ratio, samples=len(labels))
        sampled.draw(labels, seed=seed + rank)
        softmax = FusedSoftmax(of_rank(margin, rank), scale, reducer=reducer, **options)
        state = train_step(softmax, features, labels, sampled, learning_rate)
        return state, full, sampled.rows.numpy() + ranges[rank].start

    states, shards, rows = zip(*reducer.run(play))
    gradient = np.sum([state.feature_gradient.numpy() for state in states], axis=0)
    return states[0], gradient, shards, np.concatenate(rows)


def train_step(softmax, features, labels, shard, learning_rate):
    """One loss and one update; returns the state."""
    state = softmax.loss_and_feature_gradient(features, labels, shard=shard)
    shard.update(softmax.row_gradients(state, l2=shard.optimizer.l2), learning_rate=learning_rate)
    return state


def gathered(shards, name):
    """A parameter or a state tensor of all shards, as one array."""
    tensors = [getattr(shard, name) if name in ("weight", "bias") else shard.state[name] for shard in shards]
    return np.concatenate([tensor.numpy() for tensor in tensors])
