"""The details of a verification beside a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from plsc.data.verification_set import VerificationSet
from plsc.engine import details
from plsc.engine.about import METRICS
from plsc.engine.details import CLASSES, SCORES, Details, read_classes, read_scores
from plsc.metrics.verification import operating_points, verification_report


def made(pairs, seed=0):
    """(a set of pairs, what was found for it)."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    image = np.zeros([4, 4, 3], np.uint8)
    held = VerificationSet("some set", [image] * (2 * pairs), is_same=same)
    return held, verification_report(rng.standard_normal([2 * pairs, 8]), same, folds=2)


def test_scores_are_read_as_they_were_found(tmp_path):
    pairs, report = made(31)
    found = Details(None)
    found.add_pairs(pairs, report)
    found.write(tmp_path)
    (name, read), *rest = read_scores(tmp_path).items()
    assert name == "some set" and not rest and read.pairs == 31
    np.testing.assert_array_equal(read.scores, report.scores.astype(np.float32))
    np.testing.assert_array_equal(read.is_same, pairs.is_same)
    np.testing.assert_array_equal(read.places, np.arange(31))
    assert not (tmp_path / CLASSES).exists()


def test_of_a_large_set_pairs_are_kept_at_even_distances(tmp_path, monkeypatch):
    monkeypatch.setattr(details, "MAX_PAIRS", 10)
    pairs, report = made(91)
    found = Details(None)
    found.add_pairs(pairs, report)
    found.write(tmp_path)
    read = read_scores(tmp_path)["some set"]
    assert read.places.tolist() == list(range(0, 91, 10)) and read.pairs == 91
    np.testing.assert_array_equal(read.scores, report.scores[::10].astype(np.float32))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_damaged_files_are_a_warning(content, tmp_path, caplog):
    for name in (SCORES, CLASSES):
        (tmp_path / name).write_bytes(content)
    assert read_scores(tmp_path) == {} and read_classes(tmp_path) == []
    assert caplog.text.count("cannot be read") == 2


@pytest.mark.parametrize("far", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_operating_points_are_those_of_trying_every_threshold(far, seed):
    rng = np.random.default_rng(seed)
    scores, same = rng.integers(0, 9, 40) / 8, rng.random(40) < 0.5
    best = None  # (TAR, threshold) of the lowest threshold that accepts no more than the share
    for threshold in [*np.unique(scores), 2.0]:
        accepted = scores >= threshold
        if accepted[~same].mean() <= far:
            best = accepted[same].mean()
            break
    point = operating_points(scores, same, [far])[far]
    assert point.tar == best
    assert (scores[~same] >= point.threshold).mean() <= far
    assert (scores[same] >= point.threshold).mean() == best


def test_a_training_keeps_the_details_of_each_checkpoint(entry, tmp_path):
    entry.set_train_epochs(2)
    entry.set_val_split(0.3)
    entry.set_lr(1e-4)  # so that classes are confused
    results = entry.train()
    for name in ("0", "1"):
        assert (tmp_path / "output" / name / METRICS).is_file()
        assert len(read_scores(tmp_path / "output" / name)["lfw"].scores) == 20
    worst = read_classes(tmp_path / "output" / "1")
    assert results["val/top1"] < 1 and worst
    shares = [row["correct"] / row["images"] for row in worst]
    assert shares == sorted(shares) and all(row["times"] >= 1 for row in worst)
