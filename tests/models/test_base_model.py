"""The contract of a backbone, in the form of PLSC 0.x too, and what a network that breaks it is answered."""

from __future__ import annotations

import logging

import paddle
import pytest

import plsc
from plsc import ConfigError
from plsc.models.base_model import BaseModel


class LegacyNet(BaseModel):
    """A network in the form of the old API."""

    def __init__(self):
        super().__init__(emb_dim=16)
        self.fc = paddle.nn.Linear(3 * 16 * 16, 16)

    def build_network(self, input, label, is_train=True):
        return self.fc(input.flatten(1))


def test_a_legacy_network_trains_and_exports(entry):
    entry.set_model(LegacyNet())
    assert entry.train()["lfw/accuracy"] > 0.5
    model = plsc.load_inference_model(entry.convert_for_prediction())
    assert model.emb_dim == 16


class NoLayers(BaseModel):
    """As a static graph was built: layers made at each call."""

    def build_network(self, input, label, is_train=True):
        return paddle.nn.Linear(3 * 16 * 16, 16)(input.flatten(1))


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda: paddle.nn.Conv2D(3, 16, 1), r"Conv2D returned \[10, 16, 16, 16\] for 10 images, expected \[10, 16\]"),
        (lambda: NoLayers(), "has no parameters"),
    ],
)
def test_networks_that_break_the_contract(entry, model, words):
    entry.set_model(model())
    with pytest.raises(ConfigError, match=words):
        entry.train()


def test_a_wrong_embedding_size_names_both(entry):
    entry.set_model(LegacyNet())
    entry.set_emb_size(32)
    with pytest.raises(ConfigError, match=r"returned \[10, 16\] for 10 images, expected \[10, 32\]"):
        entry.train()


@pytest.mark.parametrize("batch_size, warns", [(1, True), (2, False)])
def test_a_batch_of_one_under_batch_normalization_is_warned_of(entry, caplog, batch_size, warns):
    entry.set_train_batch_size(batch_size)
    entry.set_train_steps(1)
    entry.set_with_test(False)
    with caplog.at_level(logging.WARNING):
        entry.train()
    message = "train_batch_size is 1, and 'head.2' of ResNetTiny normalizes each number over the batch"
    assert (message in caplog.text) == warns
