"""Verification metrics against slow oracles that try every threshold in plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.errors import ConfigError, DataError
from plsc.metrics import embeddings, verification
from plsc.metrics.verification import verification_report
from tests._support.verification import noisy_pairs, slow_folds, slow_scores


def embeddings_with(cosines, rng=None):
    """[2P, 2]: pairs at the given cosines, turned at random and of random lengths when `rng` is given."""
    angles = np.arccos(np.asarray(cosines, np.float64))
    first = rng.uniform(0, 6.28, len(angles)) if rng else np.zeros(len(angles))
    rows = np.empty([2 * len(angles), 2])
    rows[0::2] = np.stack([np.cos(first), np.sin(first)], 1)
    rows[1::2] = np.stack([np.cos(first + angles), np.sin(first + angles)], 1)
    return rows * (rng.uniform(0.5, 20, [len(rows), 1]) if rng else 1)


# Oracles.


def slow_accuracy(scores, same, folds):
    """Per fold: the accuracies that the best training thresholds reach, each distinct score being tried."""
    reached = []
    for test in slow_folds(len(scores), folds):
        train = [index for index in range(len(scores)) if index not in test]
        distinct = sorted({scores[index] for index in train})
        best, chosen = -1, None
        for threshold in [*distinct, math.inf]:
            right = sum((scores[index] >= threshold) == same[index] for index in train)
            if right >= best:  # the highest of equals
                best, chosen = right, threshold
        lower = [score for score in distinct if score < chosen]
        low = lower[-1] if lower else chosen
        if chosen == math.inf:
            chosen = np.nextafter(low, math.inf)
        elif lower:
            chosen = (low + chosen) / 2
        reached.append(sum((scores[index] >= chosen) == same[index] for index in test) / len(test))
    return reached


def slow_tar(scores, same, far):
    positives = [score for score, flag in zip(scores, same) if flag]
    negatives = [score for score, flag in zip(scores, same) if not flag]
    best = 0.0
    for threshold in [-math.inf, *scores]:
        for accept in (lambda score, t=threshold: score >= t, lambda score, t=threshold: score > t):
            if sum(map(accept, negatives)) <= far * len(negatives) + 1e-9:
                best = max(best, sum(map(accept, positives)) / len(positives))
    return best


def slow_auc(scores, same):
    outcomes = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for (a, flag_a), (b, flag_b) in itertools.product(zip(scores, same), repeat=2)
        if flag_a and not flag_b
    ]
    return sum(outcomes) / len(outcomes)


# The report.


@pytest.mark.parametrize("pairs, folds, seed", [(60, 10, 0), (63, 10, 1), (47, 3, 2), (11, 11, 3)])
def test_report_equals_the_oracles(pairs, folds, seed):
    rows, same = noisy_pairs(pairs, noise=2.5, seed=seed)
    report = verification_report(rows, same, folds=folds, fars=(0.5, 0.1, 0.05))
    scores = slow_scores(rows)
    expected = slow_accuracy(scores, same, folds)
    assert report.accuracy == pytest.approx(np.mean(expected), abs=1e-12)
    assert report.accuracy_std == pytest.approx(np.std(expected), abs=1e-12)
    assert 0 < report.accuracy < 1
    assert report.auc == pytest.approx(slow_auc(scores, same), abs=1e-12)
    assert report.tar_at_far == {
        far: pytest.approx(slow_tar(scores, same, far)) for far in (0.5, 0.1, 0.05) if far * (~same).sum() >= 1
    }
    assert report.xnorm == pytest.approx(np.mean([np.linalg.norm(row) for row in rows]))
    assert report.pairs == pairs


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=4, max_size=24))
def test_tied_scores_are_never_parted(drawn):
    """Few distinct values make ties the rule. The oracles see the scores that the report saw."""
    rows, same = embeddings_with([score for score, _ in drawn]), np.array([flag for _, flag in drawn])
    scores = verification._pair_cosines(rows)[0].tolist()
    report = verification_report(rows, same, folds=4, fars=(0.5, 0.2))
    assert report.accuracy == pytest.approx(np.mean(slow_accuracy(scores, same, 4)))
    if same.any() and not same.all():
        assert report.auc == pytest.approx(slow_auc(scores, same))
        for far, tar in report.tar_at_far.items():
            assert tar == pytest.approx(slow_tar(scores, same, far))


def test_separable_pairs_are_all_right_with_the_threshold_halfway():
    rng = np.random.default_rng(0)
    same = np.arange(200) % 2 == 0
    cosines = np.where(same, rng.uniform(0.7, 1, 200), rng.uniform(-1, 0.3, 200))
    cosines[:80] = np.where(same, 0.7, 0.3)[:80]
    report = verification_report(embeddings_with(cosines, rng), same)
    assert report.accuracy == report.auc == 1 and report.accuracy_std == 0
    assert report.threshold == pytest.approx(0.5)
    assert report.tar_at_far == {0.1: 1.0, 0.01: 1.0}  # 100 different pairs cannot tell 1 in 1,000


def test_random_and_collapsed_embeddings_earn_a_half():
    rng = np.random.default_rng(0)
    same = np.arange(4000) % 2 == 0
    report = verification_report(rng.normal(size=[8000, 32]), same)
    assert report.accuracy == pytest.approx(0.5, abs=0.03) and report.auc == pytest.approx(0.5, abs=0.03)
    collapsed = verification_report(np.ones([8000, 32]), same)
    assert collapsed.accuracy == pytest.approx(0.5) and collapsed.auc == 0.5
    assert set(collapsed.tar_at_far.values()) == {0.0}


def test_the_threshold_of_a_fold_does_not_see_the_fold():
    same = np.arange(20) % 2 == 0
    cosines = np.where(same, 0.9, 0.1)
    cosines[:2] = 0.05, 0.01  # in the first fold all lies lower, which the other nine cannot know
    report = verification_report(embeddings_with(cosines), same)
    assert report.accuracy == pytest.approx((0.5 + 9) / 10)


@pytest.mark.parametrize(
    "negatives, fars", [(9, ()), (10, (0.1,)), (99, (0.1,)), (100, (0.1, 0.01)), (10_000, (0.1, 0.01, 0.001, 0.0001))]
)
def test_only_fars_that_the_pairs_allow(negatives, fars):
    same = np.arange(negatives + 10) >= negatives
    report = verification_report(np.random.default_rng(0).normal(size=[2 * len(same), 4]), same)
    assert tuple(report.tar_at_far) == fars


def test_far_is_never_exceeded_by_rounding():
    """0.29 * 100 is 28.999... in floats: 29 may be accepted, 30 may not."""
    same = np.arange(200) >= 100
    cosines = np.concatenate([np.linspace(-0.9, 0.9, 100), np.full(100, np.linspace(-0.9, 0.9, 100)[70:72].mean())])
    report = verification_report(embeddings_with(cosines), same, fars=(0.28, 0.29))
    assert report.tar_at_far == {0.28: 0.0, 0.29: 1.0}


def test_zero_rows_and_one_sided_sets_have_metrics():
    rows = np.concatenate([np.zeros([2, 3]), np.ones([38, 3])]).astype(np.float16)
    report = verification_report(rows, np.ones(20, bool))
    assert report.accuracy < 1 and math.isnan(report.auc) and report.tar_at_far == {}
    assert math.isnan(verification_report(rows, np.zeros(20, bool)).auc)


def test_float32_of_great_length_does_not_overflow():
    rows, same = noisy_pairs(100)
    plain, great = verification_report(rows, same), verification_report((rows * 1e30).astype(np.float32), same)
    assert great.accuracy == plain.accuracy and great.auc == pytest.approx(plain.auc, abs=1e-3)


def test_blocks_do_not_show(monkeypatch):
    rows, same = noisy_pairs(101)
    whole = verification_report(rows, same)
    monkeypatch.setattr(embeddings, "BLOCK_ROWS", 8)
    assert verification_report(rows, same).metrics() == pytest.approx(whole.metrics())


def test_metrics_and_line_name_what_was_measured():
    rows, same = noisy_pairs(400)
    report = verification_report(rows, same)
    assert list(report.metrics()) == [
        "accuracy",
        "accuracy_std",
        "threshold",
        "tar_at_far_0.1",
        "tar_at_far_0.01",
        "auc",
        "xnorm",
        "pairs",
    ]
    assert f"accuracy {100 * report.accuracy:.2f} +-" in str(report) and "at FAR 0.01" in str(report)
    with pytest.raises(AttributeError):
        report.accuracy = 1.0


def broken(value):
    rows = np.ones([40_000, 2], np.float32)
    rows[33_333, 1] = value
    return rows


@pytest.mark.parametrize(
    "rows, same, options, error, words",
    [
        (broken(np.nan), np.ones(20_000, bool), {}, DataError, "embeddings: row 33333 holds NaN or infinity"),
        (broken(np.inf), np.ones(20_000, bool), {}, DataError, "row 33333 .* the network has diverged"),
        (np.ones([40, 2]), np.ones(19, bool), {}, DataError, "got 40 rows for 19 pairs, expected two rows per pair"),
        (np.ones(40), np.ones(20, bool), {}, DataError, r"got shape \[40\] of float64, expected \[rows, D\]"),
        (np.ones([4, 2], object), np.ones(2, bool), {}, DataError, r"got shape \[4, 2\] of object"),
        (np.ones([18, 2]), np.ones(9, bool), {}, DataError, "got 9 pairs for 10 folds"),
        (np.ones([18, 2]), np.ones(9, bool), {"folds": 1}, ConfigError, "folds=1 .* expected two folds or more"),
        (np.ones([40, 2]), np.ones(20, bool), {"fars": (0.0,)}, ConfigError, r"FARs in \(0, 1\]"),
    ],
)
def test_input_that_cannot_be_judged_is_named(rows, same, options, error, words):
    with pytest.raises(error, match=words):
        verification_report(rows, same, **options)
