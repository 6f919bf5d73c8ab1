"""The highest classes are those of a slow ranking, in whatever order and chunks classes are offered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc.metrics.ranking import TopClasses, exact_scores, slack
from tests._support.closed_sets import slow_ranking, slow_scores


def problem(seed, classes, samples, size=5):
    """Small whole numbers, so that many scores are equal; a zero feature and a zero center."""
    rng = np.random.default_rng(seed)
    features, weight = (rng.integers(-1, 2, (count, size)).astype(np.float32) for count in (samples, classes))
    features[0], weight[-1] = 0, 0
    return features, weight, rng.integers(-1, 2, classes).astype(np.float32)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4), st.integers(1, 6), st.booleans(), st.booleans())
def test_the_order_is_that_of_a_slow_ranking(seed, classes, samples, count, is_cosine, has_bias):
    features, weight, bias = problem(seed, classes, samples)
    bias = bias if has_bias and not is_cosine else None
    top = TopClasses(features, min(count, classes), is_cosine=is_cosine)
    pairs = np.argwhere(np.ones((samples, classes), bool))
    np.random.default_rng(seed).shuffle(pairs)
    for part in np.array_split(pairs, 3):
        own = None if bias is None else bias[part[:, 1]]
        top.offer(part[:, 0], part[:, 1], rows=weight[part[:, 1]], bias=own)
    assert top.classes.tolist() == slow_ranking(features, weight, bias, is_cosine=is_cosine, count=count)
    for row, numbers, scores in zip(features, top.classes, top.scores):
        expected = slow_scores(row, weight, bias, is_cosine=is_cosine)
        assert scores == pytest.approx([expected[number] for number in numbers], abs=1e-12)


def test_a_score_depends_on_its_two_rows_alone():
    rng = np.random.default_rng(0)
    features, rows = (rng.standard_normal((3000, 33)).astype(np.float32) for _ in range(2))
    together = exact_scores(features, rows, bias=None, is_cosine=True)
    alone = [exact_scores(features[n : n + 1], rows[n : n + 1], bias=None, is_cosine=True)[0] for n in range(3000)]
    assert together.tolist() == alone


@pytest.mark.parametrize("size", [1, 16, 512])
def test_products_of_matrices_are_within_the_slack(size):
    rng = np.random.default_rng(1)
    features, rows = (rng.standard_normal((300, size)).astype(np.float32) * 3 for _ in range(2))
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (features, rows)]
    found = np.diag(unit[0] @ unit[1].T)
    exact = exact_scores(features, rows, bias=None, is_cosine=True)
    assert np.abs(found - exact).max() < slack(size)


def test_more_pairs_than_are_scored_at_a_time(monkeypatch):
    monkeypatch.setattr("plsc.metrics.ranking._PAIRS", 7)
    features, weight, _ = problem(3, 12, 4)
    top = TopClasses(features, 5, is_cosine=True)
    samples, classes = np.divmod(np.arange(48), 12)
    top.offer(samples, classes, rows=weight[classes])
    assert top.classes.tolist() == slow_ranking(features, weight, is_cosine=True, count=5)
