"""What a backbone costs, counted in its graph, and measured where it runs."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn

from plsc import BaseModel, ConfigError
from plsc.models.complexity import measure, measure_backbone
from tests._support import backbones
from tests._support.memory import kept_bytes


class Products(BaseModel):
    """One of each kind of product, of sizes that are told apart."""

    def __init__(self):
        super().__init__(emb_dim=5)
        self.conv = nn.Conv2D(3, 8, 3, stride=2, padding=1)  # 4 x 4 pixels: 16 * 8 * 27
        self.depthwise = nn.Conv2D(8, 8, 3, padding=1, groups=8, bias_attr=False)  # 16 * 8 * 9
        self.wider = nn.Conv2DTranspose(8, 2, 2, stride=2)  # from 16 pixels: 16 * 8 * 2 * 4
        self.norm = nn.BatchNorm2D(2)
        self.fc = nn.Linear(128, 5)  # 128 * 5

    def forward(self, images):
        x = self.norm(self.wider(self.depthwise(self.conv(images))))
        rows = x.reshape([-1, 2, 64])
        scores = paddle.matmul(rows, rows, transpose_y=True)  # 2 * 2 * 64
        mixed = paddle.bmm(paddle.matmul(scores, scores, transpose_x=True), rows)  # 2 * 2 * 2 + 2 * 64 * 2
        return self.fc(mixed.flatten(1))


def test_products_and_parameters_are_counted():
    found = measure(Products, "Products", (3, 8, 8))
    assert (
        found.multiply_adds == 16 * 8 * 27 + 16 * 8 * 9 + 16 * 8 * 2 * 4 + 2 * 2 * 64 + 2 * 2 * 2 + 2 * 64 * 2 + 128 * 5
    )
    assert found.parameters == (3 * 8 * 9 + 8) + 8 * 9 + (8 * 2 * 4 + 2) + (2 + 2) + (128 * 5 + 5)


@pytest.mark.parametrize("family", backbones.FAMILIES)
def test_the_memory_per_image_is_what_training_keeps(family):
    network, image_shape = backbones.make(family)
    network.train()
    images = paddle.rand([64, *image_shape])
    found = measure(lambda: backbones.make(family)[0], family, image_shape).image_bytes
    assert found == pytest.approx(kept_bytes(network, images) / 64, rel=0.1)


def test_measuring_leaves_eager_execution_and_names_as_they_were():
    before = nn.Linear(2, 2)
    measure_backbone("ResNetTiny", emb_dim=8, image_shape=(3, 16, 16))
    assert paddle.in_dynamic_mode()
    after = nn.Linear(2, 2)
    number = [int(layer.weight.name.split("_")[1].split(".")[0]) for layer in (before, after)]
    assert number[1] == number[0] + 1
    assert paddle.rand([2]).numpy().shape == (2,)


class Branching(BaseModel):
    def __init__(self):
        super().__init__(4)
        self.fc = nn.Linear(3 * 8 * 8, 4)

    def forward(self, images):
        if images.mean().item() > 0:
            images = -images
        return self.fc(images.flatten(1))


def test_a_network_that_cannot_be_traced_is_named():
    with pytest.raises(ConfigError, match=r"backbone 'mine' cannot be traced with images \[1, 3, 8, 8\]: "):
        measure(Branching, "mine", (3, 8, 8))
    assert paddle.in_dynamic_mode()
