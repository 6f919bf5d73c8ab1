"""Half-precision products, as under mixed precision on a GPU. Here a CPU rounds the operands that a GPU would round."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.losses import shard as shard_module
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.precision import HalfPrecision
from plsc.losses.row_optimizers import SGD
from plsc.losses.shard import Shard
from tests._support.head_oracle import oracle, relative_error, worst_row_error
from tests._support.head_problems import ARCFACE, collect, make_problem, run_fused, with_short_vectors

pytestmark = pytest.mark.usefixtures("small_chunks")

# Of 11 and 8 bits: the relative error of a product of some tens of rounded numbers.
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes, ranks", [(50, 2), (50, 1), (5, 4)])
@pytest.mark.parametrize("margins, scale", [(ARCFACE, 16.0), ((1.0, 0.0, 0.35), 64.0), (None, 1.0)])
def test_loss_and_gradients_are_near_the_oracle(dtype, classes, ranks, margins, scale):
    problem = make_problem(classes, 8, dtype="float32", with_bias=margins is None)
    loss, d_x, d_w, _ = oracle(*problem, margins=margins, scale=scale)
    margin = CombinedMargin(*margins) if margins else None
    states, found_x, found_w, _ = run_fused(problem, ranks, margin, scale, precision=HalfPrecision(dtype))
    # A logit is off by scale / 2^11, and the loss by no more.
    assert abs(states[0].loss.item() - loss) < scale / 2048 + 1e-3
    exponential = 1.0 + scale / 16
    assert relative_error(found_x, d_x) < TOLERANCE[dtype] * exponential
    assert relative_error(found_w, d_w) < TOLERANCE[dtype] * exponential


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_many_classes_at_even_odds_stay_in_range(dtype):
    """A probability is 5e-5 / 512, under float16's least number; the sum of exponentials is over its largest."""
    rng = np.random.default_rng(0)
    classes, samples = 20_000, 512
    weight = rng.standard_normal((classes, 8)).astype("float32") * 1e-2
    features = rng.standard_normal((samples, 8)).astype("float32")
    labels = np.full(samples, 7)
    found = []
    for precision in (None, HalfPrecision(dtype)):
        shard = Shard(paddle.to_tensor(weight), SGD())
        softmax = FusedSoftmax(CombinedMargin(*ARCFACE), 1e-3, precision=precision)
        state = softmax.loss_and_feature_gradient(paddle.to_tensor(features), paddle.to_tensor(labels), shard=shard)
        d_w, _ = collect(softmax.row_gradients(state), shard)
        found.append((state.loss.item(), state.feature_gradient.numpy(), d_w.numpy()))
    (loss, d_x, d_w), (half_loss, half_x, half_w) = found
    assert half_loss == pytest.approx(loss, rel=1e-4)
    assert relative_error(half_x, d_x) < TOLERANCE[dtype]
    assert relative_error(half_w[7], d_w[7]) < TOLERANCE[dtype]
    # The other classes have tiny gradients, which must not vanish.
    others = np.delete(np.arange(classes), 7)
    assert relative_error(half_w[others], d_w[others]) < 0.05
    assert (np.abs(half_w[others]).max(axis=1) > 0).mean() > 0.99


class Steep:
    """A margin of so large a derivative that others dpsi / |w_y| is beyond float16's 65,504."""

    slope = 1e4

    def __call__(self, cosine, norms, labels):
        return self.slope * (cosine - 1.0) + 0.5, paddle.full_like(cosine, self.slope)

    @classmethod
    def of_one(cls, cosine, norm, label):
        return cls.slope * (cosine - 1.0) + 0.5, cls.slope, 0.0


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_targets_part_of_a_gradient_may_be_beyond_half_precision(dtype, ranks):
    rng = np.random.default_rng(0)
    weight = (0.05 * rng.standard_normal((300, 8))).astype("float32")
    labels = np.array([7, 120, 7, 299, 200, 7])
    features = weight[labels] + 1e-4 * rng.standard_normal((6, 8)).astype("float32")
    problem = (features.astype("float32"), labels, weight, None)
    loss, d_x, d_w, _ = oracle(*problem, margin=Steep.of_one, scale=4.0)
    states, found_x, found_w, _ = run_fused(problem, ranks, Steep(), 4.0, precision=HalfPrecision(dtype))
    if dtype == "float16":
        assert max(state.own.term.abs().max().item() for state in states) > 65_504
    assert abs(states[0].loss.item() - loss) < 4.0 / 2048 + 1e-3
    assert relative_error(found_x, d_x) < TOLERANCE[dtype]
    assert worst_row_error(found_w[labels], d_w[labels]) < TOLERANCE[dtype]
    others = np.setdiff1d(np.arange(300), labels)
    assert worst_row_error(found_w[others], d_w[others]) < 5 * TOLERANCE[dtype]


def test_many_classes_at_a_small_scale_have_finite_gradients(monkeypatch):
    """ArcFace at scale 4 with 200,000 classes, features at their centers: e_yn is about 1e5."""
    for rows in (shard_module.CHUNK_ROWS, shard_module.BLOCK_ROWS):
        monkeypatch.setitem(rows, "cpu", 1 << 14)
    rng = np.random.default_rng(0)
    weight = (0.01 * rng.standard_normal((200_000, 8))).astype("float32")
    labels = rng.integers(0, len(weight), 4)
    shard = Shard(paddle.to_tensor(weight), SGD())
    softmax = FusedSoftmax(CombinedMargin(*ARCFACE), 4.0, precision=HalfPrecision("float16"))
    features = paddle.to_tensor(100.0 * weight[labels])
    state = softmax.loss_and_feature_gradient(features, paddle.to_tensor(labels), shard=shard)
    d_w, _ = collect(softmax.row_gradients(state), shard)
    assert np.isfinite(state.loss.item()) and np.isfinite(d_w.numpy()).all()


def test_a_loss_near_zero_has_finite_gradients():
    weight = np.eye(6, dtype="float32")
    problem = (weight.copy(), np.arange(6), weight, None)
    for dtype in TOLERANCE:
        margin = CombinedMargin(m3=0.05)
        states, found_x, found_w, _ = run_fused(problem, 2, margin, 64.0, precision=HalfPrecision(dtype))
        assert 0.0 <= states[0].loss.item() < 1e-4
        assert np.isfinite(found_x).all() and np.isfinite(found_w).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("classes, ranks", [(50, 2), (5, 4)])
def test_short_vectors_are_near_the_oracle(dtype, classes, ranks):
    problem = with_short_vectors(make_problem(classes, 12, dtype="float32"))
    loss, d_x, d_w, _ = oracle(*problem, margins=ARCFACE, scale=16.0)
    margin, precision = CombinedMargin(*ARCFACE), HalfPrecision(dtype)
    states, found_x, found_w, _ = run_fused(problem, ranks, margin, 16.0, precision=precision)
    assert abs(states[0].loss.item() - loss) < 16.0 / 2048 + 1e-3
    assert relative_error(found_x, d_x) < TOLERANCE[dtype] * 2.0
    assert relative_error(found_w, d_w) < TOLERANCE[dtype] * 2.0
    assert not found_x[0].any()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_vectors_of_zeros_give_finite_gradients(dtype):
    problem = (np.zeros((2, 4), np.float32), np.array([0, 1]), np.zeros((3, 4), np.float32), None)
    margin = CombinedMargin(*ARCFACE)
    states, found_x, found_w, _ = run_fused(problem, 1, margin, 64.0, precision=HalfPrecision(dtype))
    assert np.isfinite(states[0].loss.item()) and np.isfinite(found_x).all()
    assert np.isfinite(found_w).all()


def test_other_types_are_refused():
    with pytest.raises(ConfigError, match="expected 'float16' or 'bfloat16'"):
        HalfPrecision("float32")
