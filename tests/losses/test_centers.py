"""The highest classes over shards are those of a slow ranking in float64, on any number of ranks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from plsc.distributed.topology import Topology
from plsc.losses import centers as module
from plsc.losses.centers import Centers, top_classes
from plsc.utils.ranges import Range, shard_ranges
from tests._support.closed_sets import slow_ranking
from tests._support.head_oracle import LockstepReducer

# (classes, samples): fewer classes than ranks, than five, uneven shards.
PROBLEMS = [(1, 3), (3, 4), (7, 5), (50, 9)]


def rank_on(ranks, features, weight, bias, *, is_cosine, count=5, is_sharded=True):
    """What each rank finds."""
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(weight), ranks)

    def play(rank):
        own = ranges[rank] if is_sharded else Range(0, len(weight))
        collectives = SimpleNamespace(topology=Topology(rank, ranks), all_gather=reducer.all_gather)
        held = Centers(
            weight=paddle.to_tensor(weight[own.start : own.stop]),
            bias=None if bias is None else paddle.to_tensor(bias[own.start : own.stop]),
            classes=own,
            is_cosine=is_cosine,
            scale=64.0,
        )
        return top_classes(features, held, count=count, num_classes=len(weight), collectives=collectives).tolist()

    return reducer.run(play)


def problem(classes, samples, *, has_ties, size=6):
    rng = np.random.default_rng(classes)
    features, weight = (rng.standard_normal((rows, size)).astype(np.float32) for rows in (samples, classes))
    bias = rng.standard_normal(classes).astype(np.float32)
    if has_ties:  # equal rows in different shards, and whole numbers, whose products in float32 are exact
        features, weight, bias = np.round(features), np.round(weight), np.round(bias)
        weight[classes // 2 :] = weight[: classes - classes // 2]
        features[0] = 0
    return features, weight, bias


@pytest.mark.parametrize("kind", ["cosine", "product", "product with bias"])
@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("classes, samples", PROBLEMS)
def test_ranks_find_what_loops_find(classes, samples, has_ties, kind):
    features, weight, bias = problem(classes, samples, has_ties=has_ties)
    bias = bias if kind.endswith("bias") else None
    expected = slow_ranking(features, weight, bias, is_cosine=kind == "cosine", count=5)
    for ranks in (1, 2, 3, 4):
        for is_sharded in (True, False):
            found = rank_on(ranks, features, weight, bias, is_cosine=kind == "cosine", is_sharded=is_sharded)
            assert found == [expected] * ranks


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_small_chunks(rows, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ROWS", {"cpu": rows, "gpu": rows})
    features, weight, bias = problem(50, 9, has_ties=True)
    expected = slow_ranking(features, weight, bias, is_cosine=False, count=5)
    assert rank_on(2, features, weight, bias, is_cosine=False) == [expected] * 2


@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("classes", [3, 20])
def test_of_sub_centers_the_nearest_counts(classes, has_ties, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ROWS", {"cpu": 12, "gpu": 12})
    features, weight, _ = problem(classes * 3, 6, has_ties=has_ties)
    weight = weight.reshape(classes, 3, -1)
    expected = slow_ranking(features, weight, is_cosine=True, count=5)
    for ranks in (1, 2, 4):
        assert rank_on(ranks, features, weight, None, is_cosine=True) == [expected] * ranks


def test_scores_that_float32_cannot_tell_apart():
    """Centers that differ in the last digit: a product of matrices in float32 orders them at random."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(64).astype(np.float32)
    weight = np.stack([np.where(np.arange(64) == k, np.nextafter(base, np.float32(9)), base) for k in range(40)])
    features = (base + rng.standard_normal((8, 64)).astype(np.float32) * 0.1).astype(np.float32)
    expected = slow_ranking(features, weight, is_cosine=True, count=5)
    plain = np.argsort(-(features @ weight.T), axis=1, kind="stable")[:, :5].tolist()
    assert plain != expected  # so the test can fail
    for ranks in (1, 3):
        assert rank_on(ranks, features, weight, None, is_cosine=True) == [expected] * ranks


def test_all_classes_have_the_same_score():
    """As where the network gives zeros: the lowest numbers, and quickly."""
    features, weight = np.zeros((3, 8), np.float32), np.ones((20_000, 8), np.float32)
    assert rank_on(3, features, weight, None, is_cosine=True) == [[[0, 1, 2, 3, 4]] * 3] * 3
    features += 1
    assert rank_on(2, features, weight, None, is_cosine=True, count=2) == [[[0, 1]] * 3] * 2
