"""Mixed precision."""

from __future__ import annotations

import pytest


@pytest.mark.cpu("mixed precision has no effect there")
def test_mixed_precision_says_that_it_has_no_effect_on_cpu(entry, caplog):
    entry.set_mixed_precision(use_fp16=True, init_loss_scaling=128.0)
    entry.train()
    assert "set_mixed_precision has no effect on CPU" in caplog.text
