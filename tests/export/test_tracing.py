"""Layers that the legacy representation cannot trace are named, with an expression that it can."""

from __future__ import annotations

import math
import re

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.jit.dy2static.program_translator import ProgramTranslator

from plsc import ExportError
from plsc.export.export import export_backbone
from plsc.export.tracing import INSTEAD, save_traced
from plsc.inference.predictor import Predictor
from plsc.models.base_model import BaseModel
from tests._support.exporting import IMAGES, eager, settings


class Gate(nn.Layer):
    """Has a sigmoid, which Paddle 3.3 cannot trace in the legacy representation."""

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
    """A network with a function of Paddle's, or with the expression that INSTEAD has for it."""

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
def test_the_expression_for_an_untraceable_function_computes_the_same(tmp_path, name):
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


def test_parameters_of_a_failed_trace_are_forgotten(tmp_path):
    # Paddle 3.3 keeps its parameters, and gives them to a program that comes to lie at the same address.
    spec = paddle.static.InputSpec([None, 8], "float32", "x")
    with pytest.raises(ExportError, match="paddle.sigmoid"):
        save_traced(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()), spec, prefix=tmp_path / "bad", legacy=True)
    assert not ProgramTranslator.get_instance()._params_recorder.params_dict
