"""Checkpoints that do not fit the run that loads them."""

from __future__ import annotations

import pytest

from plsc import CheckpointError


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
