"""Optimizers that users give."""

from __future__ import annotations

import functools

import paddle
import pytest

from plsc import CheckpointError, ConfigError
from plsc.config import Config
from plsc.engine.optimizer import NamedOptimizer


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


def test_state_that_belongs_to_no_parameter_is_named():
    class Counting(paddle.optimizer.SGD):
        def state_dict(self):
            return {"count": paddle.to_tensor([1])}

    parameter = paddle.nn.Linear(2, 2).weight
    optimizer = NamedOptimizer(
        Config(optimizer=lambda learning_rate, parameters: Counting(learning_rate, parameters)), {"weight": parameter}
    )
    with pytest.raises(CheckpointError, match="Counting: its state 'count' belongs to no parameter"):
        optimizer.state()
