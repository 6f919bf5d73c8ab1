"""Momentum in bfloat16: unbiased rounding, half the memory, and training that ends where float32's does."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import paddle
import pytest

from plsc import ConfigError, Entry
from plsc.checkpoint import Checkpoint
from plsc.data.sources.glyphs import GlyphRecords, glyph_verification_set
from plsc.losses.row_optimizers import SGD, AdamW, HalfMomentum, Momentum


def updated(optimizer, draws, velocity):
    """The velocity after one update by a zero gradient, averaged over draws of the rounding."""
    total = np.zeros(velocity.shape)
    for _ in range(draws):
        rows, state = (
            paddle.zeros(velocity.shape),
            [paddle.to_tensor(velocity).astype(optimizer.state_dtype or "float32")],
        )
        prepared = optimizer.prepare(0.0, step=1, dtype="float32")
        optimizer.apply(rows, paddle.to_tensor(velocity), state=state, prepared=prepared)
        total += state[0].astype("float32").numpy()
    return total / draws


@paddle.no_grad()
def test_rounding_loses_nothing_on_average():
    paddle.seed(1)
    velocity = paddle.randn([16, 32]).astype("bfloat16").astype("float32").numpy()
    exact = updated(Momentum(0.9, 0.0), 1, velocity)
    once, average = (updated(HalfMomentum(0.9, 0.0), draws, velocity) for draws in (1, 400))
    spacing = np.abs(exact) / 128
    assert (np.abs(once - exact) <= spacing).all()
    assert np.abs(once - exact).mean() > 0.1 * spacing.mean()
    assert np.abs(average - exact).mean() < 0.05 * spacing.mean()


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


@pytest.mark.parametrize("settings", [{"optimizer": paddle.optimizer.AdamW}, {"emb_dim": 33}])
def test_bfloat16_momentum_of_other_optimizers_or_odd_sizes_is_refused(tmp_path, settings):
    with pytest.raises(ConfigError, match="needs sharded centers .* plain Momentum and an even embedding size"):
        train(tmp_path / "no", 0, momentum_storage="bfloat16", **settings)


@pytest.mark.parametrize("kind", [np.float32, np.array, Decimal, paddle.to_tensor, lambda value: Fraction(value)])
def test_numbers_of_any_kind_become_floats(kind):
    for made in (Momentum(kind(0.5), kind(0.25)), HalfMomentum(kind(0.5), l2=kind(0.25))):
        assert (made.momentum, made.l2) == (0.5, 0.25)
        assert type(made.momentum) is type(made.l2) is float
    assert AdamW(beta1=kind(0.5)).beta1 == SGD(kind(0.5)).l2 == 0.5


@pytest.mark.parametrize("value", ["0.9", None, True, 1j, float("nan"), [0.9, 0.9]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ConfigError, match="Momentum: momentum is .*, expected a finite number"):
        Momentum(value)
    with pytest.raises(ConfigError, match="AdamW: epsilon is .*, expected a finite number"):
        AdamW(epsilon=value)
