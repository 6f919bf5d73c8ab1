"""Networks are checked before the export, and each format is compared with its network."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from plsc import ExportError
from plsc.errors import ConfigError
from plsc.export import checking
from plsc.export.export import export_backbone
from tests._support.exporting import IMAGES, SHAPE, Attention, Flat, network, settings


def test_a_network_that_rounds_in_float32_is_compared_in_float64():
    net, batch = network(), np.random.default_rng(0).uniform(-1, 1, [4, *SHAPE]).astype(np.float32)
    with paddle.no_grad():
        truth = net.to(dtype="float64")(paddle.to_tensor(batch.astype(np.float64))).numpy()
    net.to(dtype="float32")

    class Rough(nn.Layer):
        """In float32 off by 3e-5, in float64 exact."""

        def forward(self, images):
            return net(images) * (1 + 3e-5 * (images.dtype == paddle.float32))

        def to(self, dtype):
            net.to(dtype=dtype)
            return self

        def __deepcopy__(self, memo):
            return self

    def check(factor):
        net.to(dtype="float32")
        inputs = {"random": batch}
        expected = checking.run_eager(Rough(), inputs)
        checking.check_export(Rough(), {"x": lambda batch: truth * factor}, inputs=inputs, expected=expected)

    check(1)
    with pytest.raises(ExportError, match="expected 3e-05 at most"):
        check(1 - 5e-5)


def test_embeddings_of_nan_are_refused(tmp_path):
    net = network()
    net.head[1].bias.set_value(paddle.full([16], float("nan")))
    with pytest.raises(ExportError, match="ResNetTiny: an embedding of a random image holds nan; the network has"):
        export_backbone(net, settings(), directory=tmp_path / "m", images=IMAGES)


@pytest.mark.parametrize("function, found", [(lambda x: (x, x), "tuple"), (lambda x: x.unsqueeze(2), r"\[2, 16, 1\]")])
def test_a_network_that_returns_no_embeddings_is_refused(tmp_path, function, found):
    class Other(Flat):
        def build_network(self, input, label, is_train=True):
            return function(self.body(input))

    with pytest.raises(ConfigError, match=rf"Other returned {found} for 2 images, expected \[2, 16\]"):
        export_backbone(Other(), settings(), directory=tmp_path / "m", bake=("normalize",), images=IMAGES)


def test_a_network_that_fails_or_is_random_is_refused(tmp_path):
    class Two(Flat):
        def forward(self, images, others):
            return self.body(images) + others

    class Chance(Flat):
        def build_network(self, input, label, is_train=True):
            return F.dropout(self.body(input), 0.5)

    for net, message in (
        (Two(), r"Two: fails on images \[2, 3, 16, 16\].*'others'"),
        (Chance(), "Chance: gives another embedding of the same images each time"),
    ):
        with pytest.raises(ExportError, match=message):
            export_backbone(net, settings(), directory=tmp_path / "m", images=IMAGES)


def test_a_network_whose_forward_casts_to_float32_is_compared_in_float32(tmp_path):
    class Cast(Attention):
        def build_network(self, input, label, is_train=True):
            return super().build_network(input.astype("float32"), label)

    paddle.seed(0)
    export_backbone(Cast(), settings(), directory=tmp_path / "m", images=IMAGES)
