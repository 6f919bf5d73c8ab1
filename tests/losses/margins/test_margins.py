"""The contract of a margin: what a head makes of one that keeps to it, and says to one that does not."""

from __future__ import annotations

import threading

import numpy as np
import paddle
import pytest

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.loss_types import LOSSES
from plsc.losses.margins import MARGIN_CLASSES, apply_margin, build_margin, penalty_of
from tests._support.head_problems import make_problem, run_fused, run_reference
from tests._support.workers.cases import NormMargin

pytestmark = pytest.mark.usefixtures("small_chunks")


class Cautious(NormMargin):
    """Returns `other` where the head's cosine is not that of the target: where another rank holds the center."""

    def __init__(self, expected, other):
        self.expected, self.other = paddle.to_tensor(expected), other

    def __call__(self, cosine, norms, labels):
        is_own = paddle.isclose(cosine, self.expected, 1e-6, 1e-9)
        return tuple(
            paddle.where(is_own, part, paddle.full_like(part, self.other))
            for part in super().__call__(cosine, norms, labels)
        )


@pytest.mark.parametrize("other", [float("nan"), float("inf"), 1e30])
def test_what_is_returned_for_the_centers_of_other_ranks_is_ignored(other):
    features, labels, weight, _ = problem = make_problem(70, 12, dtype="float64", with_bias=False)
    centers = weight[labels]
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(centers, axis=1)
    cosine = (features * centers).sum(axis=1) / norms
    expected = run_fused(problem, 3, NormMargin(), 16.0)
    found = run_fused(problem, 3, Cautious(cosine, other), 16.0)
    assert found[0][0].loss.item() == expected[0][0].loss.item()
    for part in (1, 2):
        np.testing.assert_array_equal(found[part], expected[part])


def test_a_margin_may_write_into_its_arguments():
    def margin(cosine, norms, labels):
        for argument in (cosine, norms, labels):
            argument.zero_()
        return cosine, paddle.ones_like(cosine)

    given = [paddle.ones([3]), paddle.ones([3]), paddle.ones([3], "int64")]
    apply_margin(margin, given[0], norms=given[1], labels=given[2])
    assert [argument.tolist() for argument in given] == [[1, 1, 1]] * 3


class Stateful(NormMargin):
    def __init__(self, state):
        self._state = state

    def state(self):
        return self._state

    def load(self, state): ...


class Unloadable(NormMargin):
    def state(self):
        return {}


@pytest.mark.parametrize(
    "margin, words",
    [
        (NormMargin, "margin_function: got <class .*NormMargin'>, expected an object that is called with"),
        (Unloadable(), r"margin Unloadable has one of the methods state\(\) and load\(...\), expected both or neither"),
        (Stateful({"mean": 1.0}), r"state\(\) returned {'mean': 'float'}, expected a dict of tensors by name"),
        (Stateful(None), r"state\(\) returned NoneType, expected a dict of tensors by name"),
    ],
)
def test_what_is_no_margin_is_found_before_training(margin, words):
    with pytest.raises(ConfigError, match=words):
        build_margin(Config(margin_function=margin))


class MeanCosine(NormMargin):
    """psi = cos - (mean of all target cosines): a margin that needs those of all ranks."""

    needs_all_cosines = True

    def __call__(self, cosine, norms, labels):
        self.seen = cosine.numpy()
        return cosine - cosine.mean(), paddle.ones_like(cosine)


@pytest.mark.parametrize("run", [run_fused, run_reference])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_margin_that_asks_for_it_gets_the_cosines_of_all_ranks(run, ranks):
    features, labels, weight, _ = problem = make_problem(7, 5, dtype="float64")
    centers = weight[labels]
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(centers, axis=1)
    margins = [MeanCosine() for _ in range(ranks)]
    margin = PerRank(margins)
    states, *_ = run(problem, ranks, margin, 16.0)
    for each in margins:
        np.testing.assert_allclose(each.seen, (features * centers).sum(axis=1) / norms, rtol=1e-12)
    assert len({state.loss.item() for state in states}) == 1


class PerRank:
    """A margin of its own for each of the threads that play a rank."""

    needs_all_cosines = True

    def __init__(self, margins):
        self._left, self._own = list(margins), threading.local()

    def __call__(self, cosine, norms, labels):
        if not hasattr(self._own, "margin"):
            self._own.margin = self._left.pop()
        return self._own.margin(cosine, norms, labels)


@pytest.mark.parametrize("kind", [*MARGIN_CLASSES, "arcface", "softmax"])
def test_the_margin_of_a_loss_has_the_parameters_of_the_table(kind):
    margin = build_margin(Config(loss_type=f"dist_{kind}"))
    parameters = LOSSES[kind].parameters
    assert (margin is None) == (kind == "softmax")
    assert not parameters.names() or isinstance(margin, parameters)


def test_two_parameters_that_do_not_fit_are_named_as_a_setting():
    with pytest.raises(ConfigError, match="loss_options: u_a: got 5, expected a number above l_a, 10"):
        build_margin(Config(loss_type="magface", loss_options={"u_a": 5}))


@pytest.mark.parametrize(
    "penalty, words",
    [
        (lambda norms: norms, r"penalty\(norms\) returned Tensor; expected \(value, derivative by the norm\)"),
        (lambda norms: (norms.sum(), norms), r"returned \(\[\] float32, \[3\] float32\)"),
    ],
)
def test_what_a_penalty_must_return_is_said(penalty, words):
    margin = NormMargin()
    margin.penalty = penalty
    with pytest.raises(ConfigError, match=words):
        penalty_of(margin, paddle.ones([3]))
