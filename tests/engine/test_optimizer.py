"""Optimizers that users give."""

from __future__ import annotations

import functools
from decimal import Decimal

import numpy as np
import paddle
import pytest

from plsc import CheckpointError, ConfigError
from plsc.checkpoint import Checkpoint
from plsc.cli.settings import make_entry, merge_settings
from plsc.config import OPTIMIZERS, Config
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.trainer import Trainer
from plsc.entry import Entry
from tests._support.checkpoints import assert_equal, contents
from tests._support.optimizer_oracle import OptimizerOracle


def test_another_optimizer(entry):
    entry.set_optimizer(functools.partial(paddle.optimizer.AdamW, weight_decay=0.05))
    entry.set_lr(lambda step: 1e-3)
    assert entry.train()["lr"] == 1e-3


def test_optimizers_of_the_wrong_form(entry):
    entry.set_optimizer(lambda learning_rate, parameters: "adam")
    with pytest.raises(ConfigError, match="returned str, expected a paddle.optimizer.Optimizer"):
        entry.train()
    entry.set_optimizer(lambda learning_rate, parameters: {}["rate"])
    with pytest.raises(ConfigError, match="set_optimizer: .* failed: KeyError: 'rate'"):
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


# Named optimizers

NAMED = {
    "momentum": {"momentum": 0.8, "weight_decay": 1e-2},
    "sgd": {"weight_decay": 1e-2},
    "adamw": {"weight_decay": 1e-2},
    "lars": {"momentum": 0.8, "weight_decay": 1e-2},
    "lion": {"weight_decay": 1e-2},
}
SHAPES = {"conv.weight": (3, 2, 2, 2), "norm.weight": (4,), "fc.bias": (5,), "fc.weight": (6, 4)}


def make_parameters(seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in SHAPES.items():
        made[name] = paddle.create_parameter(list(shape), "float64")
        made[name].set_value(rng.standard_normal(shape))
    return made


def step_with(optimizer, parameters, learning_rate, step):
    """One step by random gradients; returns them."""
    rng = np.random.default_rng(100 + step)
    gradients = {name: rng.standard_normal(tensor.shape) for name, tensor in parameters.items()}
    for name, tensor in parameters.items():
        tensor.grad = paddle.to_tensor(gradients[name])
    optimizer.step(learning_rate)
    return gradients


@pytest.mark.parametrize("of_centers", [False, True])
@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_named_optimizers_match_their_definitions(name, decay_norms, of_centers):
    config = Config(optimizer=name, decay_norms=decay_norms, **NAMED[name])
    parameters = make_parameters()
    if of_centers:
        del parameters["conv.weight"]  # centers are rows
    optimizer = NamedOptimizer(config, parameters, of_centers=of_centers)
    options = {
        "momentum": 0.8,
        "decay": 1e-2,
        "decays_vectors": decay_norms,
        "by_row": of_centers,
    }
    oracles = {key: OptimizerOracle(name, tensor.numpy(), **options) for key, tensor in parameters.items()}
    for step, learning_rate in enumerate((0.1, 0.02, 0.3)):
        gradients = step_with(optimizer, parameters, learning_rate, step)
        for key, oracle in oracles.items():
            oracle.step(gradients[key], learning_rate)
    for key, oracle in oracles.items():
        np.testing.assert_allclose(parameters[key].numpy(), oracle.value, rtol=1e-6, atol=1e-7)
        assert parameters[key].grad is None
    assert optimizer.kind.lower() == name


@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_named_optimizer_that_was_saved_and_loaded_goes_on_bit_for_bit(name, decay_norms):
    config = Config(optimizer=name, decay_norms=decay_norms, **NAMED[name])

    def play(broken):
        parameters = make_parameters()
        optimizer = NamedOptimizer(config, parameters)
        for step in range(5):
            if broken and step == 3:
                state = {key: value.numpy().copy() for key, value in optimizer.state().items()}
                values = {key: tensor.numpy().copy() for key, tensor in parameters.items()}
                parameters = make_parameters(seed=9)
                for key, tensor in parameters.items():
                    tensor.set_value(values[key])
                optimizer = NamedOptimizer(config, parameters)
                optimizer.load(state)
                assert {key: value.numpy().tolist() for key, value in optimizer.state().items()} == {
                    key: value.tolist() for key, value in state.items()
                }
            step_with(optimizer, parameters, 0.1, step)
        return {
            **{key: tensor.numpy() for key, tensor in parameters.items()},
            **{key: value.numpy() for key, value in optimizer.state().items()},
        }

    whole, broken = play(False), play(True)
    assert whole.keys() == broken.keys() and (name == "sgd" or any(":" in key for key in whole))
    for key, value in whole.items():
        np.testing.assert_array_equal(broken[key], value)


def test_the_default_is_momentum_as_it_always_was():
    """Bit for bit what the optimizer of a script gives that names both numbers."""
    one, other = make_parameters(), make_parameters()
    ours = NamedOptimizer(Config(), one)
    theirs = paddle.optimizer.Momentum(0.1, 0.9, parameters=list(other.values()), weight_decay=5e-4)
    for step in range(3):
        gradients = step_with(ours, one, 0.1, step)
        for name, tensor in other.items():
            tensor.grad = paddle.to_tensor(gradients[name])
        theirs.step()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor.numpy(), other[name].numpy())


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"optimizer": "adamw", "momentum": 0.8}, "momentum is 0.8, which optimizer 'adamw' does not take"),
        ({"optimizer": "sgd", "momentum": 0.8}, "momentum is 0.8, which optimizer 'sgd' does not take"),
        ({"optimizer": "lars", "momentum": 0.8}, None),
        ({"optimizer": "adamw", "momentum": 0.9}, None),
        ({"optimizer": paddle.optimizer.SGD, "weight_decay": 0.1}, "weight_decay is 0.1, which the function of opt"),
        ({"optimizer": "a:B", "decay_norms": False}, "decay_norms is False, which optimizer 'a:B' does not take"),
        ({"optimizer": "a:B", "weight_decay": 0.1}, None),
    ],
)
def test_settings_that_an_optimizer_does_not_have_are_named(settings, words):
    if words is None:
        Config(**settings).check()
        return
    with pytest.raises(ConfigError, match=words):
        Config(**settings).check()


def test_a_class_by_name_gets_the_settings_that_are_given():
    parameters = make_parameters()
    optimizer = NamedOptimizer(Config(optimizer="paddle.optimizer:Momentum", momentum=0.7), parameters)
    rows = optimizer.row_optimizer
    assert (rows.momentum, rows.l2) == (0.7, 0.0)
    plain = NamedOptimizer(Config(optimizer="paddle.optimizer:RMSProp", weight_decay=0.1), parameters)
    assert plain.kind == "RMSProp" and plain.row_optimizer is None
    with pytest.raises(ConfigError, match=r"optimizer 'paddle.optimizer:Momentun': .* did you mean 'Momentum'"):
        NamedOptimizer(Config(optimizer="paddle.optimizer:Momentun"), parameters)
    with pytest.raises(ConfigError, match=r"optimizer: got 'Adan' \(str\); did you mean 'adamw'\? accepted: momentum"):
        Config(optimizer="Adan")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_each_name_trains_and_resumes_bit_for_bit(name, entry, tmp_path):
    """Backbone and sharded head, a sampled one too, from flags as from setters."""
    entry.set_optimizer(name)
    entry.set_weight_decay(0.01, norms=False)
    entry.set_with_test(False)
    entry.set_lr({"lars": 500.0, "adamw": 0.5, "lion": 0.1}.get(name, 1.0))
    entry.set_sample_ratio(0.5)
    entry.set_backbone_lr_factor(0.5)
    entry.set_head_lr_factor(2.0)
    entry.set_train_epochs(3)
    entry.train()
    whole = Checkpoint(entry.model_save_dir)
    entry.set_model_save_dir(tmp_path / "broken")
    entry.set_train_epochs(1)
    entry.train()
    entry.set_train_epochs(3)
    entry.set_auto_resume(True)
    entry.train()
    assert_equal(contents(entry.model_save_dir), contents(whole.path))
    first = Checkpoint(tmp_path / "broken" / "0")
    assert np.abs(first.read("head.weight") - whole.read("head.weight")).max() > 1e-4


def test_factors_multiply_the_learning_rates_of_backbone_and_head(entry):
    """SGD without decay: one step moves in proportion to the factor."""

    def moved(**factors):
        entry.config.assign(optimizer="sgd", weight_decay=0.0, head_lr_factor=1.0, backbone_lr_factor=1.0)
        entry.config.assign(train_steps=1, train_epochs=None, with_test=False, **factors)
        trainer = Trainer(entry.config.model_copy())
        tensors = {"head": trainer.head.parameters["weight"], "backbone": trainer.backbone.parameters()[0]}
        before = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
        trainer.train_step(next(trainer.loader.epoch(0)))
        return {name: tensor.numpy() - before[name] for name, tensor in tensors.items()}

    plain, changed = moved(), moved(head_lr_factor=4.0, backbone_lr_factor=0.25)
    np.testing.assert_allclose(changed["head"], 4.0 * plain["head"], rtol=1e-3, atol=2e-8)
    np.testing.assert_allclose(changed["backbone"], 0.25 * plain["backbone"], rtol=1e-2, atol=2e-8)
    assert min(np.abs(value).max() for value in plain.values()) > 1e-5


def test_a_file_and_flags_give_all_that_a_script_gives(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "optimizer: lars\nmomentum: 0.8\nweight_decay: 1e-4\ndecay_norms: off\nlr_schedule: poly\nlr_power: 1\n"
        "warmup_epochs: 2\nlr_epochs: 3,5\nhead_lr_factor: 10\nfrozen: [body.0.*, body.1.*]\nclass_change: grow\n"
    )
    flags = {"optimizer": "Lion", "warmup_steps": "9", "backbone_lr_factor": "0.1", "frozen": "conv*,fc.bias"}
    found = make_entry(merge_settings(Config, tmp_path / "run.yaml", flags=flags)).config
    entry = Entry()
    entry.set_optimizer("lion")
    entry.set_momentum(0.8)
    entry.set_weight_decay(1e-4, norms=False)
    entry.set_lr("polynomial")
    entry.set_lr_power(1.0)
    entry.set_warmup_steps(9)
    entry.set_lr_epochs([3, 5])
    entry.set_head_lr_factor(10.0)
    entry.set_backbone_lr_factor(0.1)
    entry.set_frozen("conv*", "fc.bias")
    entry.set_class_change("grow")
    assert found.model_dump() == entry.config.model_dump()
    entry.set_weight_decay(0.5)
    assert not entry.decay_norms, "what is not given stays"
