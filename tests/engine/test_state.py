"""Which rank writes what of the head; checkpoints that do not fit the run that loads them."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from plsc import CheckpointError
from plsc.distributed.collectives import Collectives
from plsc.engine.checkpoint import save_checkpoint
from plsc.engine.state import head_parts
from plsc.losses import Head
from plsc.utils.ranges import Range


class Rows(Head):
    """A head of a row per class, and a whole tensor."""

    def __init__(self, start, stop):
        self._classes, self._parameters = Range(start, stop), {"weight": paddle.zeros([stop - start, 4])}

    classes = property(lambda self: self._classes)
    parameters = property(lambda self: self._parameters)

    def state(self):
        return {**self.parameters, "mean": paddle.zeros([1])}


@pytest.mark.parametrize(
    "head, is_main, written",
    [
        (Rows(0, 6), True, [("head.weight", 0), ("head.mean", None)]),
        (Rows(0, 6), False, []),  # replicated
        (Rows(0, 3), True, [("head.weight", 0), ("head.mean", None)]),
        (Rows(3, 6), False, [("head.weight", 3)]),
    ],
)
def test_each_rank_writes_its_shard_and_the_first_what_is_replicated(head, is_main, written):
    assert [(part.name, part.offset) for part in head_parts(head, is_main, num_classes=6)] == written


def test_checkpoint_of_another_embedding_size_or_class_number(entry):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    entry.set_class_num(7)
    with pytest.raises(CheckpointError, match=r"class number is 6, this run's is 7; set_class_num\(6\)"):
        entry.train()
    entry.set_class_num(6)
    entry.set_emb_size(8)
    with pytest.raises(CheckpointError, match=r"embedding size is 16, this run's is 8; set_emb_size\(16\)"):
        entry.train()


def test_checkpoint_of_another_loss_or_network(entry):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    entry.set_loss_type("dist_softmax")
    with pytest.raises(CheckpointError, match=r"trained with loss_type 'dist_arcface'.*no head bias"):
        entry.train()
    entry.set_loss_type("dist_arcface")
    entry.set_model_name("ResNet50")
    with pytest.raises(CheckpointError, match=r"its backbone \(ResNetTiny\) differs"):
        entry.train()


# What is not finite is neither written nor read


def break_checkpoint(folder, name, at):
    """Write NaN into a tensor of a checkpoint on disk."""
    file = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(file)
    tensors[name][at] = np.nan
    save_file(tensors, file)


@pytest.mark.parametrize(
    "name, at, said",
    [
        ("backbone.head.1.weight", (2, 3), "backbone.head.1.weight holds nan in row 2"),
        ("backbone.body.1._variance", (0,), "backbone.body.1._variance holds nan in row 0"),
        ("optimizer.head.1.weight:velocity", (2, 3), "optimizer.head.1.weight:velocity holds nan in row 2"),
        ("head.weight", (4, 1), "head.weight holds nan in row 4"),
        ("head.weight:velocity", (5, 0), "head.weight:velocity holds nan in row 5"),
    ],
)
def test_a_checkpoint_with_a_number_that_is_not_finite_is_not_resumed(entry, tmp_path, name, at, said):
    entry.set_with_test(False)
    entry.train()
    break_checkpoint(tmp_path / "output" / "0", name, at)
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    with pytest.raises(CheckpointError, match=rf"output/0: {said}, expected finite numbers; use an earlier checkpoint"):
        entry.train()


@pytest.mark.parametrize("use", [lambda entry: entry.test(), lambda entry: entry.convert_for_prediction()])
def test_a_network_that_is_not_finite_is_neither_verified_nor_exported(entry, tmp_path, use):
    """ReLU hides the NaN of the first layer: every image would have the same embedding."""
    entry.train()
    break_checkpoint(tmp_path / "output" / "0", "backbone.body.1._mean", (0,))
    with pytest.raises(CheckpointError, match=r"backbone.body.1._mean holds nan in row 0"):
        use(entry)


class Half(Rows):
    def __init__(self):
        super().__init__(0, 6)
        velocity = paddle.ones([6, 4], "bfloat16")
        velocity[3, 1] = float("inf")
        self.velocity = velocity

    def state(self):
        return {**self.parameters, "weight:velocity": self.velocity}

    def has_row_per_class(self, name):
        return True


def test_bfloat16_is_checked_before_it_is_saved(tmp_path):
    parts = head_parts(Half(), True, num_classes=6)
    with pytest.raises(CheckpointError, match=r"head.weight:velocity holds inf in row 3"):
        save_checkpoint(tmp_path, "0", parts=parts, about={}, collectives=Collectives())
    assert not list(tmp_path.iterdir())
