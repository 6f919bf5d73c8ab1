"""Top-1, top-5 and the tables of classes, beside counts by loops."""

from __future__ import annotations

import collections

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plsc.metrics.closed_set import ClosedSetReport, Confusion


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 9))
def test_figures_are_those_of_loops(seed, images, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    predicted = np.stack([rng.permutation(classes)[:5] for _ in range(images)])
    report = ClosedSetReport(labels, predicted)
    right = [int(row[0]) == label for label, row in zip(labels, predicted)]
    assert report.top1 == sum(right) / images
    assert report.top5 == sum(label in row.tolist() for label, row in zip(labels, predicted)) / images
    pairs = collections.Counter((int(label), int(row[0])) for label, row in zip(labels, predicted) if label != row[0])
    expected = sorted(((-count, *pair) for pair, count in pairs.items()))
    assert report.confusions() == [Confusion(label, other, -count) for count, label, other in expected]
    for found in report.classes():
        own = labels == found.label
        assert found.images == own.sum() and found.correct == sum(np.array(right)[own])
        others = [pair for pair in report.confusions() if pair.label == found.label]
        assert found.confusion == (others[0] if others else None)
    assert [found.label for found in report.classes()] == sorted(set(labels.tolist()))


def test_the_metrics_and_the_line_of_the_log():
    report = ClosedSetReport(np.array([3, 4, 4]), np.array([[3, 0], [1, 4], [0, 1]]))
    assert report.metrics() == {"top1": 1 / 3, "top5": 2 / 3, "images": 3.0}
    assert str(report) == "top-1 33.33 %, top-5 66.67 %, 3 images"
