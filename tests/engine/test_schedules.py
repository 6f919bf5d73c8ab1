"""The learning rate by step, against formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest

from plsc.config import Config
from plsc.engine.schedules import build_schedule


def test_rate_scales_with_the_global_batch_and_decays():
    rate = build_schedule(Config(lr_steps=(10, 20)), 2048, steps_per_epoch=5, total_steps=None)
    assert [rate(step) for step in (0, 9, 10, 20)] == pytest.approx([0.2, 0.2, 0.02, 0.002])


@pytest.mark.parametrize("global_batch, start", [(2048, 0.1), (256, 0.0)])
def test_warm_up_rises_to_the_peak_and_never_falls(global_batch, start):
    rate = build_schedule(Config(warmup_epochs=2), global_batch, steps_per_epoch=5, total_steps=None)
    rates, peak = [rate(step) for step in range(12)], 0.1 * global_batch / 1024
    assert np.all(np.diff(rates) >= 0)
    assert rates[0] == pytest.approx(start + (peak - start) / 10)
    assert rates[9:] == pytest.approx([peak] * 3)
