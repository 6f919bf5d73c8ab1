"""Which rank writes what of the head; checkpoints that do not fit the run that loads them."""

from __future__ import annotations

import paddle
import pytest

from plsc import CheckpointError
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
    with pytest.raises(
        CheckpointError, match=r"is plsc.models.tiny:ResNetTiny, this run's is plsc.models.resnet:.*'ResNetTiny'"
    ):
        entry.train()
