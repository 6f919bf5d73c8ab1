"""Networks that Paddle or the ONNX converter get wrong or cannot take: worked around, or told with what to do."""

from __future__ import annotations

import math
import re

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.jit.dy2static.program_translator import ProgramTranslator

from plsc import ExportError, load_inference_model
from plsc.errors import ConfigError
from plsc.export.export import export_backbone
from plsc.export.tracing import INSTEAD, save_traced
from plsc.inference.predictor import Predictor
from plsc.models.base_model import BaseModel
from tests._support.exporting import IMAGES, eager, settings, unit


def test_a_leaky_relu_behind_a_convolution(tmp_path):
    # Paddle 3.3 ends the process where it fuses the two.
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, 2), nn.BatchNorm2D(8), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(392, 16))
    net.eval()
    export_backbone(net, settings(flip=False), directory=tmp_path / "m", formats=("legacy",))
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5


def test_a_leaky_relu_in_onnx(tmp_path, onnxruntime):
    # paddle2onnx 2.1 gives it any slope.
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, 2), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(392, 16))
    export_backbone(net, settings(), directory=tmp_path / "m", formats=("onnx",), images=IMAGES)
    assert [path.name for path in (tmp_path / "m" / "onnx").iterdir()] == ["model.onnx"]


class Attention(BaseModel):
    """Paddle 3.3 multiplies the output of a convolution wrongly under oneDNN."""

    def __init__(self):
        super().__init__(16)
        self.stem, self.head = nn.Conv2D(3, 8, 3, 2), nn.Linear(8, 16)

    def build_network(self, input, label, is_train=True):
        x = self.stem(input)
        return self.head((x @ x.transpose([0, 1, 3, 2])).mean([2, 3]))


def test_a_network_that_fused_kernels_compute_wrongly_is_served_by_plain_ones(tmp_path, caplog):
    paddle.seed(0)
    net = Attention()
    export_backbone(net, settings(flip=False), directory=tmp_path / "m", images=IMAGES)
    assert "format 'paddle, fused' differs" in caplog.text and "served by plain kernels" in caplog.text
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5
    with pytest.raises(ExportError, match="format 'serving' differs .* Export without this format"):
        export_backbone(net, settings(), directory=tmp_path / "m", formats=("serving",), images=IMAGES)


class Gate(nn.Layer):
    """Its sigmoid is among what Paddle 3.3 cannot trace in the legacy representation."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return nn.functional.sigmoid(self.fc(x))


class Gated(BaseModel):
    def __init__(self):
        super().__init__(16)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 16))
        self.blocks = nn.Sequential(nn.ReLU(), Gate())

    def build_network(self, input, label, is_train=True):
        return self.blocks(self.body(input))


class Function(BaseModel):
    """A function of Paddle's amid a network, or what stands in for it in the legacy representation."""

    def __init__(self, name, instead):
        super().__init__(16)
        self.name, self.instead = name, instead
        self.stem, self.head = nn.Conv2D(3, 1, 1), nn.Linear(16 if name == "sum" else 256, 16)

    def build_network(self, input, label, is_train=True):
        x = self.stem(input).squeeze(1)
        x, y = x * x + 0.1 if "sqrt" in self.name else x, x * x
        text = INSTEAD[self.name]
        if self.instead:
            found = eval(text, {"x": x, "y": y, "axis": 1, "math": math, "F": F, "paddle": paddle})
        else:
            function = getattr(F, self.name, None) or getattr(paddle, self.name)
            found = function(x, *([y] if "y" in text else [1] if "axis" in text else []))
        return self.head(found.flatten(1))


# Paddle 3.2 traces these in the legacy representation; Paddle 3.3 does not.
TRACEABLE = {"tanh", "softplus", "gelu", "exp", "abs", "sum"} if paddle.__version__.startswith("3.2.") else set()


@pytest.mark.parametrize("name", INSTEAD)
def test_what_stands_in_for_an_untraceable_function_computes_the_same(tmp_path, name):
    paddle.seed(0)
    asked, advised = Function(name, False), Function(name, True)
    advised.set_state_dict(asked.state_dict())
    advice = rf"paddle\.{name} cannot be traced .* Write {re.escape(INSTEAD[name])} for it"
    if name in TRACEABLE:
        export_backbone(asked, settings(), directory=tmp_path / "asked", formats=("legacy",), images=IMAGES)
    else:
        with pytest.raises(ExportError, match=advice):
            export_backbone(asked, settings(), directory=tmp_path / "m", formats=("legacy",), images=IMAGES)
    export_backbone(advised, settings(), directory=tmp_path / "m", formats=("legacy",), images=IMAGES)
    pixels = np.stack(IMAGES)
    batch = (pixels.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 128.0
    found = Predictor(tmp_path / "m" / "legacy" / "model.pdmodel").run(batch)
    assert np.abs(found - eager(asked, pixels)).max() < 1e-5 * np.abs(found).max()


@pytest.mark.parametrize("bake", [(), ("normalize",)])
def test_a_layer_that_the_legacy_representation_cannot_trace_is_named(tmp_path, bake):
    export_backbone(Gated(), settings(), directory=tmp_path / "m", images=IMAGES)
    with pytest.raises(
        ExportError,
        match=r"layer 'blocks\.1' \(Gate\): paddle\.sigmoid cannot be traced .* without "
        r"'legacy' and 'serving'",
    ):
        export_backbone(Gated(), settings(), directory=tmp_path / "m2", formats=("serving",), bake=bake, images=IMAGES)
    assert not (tmp_path / "m2").exists() and [path.name for path in tmp_path.iterdir()] == ["m"]


class Unknown(BaseModel):
    def __init__(self):
        super().__init__(16)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 16))

    def build_network(self, input, label, is_train=True):
        return paddle.lgamma(self.body(input) ** 2 + 1)


def test_an_operator_unknown_to_the_onnx_converter_is_an_error_of_ours(tmp_path, onnxruntime):
    with pytest.raises(
        ExportError,
        match=r"Unknown: paddle2onnx cannot convert it: .*unsupported operators.*; export "
        r"without 'onnx'.* The network has .*lgamma",
    ):
        export_backbone(Unknown(), settings(), directory=tmp_path / "m", formats=("onnx",), images=IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function, found", [(lambda x: (x, x), "tuple"), (lambda x: x.unsqueeze(2), r"\[2, 16, 1\]")])
def test_a_network_that_gives_no_embeddings(tmp_path, function, found):
    class Other(Unknown):
        def build_network(self, input, label, is_train=True):
            return function(self.body(input))

    with pytest.raises(ConfigError, match=rf"Other returned {found} for 2 images, expected \[2, 16\]"):
        export_backbone(Other(), settings(), directory=tmp_path / "m", bake=("normalize",), images=IMAGES)


def test_a_network_that_fails_or_is_left_to_chance(tmp_path):
    class Two(Unknown):
        def forward(self, images, others):
            return self.body(images) + others

    class Chance(Unknown):
        def build_network(self, input, label, is_train=True):
            return F.dropout(self.body(input), 0.5)

    for net, message in (
        (Two(), r"Two: fails on images \[2, 3, 16, 16\].*'others'"),
        (Chance(), "Chance: gives another embedding of the same images each time"),
    ):
        with pytest.raises(ExportError, match=message):
            export_backbone(net, settings(), directory=tmp_path / "m", images=IMAGES)


def test_a_layer_that_fused_kernels_cannot_run(tmp_path):
    paddle.seed(0)
    net = nn.Sequential(
        nn.Conv2D(3, 8, 3, 2), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(8, 16)
    )
    export_backbone(net, settings(flip=False), directory=tmp_path / "m", images=IMAGES)
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5


def test_an_operator_that_the_legacy_predictor_does_not_know(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.RReLU())
    with pytest.raises(ExportError, match="format 'legacy' cannot be run on random images: .*rrelu"):
        export_backbone(net, settings(), directory=tmp_path / "m", formats=("legacy",), images=IMAGES)


def test_a_failed_trace_leaves_nothing_behind_for_the_next(tmp_path):
    # Paddle 3.3 keeps its parameters, and gives them to a program that comes to lie at the same address.
    spec = paddle.static.InputSpec([None, 8], "float32", "x")
    with pytest.raises(ExportError, match="paddle.sigmoid"):
        save_traced(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()), spec, prefix=tmp_path / "bad", legacy=True)
    assert not ProgramTranslator.get_instance()._params_recorder.params_dict


def test_a_network_that_says_float32_itself(tmp_path):
    class Cast(Attention):
        def build_network(self, input, label, is_train=True):
            return super().build_network(input.astype("float32"), label)

    paddle.seed(0)
    export_backbone(Cast(), settings(), directory=tmp_path / "m", images=IMAGES)
