"""Sub-centers, the inter-class filter, CurricularFace and the binary losses against the per-sample oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses import logit_ops
from plsc.losses.fused_binary import FusedBinary
from plsc.losses.margins.binary import BinaryMargin, SphereFace2, UniFace
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.margins.curricularface import CurricularFace
from plsc.losses.precision import HalfPrecision
from plsc.utils.loops import compiled_loops
from tests._support.head_oracle import relative_error, worst_row_error
from tests._support.head_problems import SHARDINGS, make_problem, with_short_vectors
from tests._support.negatives_oracle import CASES, Case, sigmoid, with_subcenters
from tests._support.negatives_problems import run_negatives, run_sampled_negatives

pytestmark = pytest.mark.usefixtures("small_chunks")


HEADS = ["store", "recompute", "by rows", "by rows, recompute", "reference"]
# Of 11 and 8 bits, as in test_precision.py.
HALF = {"float16": 4e-3, "bfloat16": 3e-2}


def rows_of(weight):
    return weight.reshape(-1, weight.shape[-1])


def check(found, expected, tolerance, *, error=relative_error):
    assert len({state.loss.item() for state in found.states}) == 1
    assert relative_error(found.states[0].loss, expected.loss) < tolerance
    assert error(found.features, expected.features) < tolerance
    assert error(rows_of(found.weight), rows_of(expected.weight)) < tolerance
    for state, margin in zip(found.states, found.margins):
        if isinstance(margin, BinaryMargin):
            assert relative_error(state.by_bias, expected.bias) < tolerance
        else:
            assert state.by_bias is None
        if isinstance(margin, CurricularFace):
            np.testing.assert_allclose(margin.t.numpy(), [expected.t], rtol=tolerance)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_match_the_oracle(name, dtype, head):
    case = CASES[name]
    for classes, ranks, samples in SHARDINGS:
        problem = with_subcenters(make_problem(classes, samples, dtype=dtype), case.subcenters)
        # A logit of 128, whose exponential is taken, has an error of 1e-5 in float32.
        tolerance = 1e-10 if dtype == "float64" else 1e-5 * max(1.0, case.scale / 30.0)
        check(run_negatives(case, problem, ranks, head), case.expect(*problem[:3]), tolerance)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CASES)
def test_short_vectors_have_the_bounded_gradients_of_the_oracle(name, head):
    case = CASES[name]
    for classes, ranks, samples in [(11, 2, 12), (6, 4, 7)]:
        features, labels, weight, bias = with_short_vectors(make_problem(classes, samples))
        problem = with_subcenters((features, labels, weight, bias), case.subcenters)
        found, expected = run_negatives(case, problem, ranks, head), case.expect(*problem[:3])
        check(found, expected, 1e-9, error=worst_row_error)
        assert not found.features[0].any()


@pytest.mark.parametrize("ratio", [0.1, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_the_sampled_problem_matches_the_oracle(name, ratio):
    case = CASES[name]
    for classes, ranks, samples in [(90, 2, 8), (7, 4, 3), (60, 3, 30)]:
        problem = with_subcenters(make_problem(classes, samples), case.subcenters)
        found, drawn = run_sampled_negatives(case, problem, ranks, ratio)
        assert len(set(drawn)) == len(drawn) and set(problem[1]) <= set(drawn)
        check(found, case.expect(*problem[:3], classes=drawn.tolist()), 1e-10)
        assert not found.weight[np.setdiff1d(np.arange(classes), drawn)].any()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("logits", ["store", "recompute"])
@pytest.mark.parametrize("name", CASES)
def test_half_products_are_near_the_oracle(name, logits, dtype):
    case = CASES[name]
    case = dataclasses.replace(case, scale=case.scale / 4)
    for classes, ranks in [(50, 2), (5, 4)]:
        problem = with_subcenters(make_problem(classes, 8, dtype="float32"), case.subcenters, noise=0.2)
        expected = case.expect(*problem[:3])
        found = run_negatives(case, problem, ranks, logits, precision=HalfPrecision(dtype))
        tolerance = HALF[dtype] * (2.0 + case.scale / 8)
        assert abs(found.states[0].loss.item() - expected.loss) < 1e-3 + (1 + abs(expected.loss)) * case.scale / 1024
        assert relative_error(found.features, expected.features) < tolerance
        assert relative_error(rows_of(found.weight), rows_of(expected.weight)) < tolerance


@pytest.mark.parametrize("name", ["sphereface2", "uniface"])
def test_binary_losses_of_many_classes_stay_in_the_range_of_float16(name):
    """A sigmoid is about e^-14 / 20,000 here, far below float16's least number."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((20_000, 8)).astype("float32") * 1e-2
    problem = rng.standard_normal((64, 8)).astype("float32"), np.full(64, 7), weight, None
    case = dataclasses.replace(CASES[name], scale=4.0, bias=-20.0)
    whole, half = (
        run_negatives(case, problem, 1, "by rows", precision=precision)
        for precision in (None, HalfPrecision("float16"))
    )
    assert half.states[0].loss.item() == pytest.approx(whole.states[0].loss.item(), rel=1e-3)
    others = np.delete(np.arange(20_000), 7)
    assert relative_error(half.features, whole.features) < 0.01
    assert relative_error(half.weight[others], whole.weight[others]) < 0.05
    assert (np.abs(half.weight[others]).max(axis=1) > 0).mean() > 0.99


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["subcenters 3", "filter", "curricularface", "sphereface2", "all"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_greater_logits_are_counted_by_class_and_without_the_changes(name, head, ranks):
    case = CASES[name]
    problem = with_subcenters(make_problem(47, 12, seed=3), case.subcenters, noise=0.3)
    features, labels, weight, _ = problem
    centers = weight.reshape(47, -1, weight.shape[-1])
    unit = centers / np.linalg.norm(centers, axis=2, keepdims=True)
    cosines = np.einsum("nd,ckd->nck", features, unit).max(axis=2)
    expected = [int((row > row[label]).sum()) for row, label in zip(cosines, labels)]
    assert max(expected) > 0
    for state in run_negatives(case, problem, ranks, head, count_above=True).states:
        assert state.num_greater.tolist() == expected


@pytest.mark.parametrize("half", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_stored_and_recomputed_logits_give_the_same_bits(name, by_rows, half):
    case, precision = CASES[name], None if half is None else HalfPrecision(half)
    problem = with_subcenters(make_problem(50, 12, dtype="float32"), case.subcenters)
    heads = ("by rows", "by rows, recompute") if by_rows else ("store", "recompute")
    stored, again = (run_negatives(case, problem, 2, head, precision=precision) for head in heads)
    np.testing.assert_array_equal(stored.weight, again.weight)
    np.testing.assert_array_equal(stored.features, again.features)


@pytest.mark.parametrize("head", ["store", "by rows"])
@pytest.mark.parametrize("name", CASES)
def test_class_weights_and_label_smoothing_are_those_of_the_definition(name, head):
    case = CASES[name]
    for classes, ranks, samples in SHARDINGS:
        problem = with_subcenters(make_problem(classes, samples), case.subcenters)
        weights = np.random.default_rng(0).uniform(0.1, 1.9, samples)
        options = {"smoothing": 0.1, "weights": weights / weights.mean()}
        found, expected = (run_negatives(case, problem, ranks, each, **options) for each in (head, "reference"))
        assert relative_error(found.states[0].loss, expected.states[0].loss) < 1e-10
        assert relative_error(found.features, expected.features) < 1e-10
        assert relative_error(rows_of(found.weight), rows_of(expected.weight)) < 1e-10
        if found.states[0].by_bias is not None:
            assert relative_error(found.states[0].by_bias, expected.states[0].by_bias) < 1e-10


def test_a_filter_of_all_leaves_neither_loss_nor_gradient():
    case = Case(filter_above=-1.0)
    for head in HEADS:
        found = run_negatives(case, make_problem(20, 6), 2, head)
        assert found.states[0].loss.item() < 1e-12
        assert np.abs(found.features).max() < 1e-12 and np.abs(found.weight).max() < 1e-12


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("group", [2, 3, 7])
def test_of_equal_rows_the_first_is_kept(monkeypatch, group, on_host):
    if not on_host:
        monkeypatch.setattr(logit_ops, "host_view", lambda tensor: None)
    rng = np.random.default_rng(group)
    values = rng.integers(0, 3, (5 * group, 11)).astype("float32")
    expected = np.ones((5, group, 11), bool)
    for c in range(5):
        for n in range(11):
            expected[c, values.reshape(5, group, 11)[c, :, n].argmax(), n] = False
    found = logit_ops.all_but_greatest(paddle.to_tensor(values), group=group)
    np.testing.assert_array_equal(np.asarray(found), expected.reshape(-1, 11))


@pytest.mark.parametrize("way", ["compiled", "NumPy", "operators"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", [2, 3, 7])
def test_the_greatest_row_of_each_group_is_found_and_spread_over_it(monkeypatch, group, dtype, way):
    if way == "compiled" and compiled_loops() is None:
        pytest.skip("Numba is not installed")
    if way == "NumPy":
        monkeypatch.setattr(logit_ops, "compiled_loops", lambda: None)
    if way == "operators":
        monkeypatch.setattr(logit_ops, "host_view", lambda tensor: None)
    rng, classes = np.random.default_rng(group), 300
    rows = rng.integers(-3, 4, (classes * group, 5)).astype(dtype)  # many are equal
    scale = np.where(rng.random(classes * group) < 0.5, 1.0, 1.25).astype(dtype)
    rows[2 * group - 1, 3] = np.nan
    groups = (rows * scale[:, None]).reshape(classes, group, 5)

    best, which = logit_ops.greatest(paddle.to_tensor(rows), scale=paddle.to_tensor(scale), group=group)
    np.testing.assert_array_equal(best.numpy(), groups.max(axis=1))
    finite = ~np.isnan(groups).any(axis=1)
    np.testing.assert_array_equal(np.asarray(which)[finite], groups.argmax(axis=1)[finite])

    # As it is where they are used: the memory of an earlier result, and of the rows.
    again, numbers = logit_ops.greatest(
        paddle.to_tensor(rows), scale=paddle.to_tensor(scale), group=group, out=(best, which)
    )
    np.testing.assert_array_equal(again.numpy(), groups.max(axis=1))
    np.testing.assert_array_equal(np.asarray(numbers), np.asarray(which))

    values = rng.standard_normal((classes, 5)).astype(dtype)
    expected = np.zeros(groups.shape, dtype)
    np.put_along_axis(expected, np.asarray(which, np.int64)[:, None], values[:, None], axis=1)
    expected *= scale.reshape(classes, group, 1)
    for out in (None, paddle.full([classes * group, 5], np.nan, dtype)):
        found = logit_ops.spread_over(paddle.to_tensor(values), which, scale=paddle.to_tensor(scale), out=out)
        np.testing.assert_array_equal(found.numpy().reshape(groups.shape), expected)

    others, weights = rng.standard_normal((classes, 5)).astype(dtype), rng.standard_normal(5).astype(dtype)
    out = paddle.full([classes * group], np.nan, dtype)
    sums = logit_ops.row_products_of_groups(found, paddle.to_tensor(others), weights=paddle.to_tensor(weights), out=out)
    sums = sums.numpy()
    by_loops = [
        [sum(a * b * w for a, b, w in zip(row.tolist(), other.tolist(), weights.tolist())) for row in rows]
        for rows, other in zip(expected, others)
    ]
    np.testing.assert_allclose(sums.reshape(classes, group), by_loops, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_operations_off_the_host_give_the_same(monkeypatch, dtype):
    rng = np.random.default_rng(0)
    cosine = paddle.to_tensor(rng.uniform(-1, 1, (6, 5)).astype(dtype))
    threshold, t = paddle.to_tensor(rng.uniform(-1, 1, 5).astype(dtype)), paddle.full([1], 0.3, dtype)

    def all_of():
        for power in (1.0, 2.0, 2.5, 3.0):
            yield from logit_ops.half_powers(cosine, power=power)
        yield from logit_ops.harden(cosine, threshold=threshold, t=t)
        yield from logit_ops.logistic_(20.0 * cosine, with_sum=True)
        yield from logit_ops.logistic_(200.0 * cosine, with_sum=True)
        yield logit_ops.drop_(20.0 * cosine, logit_ops.above(cosine, 0.2))

    here = [found.numpy() for found in all_of()]
    monkeypatch.setattr(logit_ops, "host_view", lambda tensor: None)
    for one, other in zip(here, all_of()):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-30)


@pytest.mark.parametrize("classes, options", [(10, {}), (85742, {"balance": 0.9}), (3, {"t": 1.0, "m": 0.0})])
def test_the_initial_bias_of_sphereface2_is_the_best_at_cosines_of_zero(classes, options):
    margin = SphereFace2(**options)
    margin.start(num_classes=classes, scale=40.0)
    at_zero = 2 * 0.5**margin.t - 1
    own, others = 40.0 * (at_zero - margin.m), 40.0 * (at_zero + margin.m)

    def slope(b):
        return -margin.balance * sigmoid(-own - b) + (1 - margin.balance) * (classes - 1) * sigmoid(others + b)

    b = margin.bias.item()
    assert slope(b - 1e-3) < 0 < slope(b + 1e-3)


def test_the_bias_moves_by_momentum_and_its_state_is_kept():
    margin, other = UniFace(), UniFace()
    margin.start(num_classes=100, scale=64.0)
    assert margin.bias.item() == pytest.approx(-np.log(1000.0))
    for gradient in (1.0, -0.5):
        margin.move_bias(paddle.full([], gradient), 0.1)
    assert margin.bias.item() == pytest.approx(-np.log(1000.0) - 0.1 * 1.0 - 0.1 * (0.9 - 0.5))
    other.load({name: value.numpy() for name, value in margin.state().items()})
    for one in (margin, other):
        one.move_bias(paddle.full([], 2.0), 0.1)
    assert margin.bias.item() == other.bias.item()


def test_a_binary_head_needs_a_binary_margin():
    with pytest.raises(ConfigError, match="CombinedMargin has no bias"):
        FusedBinary(CombinedMargin(), 64.0)
