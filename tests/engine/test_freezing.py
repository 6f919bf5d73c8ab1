"""Frozen parameters and running statistics: they stay, take no state, and resume exactly."""

from __future__ import annotations

import os

import numpy as np
import paddle
import pytest

from plsc import ConfigError, Entry
from plsc.checkpoint import Checkpoint
from plsc.engine.freezing import freeze, frozen_names
from plsc.engine.trainer import Trainer
from plsc.models.tiny import ResNetTiny
from tests._support.checkpoints import assert_equal, contents
from tests.engine.test_trainer import assert_close, train


def network():
    paddle.seed(1)
    return ResNetTiny(16, (3, 16, 16))


def tensors_of(backbone):
    return {name: tensor.numpy().copy() for name, tensor in backbone.state_dict().items()}


FIRST = sorted({name.split(".")[0] for name in network().state_dict()})


@pytest.fixture
def frozen_part():
    """A pattern of a part with batch normalization, and the names that match it."""
    names = list(network().state_dict())
    layer = next(name for name in names if "_mean" in name).rpartition(".")[0]
    part = layer.rpartition(".")[0] or layer
    return f"{part}.*", {name for name in names if name.startswith(f"{part}.")}


def test_what_matches_stays_and_the_rest_moves(entry, frozen_part):
    pattern, names = frozen_part
    entry.set_frozen(pattern)
    entry.set_lr(5.0)
    trainer = Trainer(entry.config)
    before = tensors_of(trainer.backbone)
    trainer.train()
    after = tensors_of(trainer.backbone)
    assert frozen_names(trainer.backbone) == names
    assert any("_mean" in name for name in names) and any("weight" in name for name in names)
    for name in after:
        assert np.array_equal(after[name], before[name]) == (name in names), name
    assert not names & {name.rpartition(":")[0] for name in trainer.optimizer.state()}
    state = Checkpoint(entry.model_save_dir).names("optimizer.")
    assert state and not any(name.split(".", 1)[1].rpartition(":")[0] in names for name in state)


def test_slopes_behind_frozen_layers_are_trained():
    """In a process of its own: Paddle's kernel ends it where the slopes alone of a PReLU have a gradient."""
    paddle.seed(2)
    layers = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.PReLU(4), paddle.nn.Conv2D(4, 2, 3))
    images = paddle.randn([2, 3, 8, 8])

    def gradients(patterns):
        trained = freeze(layers, patterns)
        layers(images).square().sum().backward()
        found = {name: tensor.grad.numpy() for name, tensor in trained.items()}
        layers.clear_gradients()
        return found

    child = os.fork()
    if not child:
        status = 1
        try:
            every, some = gradients([]), gradients(["0.*"])
            assert set(some) == {"1._weight", "2.weight", "2.bias"}
            for name, values in some.items():
                np.testing.assert_array_equal(values, every[name])
            gradients([])
            assert not layers[1]._forward_pre_hooks
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_running_statistics_follow_their_own_names(entry):
    """Weights alone are frozen: the statistics of their layers move."""
    entry.set_frozen("*.weight")
    trainer = Trainer(entry.config)
    before = tensors_of(trainer.backbone)
    trainer.train()
    after = tensors_of(trainer.backbone)
    moved = {name for name in after if not np.array_equal(after[name], before[name])}
    assert not any(name.endswith(".weight") for name in moved)
    assert {name for name in after if name.endswith("_mean")} <= moved


def test_all_of_the_backbone_may_be_frozen(entry):
    entry.set_frozen("*")
    trainer = Trainer(entry.config)
    before, centers = tensors_of(trainer.backbone), trainer.head.parameters["weight"].numpy().copy()
    trainer.train()
    for name, value in tensors_of(trainer.backbone).items():
        np.testing.assert_array_equal(value, before[name])
    assert not np.array_equal(trainer.head.parameters["weight"].numpy(), centers)
    assert not trainer.optimizer.state()


def test_a_network_object_is_free_again_in_the_next_run():
    backbone = network()
    trained = [name for name, tensor in backbone.named_parameters() if not tensor.stop_gradient]
    freeze(backbone, ["*"])
    assert all(tensor.stop_gradient for tensor in backbone.parameters())
    images = paddle.rand([4, 3, 16, 16])
    backbone.train()
    before = tensors_of(backbone)
    backbone(images)
    assert all(np.array_equal(value, before[name]) for name, value in tensors_of(backbone).items())
    freeze(backbone, [])
    assert [name for name, tensor in backbone.named_parameters() if not tensor.stop_gradient] == trained
    assert frozen_names(backbone) == frozenset()
    backbone(images)
    moved = {name for name, value in tensors_of(backbone).items() if not np.array_equal(value, before[name])}
    assert moved and all("_mean" in name or "_variance" in name for name in moved)


def test_a_pattern_that_matches_nothing_is_an_error_with_what_is_near():
    backbone = network()
    part = FIRST[0]
    with pytest.raises(ConfigError) as error:
        freeze(backbone, [f"{part}*", f"{part}x.*"])
    assert f"the pattern '{part}x.*' matches no parameter of the backbone; did you mean '{part}" in str(error.value)
    assert "its parameters begin with " in str(error.value)
    with pytest.raises(ConfigError, match=rf"leave out 'backbone\.': '{part}\*'"):
        freeze(backbone, [f"backbone.{part}*"])
    with pytest.raises(ConfigError, match=r"expected patterns one by one, as set_frozen\('conv1\.\*', "):
        Entry().set_frozen([f"{part}*"])
    assert frozen_names(backbone) == frozenset(), "nothing is frozen after an error"
    assert any(not tensor.stop_gradient for tensor in backbone.parameters())


def test_a_frozen_run_resumes_bit_for_bit_and_one_may_freeze_or_free_what_was_trained(entry, tmp_path, frozen_part):
    pattern, names = frozen_part
    entry.set_frozen(pattern)
    entry.set_with_test(False)
    entry.set_train_epochs(2)
    entry.train()
    whole = Checkpoint(entry.model_save_dir)
    entry.set_model_save_dir(tmp_path / "broken")
    entry.set_train_epochs(1)
    entry.train()
    entry.set_train_epochs(2)
    entry.set_auto_resume(True)
    entry.train()
    broken = Checkpoint(entry.model_save_dir)
    assert_equal(contents(broken.path), contents(whole.path))
    for number, patterns in enumerate([(), ("*",), (f"{FIRST[-1]}.*",)]):
        entry.set_auto_resume(False)
        entry.set_checkpoint_dir(broken.path)
        entry.set_model_save_dir(tmp_path / f"on{number}")
        entry.set_frozen(*patterns)
        entry.set_train_epochs(3)
        entry.train()
        after = Checkpoint(entry.model_save_dir)
        for name in names:
            is_same = np.array_equal(after.read(f"backbone.{name}"), broken.read(f"backbone.{name}"))
            assert is_same == any(frozen == "*" or name.startswith(frozen[:-1]) for frozen in patterns), name


@pytest.mark.slow
@pytest.mark.ranks
def test_frozen_statistics_are_not_rounded_by_an_average_over_three_ranks(tmp_path):
    before = train(3, tmp_path / "a", model="batch norm", train_epochs=1)
    settings = {"model": "batch norm", "checkpoint_dir": str(tmp_path / "a" / "output"), "train_epochs": 3}
    after = train(3, tmp_path / "b", frozen="*", **settings)
    frozen = [name for name in before if name.startswith("backbone.")]
    assert frozen
    assert_close({name: after[name] for name in frozen}, {name: before[name] for name in frozen}, 0.0)
    assert np.abs(after["head.weight"] - before["head.weight"]).max() > 1e-4
