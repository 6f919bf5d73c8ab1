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
from plsc.metrics.pairs import make_folds
from plsc.metrics.verification import verification_report
from tests._support.verification import noisy_pairs, slow_folds, slow_make_folds, slow_scores


def embeddings_with(cosines, rng=None):
    """[2P, 2]: pairs at the given cosines, turned at random and of random lengths when `rng` is given."""
    angles = np.arccos(np.asarray(cosines, np.float64))
    first = rng.uniform(0, 6.28, len(angles)) if rng else np.zeros(len(angles))
    rows = np.empty([2 * len(angles), 2])
    rows[0::2] = np.stack([np.cos(first), np.sin(first)], 1)
    rows[1::2] = np.stack([np.cos(first + angles), np.sin(first + angles)], 1)
    return rows * (rng.uniform(0.5, 20, [len(rows), 1]) if rng else 1)


# Oracles.


def slow_accuracy(scores, same, parts):
    """Per fold: the accuracies that the best training thresholds reach, each distinct score being tried."""
    reached = []
    for test in parts:
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
    expected = slow_accuracy(scores, same, slow_make_folds(same, folds))
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
    assert math.isnan(report.accuracy) == (min(same.sum(), (~same).sum()) < 2)
    if not math.isnan(report.accuracy):
        assert report.accuracy == pytest.approx(np.mean(slow_accuracy(scores, same, slow_make_folds(same, 4))))
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


def test_zero_rows_have_cosine_0():
    """The rule of unit length: a zero embedding stays zero."""
    rows = np.concatenate([np.zeros([20, 3]), np.ones([20, 3])]).astype(np.float16)
    rows[1::4, 0] = 1  # of every second pair of the first ten only one row is zero
    same = np.arange(20) >= 10
    report = verification_report(rows, same, folds=2)
    assert report.accuracy == report.auc == 1 and report.threshold == pytest.approx(0.5)


@pytest.mark.parametrize("flag", [True, False])
def test_pairs_of_one_kind_have_no_accuracy_and_say_so(flag):
    report = verification_report(np.random.default_rng(0).normal(size=[40, 4]), np.full(20, flag))
    found = report.metrics()
    assert all(math.isnan(found[name]) for name in ("accuracy", "accuracy_std", "threshold", "auc"))
    assert report.tar_at_far == {} and found["pairs"] == 20 and found["xnorm"] > 0
    counts = "20 same and 0 different" if flag else "0 same and 20 different"
    assert report.notes == (f"no accuracy, TAR or AUC: found {counts} pairs, expected both kinds",)
    assert str(report).startswith("no accuracy, no AUC, XNorm")


def test_one_pair_of_a_kind_leaves_nothing_to_choose_a_threshold_on():
    rows, same = np.random.default_rng(0).normal(size=[40, 4]), np.arange(20) == 7
    report = verification_report(rows, same)
    assert math.isnan(report.accuracy) and not math.isnan(report.auc)
    assert report.notes[0].startswith("no accuracy: the folds other than fold 0 hold different pairs only")
    one_fold = verification_report(rows, np.arange(20) < 10, folds=np.zeros(20, int))
    assert math.isnan(one_fold.accuracy) and one_fold.notes[0] == (
        "no accuracy: all pairs are in one fold, expected two folds or more"
    )


def test_a_far_that_the_pairs_do_not_tell_is_said():
    rows, same = noisy_pairs(2000)
    report = verification_report(rows, same)
    assert report.notes == ("no TAR at FAR 0.0001: found 1000 different pairs, expected 10000 or more",)
    assert 0.001 in report.tar_at_far
    assert verification_report(rows, same, fars=(1e-3,)).notes == ()


@pytest.mark.parametrize("columns", [1, 4, 16])
def test_the_threshold_is_a_cosine(columns):
    """All scores are 1, or by rounding a little more, and with most pairs different the best threshold lies above."""
    report = verification_report(np.ones([80, columns]), np.arange(40) % 4 == 0)
    assert report.threshold == 1 and report.accuracy == pytest.approx(0.75)


# Folds.


def in_folds(same, folds):
    """The order that lays pairs out fold after fold, each with its same pairs first, as LFW's second view."""
    parts = [np.concatenate([np.flatnonzero(same)[k::folds], np.flatnonzero(~same)[k::folds]]) for k in range(folds)]
    return np.concatenate(parts)


def reordered(rows, same, order):
    return np.stack([rows[0::2][order], rows[1::2][order]], 1).reshape(len(rows), -1), same[order]


@pytest.mark.parametrize("pairs", [6000, 7000])
def test_sets_by_the_protocol_keep_their_ten_contiguous_folds(pairs):
    """LFW, CFP-FP and AgeDB-30: published figures are over these folds."""
    rows, same = noisy_pairs(pairs, noise=1.5)
    rows, same = reordered(rows, same, in_folds(same, 10))
    report = verification_report(rows, same)
    scores, reached = np.array(slow_scores(rows)), []
    for part in slow_folds(pairs, 10):
        train = np.setdiff1d(np.arange(pairs), part)
        cuts = np.sort(scores[train])
        cuts = np.append((cuts[1:] + cuts[:-1]) / 2, 2)
        right = [(scores[train] >= cut).__eq__(same[train]).sum() for cut in cuts]
        best = cuts[len(right) - 1 - np.argmax(right[::-1])]
        reached.append(((scores[part] >= best) == same[part]).mean())
    assert report.accuracy == pytest.approx(np.mean(reached), abs=1e-12)
    assert report.accuracy_std == pytest.approx(np.std(reached), abs=1e-12)
    assert make_folds(same, 10).tolist() == np.repeat(np.arange(10), pairs // 10).tolist()


def test_a_large_set_whose_folds_are_nearly_even_keeps_them():
    """So that its accuracy is the one that other libraries find."""
    same = np.random.default_rng(0).random(6000) < 0.5
    assert make_folds(same, 10).tolist() == np.repeat(np.arange(10), 600).tolist()
    same[:240] = True  # the first fold has more same pairs than the others
    assert make_folds(same, 10).tolist() != np.repeat(np.arange(10), 600).tolist()


@pytest.mark.parametrize("laid_out_in", [1, 2, 5])
def test_the_order_of_the_pairs_does_not_mislead(laid_out_in):
    """Ten contiguous folds of pairs that lie in another number of folds hold one kind each: far below a half."""
    rows, same = noisy_pairs(240, noise=12)
    fair = verification_report(rows, same).accuracy
    rows, same = reordered(rows, same, in_folds(same, laid_out_in))
    contiguous = verification_report(rows, same, folds=np.repeat(np.arange(10), 24)).accuracy
    assert verification_report(rows, same).accuracy == pytest.approx(fair, abs=0.06)
    assert verification_report(rows, same).accuracy > contiguous + 0.1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(2, 12))
def test_made_folds_equal_the_slow_ones_and_are_even(flags, folds):
    folds, same = min(folds, len(flags)), np.array(flags)
    made = make_folds(same, folds)
    assert [np.flatnonzero(made == fold).tolist() for fold in range(folds)] == [
        sorted(part) for part in slow_make_folds(flags, folds)
    ]
    assert np.bincount(made, minlength=folds).min() >= 1 and np.ptp(np.bincount(made)) <= 1


def test_described_folds_are_taken_as_they_are():
    rows, same = noisy_pairs(120, noise=2.5)
    numbers = np.random.default_rng(0).permutation(np.repeat([3, 7, 8], 40))
    parts = [np.flatnonzero(numbers == fold).tolist() for fold in (3, 7, 8)]
    expected = slow_accuracy(slow_scores(rows), same, parts)
    for folds in (numbers, numbers.tolist(), numbers.astype(np.uint8)):
        report = verification_report(rows, same, folds=folds)
        assert report.accuracy == pytest.approx(np.mean(expected), abs=1e-12)
        assert report.accuracy_std == pytest.approx(np.std(expected), abs=1e-12)


@pytest.mark.parametrize(
    "folds, error, words",
    [
        ([0, 1] * 9, DataError, r"folds: got shape \[18\] for 20 pairs, expected one fold per pair"),
        ([0.0, 1.0] * 10, ConfigError, "of float64, expected whole numbers, 0 or more"),
        ([0, -1] * 10, ConfigError, "expected whole numbers, 0 or more"),
        ([0, 2**63] * 10, ConfigError, "expected whole numbers, 0 or more"),
        (["0", "1"] * 10, ConfigError, "expected whole numbers"),
        (2.0, ConfigError, "folds: got 2.0, expected the number of folds"),
        ("ten", ConfigError, "folds: got 'ten', expected the number of folds"),
        (None, ConfigError, "folds: got None"),
    ],
)
def test_folds_that_are_none_are_named(folds, error, words):
    with pytest.raises(error, match=words):
        verification_report(np.ones([40, 2]), np.arange(20) % 2 == 0, folds=folds)


# Flags.


@pytest.mark.parametrize(
    "kind", [bool, int, float, np.uint8, np.float32, np.bool_, "array", "column", "mixed", "tensors"]
)
def test_flags_are_booleans_or_exactly_0_and_1(kind):
    rows, same = noisy_pairs(40)
    if kind == "array":
        flags = same.astype(np.float16)
    elif kind == "column":
        flags = same.astype(np.int64)[:, None]
    elif kind == "mixed":
        flags = [bool(flag) if index % 2 else float(flag) for index, flag in enumerate(same)]
    elif kind == "tensors":
        flags = [np.array(flag) if index % 2 else np.array([int(flag)]) for index, flag in enumerate(same)]
    else:
        flags = [kind(flag) for flag in same]
    assert verification_report(rows, flags) == verification_report(rows, same)


@pytest.mark.parametrize(
    "marks, words",
    [
        ((1, -1), "is_same: flag 1 is -1 of type int, expected True or False, or the number 1 or 0; compare"),
        (("1", "0"), "flag 0 is '1' of type str"),
        (("True", "False"), "flag 0 is 'True' of type str"),
        ((2, 1), "flag 0 is 2 of type int"),
        ((1.0, math.nan), "flag 1 is nan of type float"),
        ((True, 0.5), "flag 1 is 0.5 of type float"),
        ((True, None), "flag 1 is of type NoneType"),
        ((b"1", b"0"), "flag 0 is b'1' of type bytes"),
        ((True, 10**5000), "flag 1 is of type int"),
        ((True, [False, True]), "flag 1 is of type list"),
        ((True, 1j), "flag 1 is of type complex"),
    ],
)
def test_other_marks_are_refused_by_name(marks, words):
    rows = np.random.default_rng(0).normal(size=[40, 3])
    for flags in (list(marks) * 10, np.array(list(marks) * 10, object)):
        with pytest.raises(DataError, match=words):
            verification_report(rows, flags)
    with pytest.raises(DataError, match="is_same: got NoneType, expected a list of flags"):
        verification_report(rows, None)


def test_arrays_of_other_marks_are_refused_by_name():
    rows = np.random.default_rng(0).normal(size=[40, 3])
    for marks in ([1, -1], ["1", "0"], ["True", "False"], [2, 1], [1, np.nan]):
        with pytest.raises(DataError, match="is_same: flag [01] is"):
            verification_report(rows, np.array(marks * 10))


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
        (np.ones([18, 2]), np.ones(9, bool), {"folds": 1}, ConfigError, "folds=1, expected two folds or more"),
        (np.ones([40, 2]), np.ones(20, bool), {"fars": (0.0,)}, ConfigError, r"FARs in \(0, 1\]"),
    ],
)
def test_input_that_cannot_be_judged_is_named(rows, same, options, error, words):
    with pytest.raises(error, match=words):
        verification_report(rows, same, **options)
