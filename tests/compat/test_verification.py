"""`evaluate` of PLSC 0.x against its procedure written out threshold by threshold and pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from plsc.errors import ConfigError, DataError
from plsc.metrics.verification import verification_report
from plsc.utils.verification import evaluate
from tests._support.verification import noisy_pairs, slow_folds


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_evaluate(rows, same, folds, pca):
    """FaceNet's procedure, threshold by threshold and pair by pair."""

    def judge(threshold, distances, flags):
        accepted = [distance < threshold for distance in distances]
        same_count, different_count = sum(flags), len(flags) - sum(flags)
        tp = sum(a and f for a, f in zip(accepted, flags))
        fp = sum(a and not f for a, f in zip(accepted, flags))
        return (
            tp / same_count if same_count else 0,
            fp / different_count if different_count else 0,
            (tp + different_count - fp) / len(flags),
        )

    accuracy, rates, vals, fars = [], [], [], []
    for test in slow_folds(len(same), folds):
        train = [index for index in range(len(same)) if index not in test]
        used = rows
        if pca:
            fitted = np.concatenate([rows[0::2][train], rows[1::2][train]])
            values, vectors = np.linalg.eigh(np.cov(fitted.T))
            used = unit((rows - fitted.mean(0)) @ vectors[:, np.argsort(-values)[:pca]])
        distances = ((used[0::2] - used[1::2]) ** 2).sum(1)
        grid = np.arange(0, 4, 0.01)
        scores = [judge(t, distances[train], same[train])[2] for t in grid]
        accuracy.append(judge(grid[int(np.argmax(scores))], distances[test], same[test])[2])
        rates.append([judge(t, distances[test], same[test])[:2] for t in grid])
        plain = ((rows[0::2] - rows[1::2]) ** 2).sum(1)
        fine = np.arange(0, 4, 0.001)
        train_fars = [(plain[train][~same[train]] < t).mean() for t in fine]
        threshold = 0.0
        for left in range(len(fine) - 1):
            if train_fars[left] <= 1e-3 < train_fars[left + 1]:
                share = (1e-3 - train_fars[left]) / (train_fars[left + 1] - train_fars[left])
                threshold = fine[left] + share * (fine[left + 1] - fine[left])
        tp_rate, fp_rate, _ = judge(threshold, plain[test], same[test])
        vals.append(tp_rate)
        fars.append(fp_rate)
    tpr, fpr = np.mean(rates, axis=0).T
    return tpr, fpr, np.array(accuracy), np.mean(vals), np.std(vals), np.mean(fars)


@pytest.mark.parametrize("pca", [0, 5])
def test_evaluate_equals_the_old_procedure(pca):
    rows, same = noisy_pairs(83, dimension=12, noise=0.6)
    rows = unit(rows)
    found, expected = evaluate(rows, list(same), 5, pca), slow_evaluate(rows, same, 5, pca)
    for name, value, oracle in zip(("tpr", "fpr", "accuracy", "val", "val_std", "far"), found, expected):
        np.testing.assert_allclose(value, oracle, atol=1e-9, err_msg=name)
    assert found[0].shape == found[1].shape == (400,) and found[2].shape == (5,)
    assert 0.6 < found[2].mean() < 1 and 0 < found[3] < 1


def test_evaluate_takes_embeddings_as_given_and_ten_folds_by_default():
    rows, same = noisy_pairs(100, noise=0.1)
    assert evaluate(unit(rows), same)[2].shape == (10,)
    assert evaluate(unit(rows), same)[2].mean() > 0.99
    assert evaluate(100 * rows, same)[2].mean() == pytest.approx(0.5, abs=0.1)  # all lie beyond the grid


def test_evaluate_agrees_with_the_report():
    rows, same = noisy_pairs(600, noise=0.5)
    assert evaluate(unit(rows), same)[2].mean() == pytest.approx(verification_report(rows, same).accuracy, abs=0.01)


@pytest.mark.parametrize(
    "rows, same, options, error, words",
    [
        (np.ones([6, 2]), [True] * 2, {}, DataError, r"got shape \[6, 2\] for 2 flags of issame, expected \[4, D\]"),
        (np.full([6, 2], np.nan), [True] * 3, {}, DataError, "row 0 holds NaN"),
        (np.ones([6, 2]), [True] * 3, {}, ConfigError, "nrof_folds: got 10, expected 2 to 3"),
        (np.ones([6, 2]), [True] * 3, {"nrof_folds": 3, "pca": 3}, ConfigError, "pca: got 3 components.* at most 2"),
    ],
)
def test_evaluate_names_what_does_not_fit(rows, same, options, error, words):
    with pytest.raises(error, match=words):
        evaluate(rows, same, **options)
