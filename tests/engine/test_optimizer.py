"""Optimizers that users give."""

from __future__ import annotations

import functools
from decimal import Decimal

import numpy as np
import paddle
import pytest

from plsc import CheckpointError, ConfigError
from plsc.config import Config
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.trainer import Trainer


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


@pytest.mark.parametrize("decay", [np.float32(5e-4), Decimal("5e-4")])
def test_a_weight_decay_that_paddle_would_call_is_refused_when_the_optimizer_is_made(entry, decay):
    entry.set_optimizer(functools.partial(paddle.optimizer.Momentum, weight_decay=decay))
    with pytest.raises(
        ConfigError, match=r"set_optimizer: weight_decay is .*, expected a float or a paddle.regularizer"
    ):
        Trainer(entry.config)
    for sound in (5e-4, paddle.regularizer.L2Decay(5e-4), None):
        entry.set_optimizer(functools.partial(paddle.optimizer.Momentum, weight_decay=sound))
        Trainer(entry.config)


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
