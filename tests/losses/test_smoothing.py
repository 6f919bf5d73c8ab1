"""Label smoothing and class weights against the per-sample oracle: on 1 to 4 ranks, whole and sampled."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.margins.magface import MagFace
from plsc.losses.row_optimizers import AdamW
from tests._support import margin_oracles as one
from tests._support.head_oracle import oracle, psi, relative_error, worst_row_error
from tests._support.head_problems import (
    SHARDINGS,
    gathered,
    make_problem,
    run_fused,
    run_reference,
    run_sampled,
    with_short_vectors,
)

pytestmark = pytest.mark.usefixtures("small_chunks")

# The margin, the arguments of the oracle, and the scale.
LOSSES = {
    "softmax": (None, {}, 1.0),
    "arcface": (CombinedMargin(m2=0.5), {"margins": (1.0, 0.5, 0.0)}, 64.0),
    "arcface, s 128": (CombinedMargin(m2=0.5), {"margins": (1.0, 0.5, 0.0)}, 128.0),
    "magface": (MagFace(l_a=1.0), {"margin": lambda *of: one.magface(*of, l_a=1.0)}, 32.0),
}
LOSSES["magface"][1]["penalty"] = lambda norm: one.magface_penalty(norm, l_a=1.0)


def weights_of(classes):
    weights = np.random.default_rng(4).uniform(0.0, 3.0, classes)
    weights[0] = 0.0
    return weights


def of_samples(problem, class_weights):
    """The weights of the samples, of mean 1."""
    weights = class_weights[problem[1]]
    return paddle.to_tensor((weights / weights.mean()).astype(problem[0].dtype))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("classes, ranks, samples", SHARDINGS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("runner", [run_fused, run_reference])
def test_loss_and_gradients_match_the_oracle(runner, name, classes, ranks, samples, smoothing, weighted):
    margin, options, scale = LOSSES[name]
    problem = make_problem(classes, samples, with_bias=margin is None)
    weights = weights_of(classes) if weighted and samples > 1 else None
    loss, d_x, d_w, d_b = oracle(*problem, scale=scale, smoothing=smoothing, class_weights=weights, **options)
    given = {} if weights is None else {"weights": of_samples(problem, weights)}
    states, found_x, found_w, found_b = runner(problem, ranks, margin, scale, smoothing=smoothing, **given)
    assert len({state.loss.item() for state in states}) == 1
    assert relative_error(states[0].loss, loss) < 1e-10
    assert relative_error(found_x, d_x) < 1e-10
    assert relative_error(found_w, d_w) < 1e-10
    if margin is None:
        assert relative_error(found_b, d_b) < 1e-10


@pytest.mark.parametrize(
    "options", [{"by_rows": True}, {"by_rows": True, "logits": "recompute"}, {"logits": "recompute"}]
)
@pytest.mark.parametrize("name", LOSSES)
def test_each_way_of_the_second_pass_matches_the_oracle(name, options):
    """With l2. Among the vectors are short ones, each compared by itself."""
    margin, expected, scale = LOSSES[name]
    problem = make_problem(50, 12, with_bias=margin is None)
    problem = problem if margin is None else with_short_vectors(problem)
    weights = weights_of(50)
    loss, d_x, d_w, d_b = oracle(*problem, scale=scale, smoothing=0.2, class_weights=weights, **expected)
    given = {"weights": of_samples(problem, weights), "smoothing": 0.2, "l2": 0.3}
    states, found_x, found_w, found_b = run_fused(problem, 3, margin, scale, **given, **options)
    assert relative_error(states[0].loss, loss) < 1e-9
    assert relative_error(found_x, d_x) < 1e-9
    assert worst_row_error(found_w, d_w + 0.3 * problem[2]) < 1e-9
    if margin is None:
        assert relative_error(found_b, d_b + 0.3 * problem[3]) < 1e-9


@pytest.mark.parametrize("classes, ranks, samples, ratio", [(90, 2, 8, 0.3), (7, 4, 3, 0.1), (60, 3, 30, 0.1)])
@pytest.mark.parametrize("name", LOSSES)
def test_in_a_sampled_problem_labels_are_spread_over_the_sample(name, classes, ranks, samples, ratio):
    margin, expected, scale = LOSSES[name]
    problem = make_problem(classes, samples, with_bias=margin is None)
    state, d_x, shards, rows = run_sampled(problem, ranks, ratio, margin, scale, smoothing=0.2)
    loss, expected_x, expected_w, expected_b = oracle(
        *problem, scale=scale, smoothing=0.2, rows=rows.tolist(), **expected
    )
    assert relative_error(state.loss, loss) < 1e-10
    assert relative_error(d_x, expected_x) < 1e-10
    assert relative_error(problem[2] - gathered(shards, "weight"), expected_w) < 1e-10
    others = np.setdiff1d(np.arange(classes), rows)
    np.testing.assert_array_equal(gathered(shards, "weight")[others], problem[2][others])
    if margin is None:
        assert relative_error(problem[3] - gathered(shards, "bias"), expected_b) < 1e-10


@pytest.mark.parametrize("runner", [run_fused, run_reference])
@pytest.mark.parametrize("name", ["softmax", "arcface"])
def test_a_single_class_has_nothing_to_spread(name, runner):
    margin, _, scale = LOSSES[name]
    problem = make_problem(1, 4, with_bias=margin is None)
    states, d_x, d_w, _ = runner(problem, 1, margin, scale, smoothing=0.3)
    assert states[0].loss.item() == pytest.approx(0.0, abs=1e-13)
    assert np.abs(d_x).max() < 1e-13 and np.abs(d_w).max() < 1e-13


def test_norms_that_the_update_keeps_are_right_after_a_smoothed_step():
    problem = make_problem(50, 8)
    margin = CombinedMargin(m2=0.5)
    _, _, shards, _ = run_sampled(problem, 2, 1.0, margin, 64.0, smoothing=0.3, optimizer=AdamW(), learning_rate=0.1)
    for shard in shards:
        np.testing.assert_allclose(shard.squared_norms().numpy(), (shard.weight.numpy() ** 2).sum(axis=1), rtol=1e-12)


def test_the_oracle_is_the_loss_of_its_definition():
    """In one formula: cross-entropy with soft labels, weighted."""
    features, labels, weight, _ = problem = make_problem(9, 6)
    weights = weights_of(9)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T
    logits = 20.0 * cosine
    logits[np.arange(6), labels] = [20.0 * psi(cosine[n, y], 1.0, 0.5, 0.0)[0] for n, y in enumerate(labels)]
    soft = np.full((6, 9), 0.2 / 9)
    soft[np.arange(6), labels] += 0.8
    losses = -(soft * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum(axis=1)
    expected = (losses * weights[labels]).sum() / weights[labels].sum()
    found, *_ = oracle(*problem, margins=(1.0, 0.5, 0.0), scale=20.0, smoothing=0.2, class_weights=weights)
    assert found == pytest.approx(expected, rel=1e-12)
