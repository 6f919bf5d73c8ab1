"""Each loss that is a margin of its own, against the per-sample oracle: on 1 to 4 ranks, whole and sampled."""

from __future__ import annotations

import copy
import math

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses.margins.adaface import AdaFace
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.margins.curricularface import CurricularFace
from plsc.losses.margins.dynamic import DynamicMargin
from plsc.losses.margins.elasticface import ElasticArc, ElasticArcPlus, ElasticCos, ElasticCosPlus
from plsc.losses.margins.magface import MagFace
from plsc.losses.margins.warmup import WarmupMargin
from plsc.losses.negatives import NegativesMargin
from plsc.utils.ranges import Range, shard_ranges
from tests._support import margin_oracles as one
from tests._support.head_oracle import oracle, psi, relative_error
from tests._support.head_problems import SHARDINGS, gathered, make_problem, run_fused, run_reference, run_sampled

pytestmark = pytest.mark.usefixtures("small_chunks")

SEED = 77


def problem_of(classes, samples, dtype="float64"):
    """Features of norms 1 to 150, so that all bounds on norms are passed."""
    features, labels, weight, bias = make_problem(classes, samples, dtype=dtype)
    lengths = np.geomspace(150.0, 1.0, samples)
    features *= (lengths / np.linalg.norm(features, axis=1))[:, None].astype(dtype)
    return features, labels, weight, bias


def counts_of(classes):
    return np.random.default_rng(1).integers(1, 500, classes)


def angle_of_class(label, classes):
    return float(np.float32(one.dynamic_margins(counts_of(classes))[label]))  # a rank keeps them in float32


def drawn(mean, std, features):
    return np.random.default_rng(SEED).normal(mean, std, len(features))


def by_rank_of_cosine(margins, features, labels, weight):
    """The least margin to the sample with the greatest cosine, and so on."""
    x, w = features.astype(np.float64), weight[labels].astype(np.float64)
    cosine = (x * w).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(w, axis=1)
    given = np.empty(len(margins))
    for margin, sample in zip(sorted(margins), sorted(range(len(cosine)), key=lambda n: -cosine[n])):
        given[sample] = margin
    return given


CASES = {
    "adaface": (
        AdaFace,
        lambda f, y, w: {"margin": one.adaface(np.linalg.norm(f.astype(float), axis=1), 20.0, 100.0)[0]},
    ),
    "adaface h 30": (  # z reaches -1 and 1
        lambda: AdaFace(h=30.0, m=0.3, average=0.5),
        lambda f, y, w: {
            "margin": one.adaface(np.linalg.norm(f.astype(float), axis=1), 20.0, 100.0, h=30.0, m=0.3, average=0.5)[0]
        },
    ),
    "magface": (MagFace, lambda f, y, w: {"margin": one.magface, "penalty": one.magface_penalty}),
    "elasticface_arc": (ElasticArc, lambda f, y, w: {"margin": [one.angle_added(m) for m in drawn(0.5, 0.05, f)]}),
    "elasticface_cos": (ElasticCos, lambda f, y, w: {"margin": [one.subtracted(m) for m in drawn(0.35, 0.05, f)]}),
    "elasticface_arc wide": (  # some are below 0
        lambda: ElasticArc(m=0.1, std=0.3),
        lambda f, y, w: {"margin": [one.angle_added(m) for m in drawn(0.1, 0.3, f)]},
    ),
    "elasticface_arc_plus": (
        ElasticArcPlus,
        lambda f, y, w: {"margin": [one.angle_added(m) for m in by_rank_of_cosine(drawn(0.5, 0.05, f), f, y, w)]},
    ),
    "elasticface_cos_plus": (
        ElasticCosPlus,
        lambda f, y, w: {"margin": [one.subtracted(m) for m in by_rank_of_cosine(drawn(0.35, 0.05, f), f, y, w)]},
    ),
    "dynamic_margin": (
        DynamicMargin,
        lambda f, y, w: {"margin": [one.angle_added(angle_of_class(label, len(w))) for label in y]},
    ),
    "warm-up of arcface": (
        lambda: WarmupMargin(CombinedMargin(m2=0.5), 4),
        lambda f, y, w: {"margin": one.warmed_up(lambda c, norm, label: (*psi(c, 1.0, 0.5, 0.0), 0.0), 0.75)},
    ),
    "warm-up of magface": (
        lambda: WarmupMargin(MagFace(), 4),
        lambda f, y, w: {"margin": one.warmed_up(one.magface, 0.75), "penalty": one.magface_penalty},
    ),
}


class OnEachRank:
    """Ranks are threads here, and a margin with state is one of its own on each, as on real ranks."""

    def __init__(self, make, classes, ranks):
        self.margins = [make() for _ in range(ranks)]
        for margin, own in zip(self.margins, shard_ranges(classes, ranks)):
            if hasattr(margin, "set_class_counts"):
                margin.set_class_counts(counts_of(classes), own)
            if hasattr(margin, "begin_step"):
                margin.begin_step(2, seed=SEED)


def run(runner, problem, ranks, make, scale, **options):
    each = OnEachRank(make, len(problem[2]), ranks)
    return runner(problem, ranks, margin=each.margins, scale=scale, **options)


@pytest.mark.parametrize("runner", [run_fused, run_reference])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("classes, ranks, samples", [*SHARDINGS[:4], SHARDINGS[5]])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_match_the_oracle(name, classes, ranks, samples, dtype, runner):
    make, expected = CASES[name]
    problem = problem_of(classes, samples, dtype)
    options = expected(*problem[:3])
    loss, d_x, d_w, _ = oracle(*problem, scale=32.0, **options)
    states, found_x, found_w, _ = run(runner, problem, ranks, make, 32.0)
    tolerance = 1e-9 if dtype == "float64" else 2e-5
    assert len({state.loss.item() for state in states}) == 1
    assert relative_error(states[0].loss, loss) < tolerance
    assert relative_error(found_x, d_x) < tolerance
    assert relative_error(found_w, d_w) < tolerance


@pytest.mark.parametrize("name", CASES)
def test_the_sampled_problem_matches_the_oracle(name):
    make, expected = CASES[name]
    problem = problem_of(60, 8)
    state, d_x, shards, rows = run(run_sampled, problem, 3, make, 32.0, ratio=0.4)
    loss, expected_x, expected_w, _ = oracle(*problem, scale=32.0, rows=rows.tolist(), **expected(*problem[:3]))
    assert relative_error(state.loss, loss) < 1e-9
    assert relative_error(d_x, expected_x) < 1e-9
    assert relative_error(problem[2] - gathered(shards, "weight"), expected_w) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_the_derivatives_are_those_of_differences(name):
    make, _ = CASES[name]
    margin = OnEachRank(make, 9, 1).margins[0]
    cosine = np.array([-0.999, -0.95, -0.7, -0.2, 0.01, 0.3, 0.6, 0.9, 0.99])
    norms = np.array([1.0, 12.0, 20.0, 40.0, 60.0, 100.5, 109.0, 111.0, 150.0])
    labels = paddle.arange(9)

    def value(cosine, norms, part=0):
        copied = copy.deepcopy(margin)
        return copied(paddle.to_tensor(cosine), paddle.to_tensor(norms), labels)[part].numpy()

    step = 1e-6
    slope = (value(cosine + step, norms) - value(cosine - step, norms)) / (2.0 * step)
    np.testing.assert_allclose(value(cosine, norms, 1), slope, rtol=1e-6, atol=1e-7)
    if name.endswith("magface"):
        slope = (value(cosine, norms + step) - value(cosine, norms - step)) / (2.0 * step)
        np.testing.assert_allclose(value(cosine, norms, 2), slope, rtol=1e-6, atol=1e-8)
        up, down = (margin.penalty(paddle.to_tensor(norms + sign * step))[0].numpy() for sign in (1, -1))
        slope = margin.penalty(paddle.to_tensor(norms))[1].numpy()
        np.testing.assert_allclose(slope, (up - down) / (2.0 * step), rtol=1e-6, atol=1e-8)


def test_the_averages_of_adaface_follow_the_batches():
    margin, mean, std = AdaFace(average=0.2), 20.0, 100.0
    rng = np.random.default_rng(0)
    for _ in range(5):
        norms = rng.uniform(0.0, 130.0, 6)
        margin(paddle.zeros([6], "float64"), paddle.to_tensor(norms), paddle.zeros([6], "int64"))
        _, mean, std = one.adaface(norms, mean, std, average=0.2)
    assert abs(margin.state()["mean"].item() / mean - 1.0) < 1e-12
    assert abs(margin.state()["std"].item() / std - 1.0) < 1e-12


def test_a_batch_of_one_has_no_deviation():
    margin = AdaFace()
    found = margin(paddle.zeros([1]), paddle.ones([1]), paddle.zeros([1], "int64"))
    assert margin.state()["std"].item() == 100.0
    assert all(bool(paddle.isfinite(part).all()) for part in found)


@pytest.mark.parametrize(
    "make, mean", [(ElasticArc, 0.5), (ElasticCos, 0.35), (ElasticArcPlus, 0.5), (ElasticCosPlus, 0.35)]
)
def test_what_is_drawn_is_normal_and_depends_on_the_seed_alone(make, mean):
    def margins(seed):
        margin = make()
        margin.begin_step(0, seed=seed)
        psi = margin(paddle.zeros([20000], "float64"), paddle.ones([20000], "float64"), None)[0].numpy()
        return -psi if "Cos" in make.__name__ else np.arccos(psi) - math.pi / 2

    found = margins(5)
    assert abs(found.mean() - mean) < 2e-3 and abs(found.std() - 0.05) < 1e-3
    assert abs(((found - mean) ** 4).mean() / found.std() ** 4 - 3.0) < 0.2  # the kurtosis of a normal distribution
    np.testing.assert_array_equal(found, margins(5))
    assert (found != margins(6)).mean() > 0.99


def test_margins_of_classes_by_their_counts():
    margin = DynamicMargin(low=0.1, high=0.6, power=0.5)
    margin.set_class_counts(np.array([1, 4, 16, 0]), Range(0, 4))
    cosine = paddle.zeros([4], "float64")
    angles = np.arccos(margin(cosine, cosine, paddle.arange(4))[0].numpy()) - math.pi / 2
    # t is 1, 1/2 and 1/4; a class without images has the greatest margin.
    np.testing.assert_allclose(angles, [0.6, 0.1 + 0.5 / 3.0, 0.1, 0.6], rtol=1e-6)
    margin.set_class_counts(np.array([7, 7, 7]), Range(1, 3))
    angles = np.arccos(margin(cosine[:2], cosine[:2], paddle.to_tensor([1, 2]))[0].numpy()) - math.pi / 2
    np.testing.assert_allclose(angles, [0.35, 0.35], rtol=1e-6)


@pytest.mark.parametrize("step, share", [(0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0)])
def test_a_margin_rises_to_itself(step, share):
    full, rising = CombinedMargin(m2=0.5), WarmupMargin(CombinedMargin(m2=0.5), 10)
    rising.begin_step(step, seed=1)
    cosine = paddle.to_tensor([-0.9, -0.2, 0.3, 0.8], "float64")
    for found, expected, none in zip(
        rising(cosine, cosine, paddle.arange(4)), full(cosine), (cosine, paddle.ones_like(cosine))
    ):
        np.testing.assert_allclose(found, none + share * (expected - none), rtol=1e-12)


def test_a_warm_up_has_what_its_margin_has():
    plain, ada = WarmupMargin(CombinedMargin(), 3), WarmupMargin(AdaFace(), 3)
    assert plain.is_per_sample and not plain.needs_all_cosines and not hasattr(plain, "state")
    assert ada.state().keys() == {"mean", "std"} and not ada.is_per_sample and not hasattr(ada, "penalty")
    assert WarmupMargin(ElasticArcPlus(), 3).needs_all_cosines
    assert hasattr(WarmupMargin(DynamicMargin(), 3), "set_class_counts")
    assert isinstance(WarmupMargin(CurricularFace(), 3), NegativesMargin) and not isinstance(plain, NegativesMargin)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_warm_up_of_a_margin_that_changes_negatives_is_that_of_its_definition(ranks):
    problem = make_problem(20, 9)

    def found(runner):
        def make():
            margin = WarmupMargin(CurricularFace(average=1.0), 4)
            margin.begin_step(0, seed=1)
            return margin

        states, d_x, d_w, _ = runner(problem, ranks, [make() for _ in range(ranks)], 16.0)
        return states[0].loss.item(), d_x, d_w

    for one_way, other in zip(found(run_fused), found(run_reference)):
        assert relative_error(one_way, other) < 1e-10
    _, d_x, _ = found(run_fused)
    full = run_fused(problem, 1, CurricularFace(average=1.0), 16.0)[1]
    assert relative_error(d_x, full) > 1e-3


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: AdaFace(m=-1.0), "m: got -1.0, expected a number, at least 0"),
        (lambda: AdaFace(average=2.0), "average: got 2.0, expected a number, at least 0 and at most 1"),
        (lambda: MagFace(l_a=0.0), "l_a: got 0.0, expected a number, above 0"),
        (lambda: MagFace(u_a=5.0), "u_a: got 5, expected a number above l_a, 10"),
        (lambda: ElasticArc(std=float("nan")), "std: got nan, expected a number, at least 0"),
        (lambda: ElasticArc(m=True), "m: got True, expected a number"),
        (lambda: DynamicMargin(high=0.01), "high: got 0.01, expected at least low, 0.05"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
