"""Row optimizers against their definitions; momentum in bfloat16 trains as in float32."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from fractions import Fraction

import numpy as np
import paddle
import pytest

from plsc import ConfigError, Entry
from plsc.checkpoint import Checkpoint
from plsc.data.sources.glyphs import GlyphRecords, glyph_verification_set
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.row_optimizers import SGD, AdamW, Lars, Lion, Momentum
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.utils.ranges import shard_ranges
from tests._support.head_oracle import LockstepReducer, oracle, relative_error
from tests._support.head_problems import ARCFACE, gathered, make_problem, own_rows
from tests._support.optimizer_oracle import OptimizerOracle


def train(folder, seed, **settings):
    entry = Entry()
    entry.train_dataset = GlyphRecords(40, 12, image_size=32)
    entry.test_dataset = glyph_verification_set(40, 60, num_pairs=400, image_size=32, seed=1)
    entry.set_class_num(40)
    entry.set_emb_size(32)
    entry.set_image_shape((3, 32, 32))
    entry.set_model_name("ResNetTiny")
    entry.set_scale(16)
    entry.set_flip(False)
    entry.set_lr(1.0)
    entry.set_train_batch_size(32)
    entry.set_train_epochs(3)
    entry.set_num_workers(0)
    entry.set_seed(seed)
    entry.set_model_save_dir(folder)
    for name, value in settings.items():
        setattr(entry, name, value)
    return entry.train()


# Beyond this in one of a thousand comparisons of three runs with three (4 degrees of freedom).
T_999 = 8.61


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"sample_ratio": 0.5}])
def test_training_ends_within_the_noise_of_float32(tmp_path, extra):
    seeds = range(3)
    full = [train(tmp_path / f"full{seed}", seed, **extra) for seed in seeds]
    half = [train(tmp_path / f"half{seed}", seed, momentum_storage="bfloat16", **extra) for seed in seeds]
    for figure in ("glyphs/accuracy", "loss"):
        expected = np.array([result[figure] for result in full])
        found = np.array([result[figure] for result in half])
        # Student's two-sample t, with both spreads: the spread of three runs alone is at times next to nothing.
        noise = np.sqrt((expected.var(ddof=1) + found.var(ddof=1)) / len(seeds))
        assert abs(found.mean() - expected.mean()) <= T_999 * noise, (figure, expected, found)
    saved = Checkpoint(tmp_path / "half0").read("head.weight:velocity")
    assert saved.dtype.itemsize == 2 and saved.any()


@pytest.mark.parametrize("kind", [np.float32, np.array, Decimal, paddle.to_tensor, lambda value: Fraction(value)])
def test_numbers_of_any_kind_become_floats(kind):
    for made in Momentum(kind(0.5), kind(0.25)), Momentum(kind(0.5), l2=kind(0.25)):
        assert (made.momentum, made.l2) == (0.5, 0.25)
        assert type(made.momentum) is type(made.l2) is float
    assert AdamW(beta1=kind(0.5)).beta1 == SGD(kind(0.5)).l2 == 0.5


@pytest.mark.parametrize("value", ["0.9", None, True, 1j, float("nan"), [0.9, 0.9]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ConfigError, match="Momentum: momentum is .*, expected a finite number"):
        Momentum(value)
    with pytest.raises(ConfigError, match="AdamW: epsilon is .*, expected a finite number"):
        AdamW(epsilon=value)


ROWS = {
    "momentum": Momentum(0.8, 1e-2),
    "sgd": SGD(1e-2),
    "adamw": AdamW(decay=1e-2),
    "lars": Lars(0.8, 1e-2),
    "lion": Lion(decay=1e-2),
}
RATES = {"momentum": 0.3, "sgd": 0.3, "adamw": 0.01, "lars": 30.0, "lion": 0.01}


def play_steps(problem, ranks, optimizer, learning_rate, *, ratio, margins, steps=3):
    """(full shards, the sampled global classes of each step) after some steps; ranks are threads."""
    reducer, ranges = LockstepReducer(ranks), shard_ranges(len(problem[2]), ranks)

    def play(rank):
        features, labels, weight, bias = own_rows(problem, ranges, rank)
        full = shard = Shard(weight, optimizer, bias=bias, first_class=ranges[rank].start)
        if ratio < 1:
            shard = SampledShard(full, ratio=ratio, samples=len(labels))
        softmax = FusedSoftmax(None if margins is None else CombinedMargin(*margins), 16.0, reducer=reducer)
        drawn = []
        for step in range(steps):
            if ratio < 1:
                shard.draw(labels, seed=1 + 10 * step + rank)
                drawn.append(shard.rows.numpy() + ranges[rank].start)
            else:
                drawn.append(np.arange(*ranges[rank]))
            state = softmax.loss_and_feature_gradient(features, labels, shard=shard)
            l2 = optimizer.l2
            gradients = softmax.row_gradients(state, l2=l2, bias_l2=l2 if optimizer.decays_bias else 0.0)
            shard.update(gradients, learning_rate=learning_rate)
        return full, drawn

    shards, drawn = zip(*reducer.run(play))
    return shards, [np.concatenate(rows) for rows in zip(*drawn)]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("ratio", [1.0, 0.4])
@pytest.mark.parametrize("margins, decays_bias", [(ARCFACE, True), (None, True), (None, False)])
@pytest.mark.parametrize("name", ROWS)
def test_steps_of_each_optimizer_match_its_definition(name, margins, decays_bias, ratio, ranks):
    """Loss, gradient and update over several steps, in float64: whole and sampled, on uneven shards."""
    problem = make_problem(23, 7, with_bias=margins is None)
    features, labels, weight, bias = problem
    optimizer = dataclasses.replace(ROWS[name], decays_bias=decays_bias)
    shards, drawn = play_steps(problem, ranks, optimizer, RATES[name], ratio=ratio, margins=margins)
    options = {"momentum": 0.8, "decay": 1e-2, "decays_vectors": decays_bias}
    centers = OptimizerOracle(name, weight, **options)
    biases = None if bias is None else OptimizerOracle(name, bias, **options)
    for rows in drawn:
        own_bias = None if biases is None else biases.value.copy()
        _, _, d_w, d_b = oracle(
            features, labels, centers.value.copy(), own_bias, margins=margins, scale=16.0, rows=rows.tolist()
        )
        centers.step(d_w, RATES[name], rows)
        if biases is not None:
            biases.step(d_b, RATES[name], rows)
    assert np.abs(centers.value - weight).max() > 1e-3, "a test that moves nothing shows nothing"
    # Paddle's operators take factors such as the momentum in float32.
    assert relative_error(gathered(shards, "weight"), centers.value) < 1e-7
    if bias is not None:
        assert relative_error(gathered(shards, "bias"), biases.value) < 1e-7


def test_lars_moves_a_row_by_its_own_length_and_a_row_of_length_0_too():
    rows = paddle.to_tensor([[3.0, 4.0], [0.0, 0.0], [0.3, 0.4]], "float64")
    gradient, velocity = (
        paddle.to_tensor([[0.0, 2.0], [0.0, 2.0], [0.0, 0.0]], "float64"),
        paddle.zeros([3, 2], "float64"),
    )
    optimizer = Lars(0.9, 0.0)
    optimizer.apply(rows, gradient, state=[velocity], prepared=optimizer.prepare(10.0, step=1, dtype=rows.dtype))
    np.testing.assert_allclose(rows, [[3.0, 4.0 - 10 * 0.001 * 5.0], [0.0, -20.0], [0.3, 0.4]], rtol=1e-12)
