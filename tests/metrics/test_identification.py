"""Identification against a slow oracle that sorts the gallery for every probe."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from plsc.errors import ConfigError, DataError
from plsc.metrics import identification as module
from plsc.metrics.identification import identification
from tests._support.verification import slow_scores


def slow_identification(gallery, gallery_labels, probes, probe_labels, rank):
    hits = 0
    for probe, label in zip(probes, probe_labels):
        cosines = [slow_scores(np.stack([probe, image]))[0] for image in gallery]
        order = sorted(range(len(gallery)), key=lambda index: -cosines[index])
        hits += label in [gallery_labels[index] for index in order[:rank]]
    return hits / len(probes)


@pytest.mark.parametrize("block", [1, 100, 1 << 23])
def test_identification_equals_the_oracle(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(0)
    labels, probe_labels = np.repeat(np.arange(12), 3), np.arange(40) % 14  # 12 and 13 are not in the gallery
    centers = rng.normal(size=[14, 8])
    gallery = (centers[labels] + rng.normal(size=[36, 8])) * rng.uniform(1, 9, [36, 1])
    probes = centers[probe_labels] + rng.normal(size=[40, 8])
    found = identification(gallery, labels, probes=probes, probe_labels=probe_labels, ranks=(1, 2, 5, 100))
    assert found == {
        rank: pytest.approx(slow_identification(gallery, labels, probes, probe_labels, rank)) for rank in (1, 2, 5, 100)
    }
    assert 0 < found[1] < found[5] < found[100] < 1


def test_collapsed_embeddings_identify_nobody():
    zeros, labels = np.zeros([50, 4]), np.arange(50)
    assert identification(zeros, labels, probes=zeros, probe_labels=labels) == {1: 0.0, 5: 0.0}


def test_identification_memory_does_not_grow_with_the_probes():
    rng = np.random.default_rng(0)
    gallery, probes = (rng.normal(size=[count, 8]).astype(np.float32) for count in (2_000, 20_000))
    tracemalloc.start()
    identification(gallery, np.arange(2_000), probes=probes, probe_labels=np.arange(20_000) % 2_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 160e6 < 20_000 * 2_000 * 4.1  # all cosines at once would be the latter, in bytes


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((np.ones([2, 3]), [0], np.ones([1, 3]), [0]), DataError, "gallery: got 2 embeddings and 1 label,"),
        ((np.ones([2, 3]), [0, 1], np.ones([0, 3]), []), DataError, "probes: got 0 embeddings and 0 labels"),
        ((np.ones([2, 3]), [0, 1], np.ones([1, 4]), [0]), DataError, "a gallery of 3 columns and probes of 4"),
        ((np.full([2, 3], np.nan), [0, 1], np.ones([1, 3]), [0]), DataError, "gallery: row 0 holds NaN"),
        ((np.ones([2, 3]), [0, 1], np.ones([1, 3]), [0], (0,)), ConfigError, r"ranks: got \(0,\)"),
    ],
)
def test_identification_names_what_does_not_fit(arguments, error, words):
    gallery, labels, probes, probe_labels, *ranks = arguments
    with pytest.raises(error, match=words):
        identification(gallery, labels, probes=probes, probe_labels=probe_labels, ranks=ranks[0] if ranks else (1, 5))
