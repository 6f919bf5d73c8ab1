"""The format 'onnx': faults of paddle2onnx that are worked around, or reported as an error of PLSC."""

from __future__ import annotations

import paddle
import pytest
from paddle import nn

from plsc import ExportError
from plsc.export.export import export_backbone
from tests._support.exporting import IMAGES, Flat, settings


def test_the_slope_of_a_leaky_relu_is_read_correctly(tmp_path, onnxruntime):
    # paddle2onnx 2.1 gives it any slope.
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, 2), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(392, 16))
    export_backbone(net, settings(), directory=tmp_path / "m", formats=("onnx",), images=IMAGES)
    assert [path.name for path in (tmp_path / "m" / "onnx").iterdir()] == ["model.onnx"]


class Unknown(Flat):
    def build_network(self, input, label, is_train=True):
        return paddle.lgamma(self.body(input) ** 2 + 1)


def test_an_operator_unknown_to_the_converter_raises_export_error(tmp_path, onnxruntime):
    with pytest.raises(
        ExportError,
        match=r"Unknown: paddle2onnx cannot convert it: .*unsupported operators.*; export "
        r"without 'onnx'.* The network has .*lgamma",
    ):
        export_backbone(Unknown(), settings(), directory=tmp_path / "m", formats=("onnx",), images=IMAGES)
    assert not list(tmp_path.iterdir())
