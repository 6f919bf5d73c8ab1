"""Optimizers that users give."""

from __future__ import annotations

import functools

import paddle
import pytest

from plsc import ConfigError


def test_another_optimizer(entry):
    entry.set_optimizer(functools.partial(paddle.optimizer.AdamW, weight_decay=0.05))
    entry.set_lr(lambda step: 1e-3)
    assert entry.train()["lr"] == 1e-3


def test_optimizers_of_the_wrong_form(entry):
    entry.set_optimizer(lambda learning_rate, parameters: "adam")
    with pytest.raises(ConfigError, match="returned str, expected a paddle.optimizer.Optimizer"):
        entry.train()
    entry.set_optimizer(lambda rate: None)
    with pytest.raises(ConfigError, match="could not be called as factory"):
        entry.train()
