"""Every format of an export computes what the eager network does; what cannot be exported says why."""

from __future__ import annotations

import json
import logging
import math
import re

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import make_images
from paddle import nn
from paddle.jit.dy2static.program_translator import ProgramTranslator

from plsc import ExportError, load_inference_model
from plsc.config import Config
from plsc.engine import export_check
from plsc.engine.export import export_backbone
from plsc.engine.tracing import INSTEAD, save_traced
from plsc.errors import ConfigError
from plsc.models.base_model import BaseModel
from plsc.models.resnet import ResNetTiny
from plsc.serving.description import ABOUT_FILE
from plsc.serving.messages import GeneralModelConfig
from plsc.serving.paddle_serving import Variable, model_config
from plsc.serving.predictor import Predictor

SHAPE = (3, 16, 16)
IMAGES = list(make_images()[0][:4])


def settings(**values):
    return Config(image_shape=SHAPE, emb_dim=16, dataset_dir="/no/such/folder", **values)


def network():
    paddle.seed(0)
    made = ResNetTiny(16, SHAPE)
    made.train()
    made(paddle.rand([32, *SHAPE]) * 2 - 1)  # gives batch normalisation statistics that matter
    made.eval()
    return made


class Custom(BaseModel):
    """A user's own network, of what the legacy representation takes."""

    def __init__(self):
        super().__init__(16)
        self.stem = nn.Sequential(nn.Conv2D(3, 8, 3, 2, 1), nn.BatchNorm2D(8), nn.PReLU(8))
        self.scale = self.create_parameter([1, 8, 1, 1], default_initializer=nn.initializer.Constant(0.5))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2D(2), nn.Flatten(), nn.Linear(32, 16), nn.LayerNorm(16))

    def build_network(self, input, label, is_train=True):
        x = self.stem(input)
        return self.head(x * self.scale + x / 2)


def custom():
    paddle.seed(0)
    return Custom()


def eager(net, pixels, mean=127.5, std=128.0):
    """[N, H, W, 3] uint8 RGB -> [N, D], as the export's maths is documented."""
    batch = ((pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
    with paddle.no_grad():
        return net(paddle.to_tensor(batch)).numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def onnxruntime():
    pytest.importorskip("paddle2onnx", reason="plsc[onnx] is not installed")
    return pytest.importorskip("onnxruntime", reason="plsc[onnx] is not installed")


@pytest.mark.parametrize("make", [network, custom])
def test_all_formats_compute_what_the_network_does(tmp_path, onnxruntime, make):
    net, pixels = make(), np.stack(IMAGES)
    export_backbone(net, settings(), tmp_path / "m", formats=("onnx", "legacy", "serving"), images=IMAGES)
    batch = (pixels.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 128.0
    expected = eager(net, pixels)
    session = onnxruntime.InferenceSession(str(tmp_path / "m/onnx/model.onnx"))
    assert list(session.get_inputs()[0].shape) == ["batch", 3, 16, 16]
    assert session.get_outputs()[0].shape[0] == "batch"
    found = {"onnx": session.run(None, {session.get_inputs()[0].name: batch})[0]}
    for path in ("model.json", "legacy/model.pdmodel", "serving/serving_server/model.pdmodel"):
        predictor = Predictor(tmp_path / "m" / path)
        found[path] = predictor.run(batch)
        assert predictor.run(batch[:1]).shape == (1, 16)
    for name, embeddings in found.items():
        assert np.abs(embeddings - expected).max() < 1e-5 * np.abs(expected).max(), name


def test_a_leaky_relu_behind_a_convolution(tmp_path):
    # Paddle 3.3 ends the process where it fuses the two.
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, 2), nn.BatchNorm2D(8), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(392, 16))
    net.eval()
    export_backbone(net, settings(flip=False), tmp_path / "m", formats=("legacy",))
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5


def test_a_leaky_relu_in_onnx(tmp_path, onnxruntime):
    # paddle2onnx 2.1 gives it any slope.
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, 2), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(392, 16))
    export_backbone(net, settings(), tmp_path / "m", formats=("onnx",), images=IMAGES)
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
    export_backbone(net, settings(flip=False), tmp_path / "m", images=IMAGES)
    assert "format 'paddle, fused' differs" in caplog.text and "served by plain kernels" in caplog.text
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5
    with pytest.raises(ExportError, match="format 'serving' differs .* Export without this format"):
        export_backbone(net, settings(), tmp_path / "m", formats=("serving",), images=IMAGES)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("bgr", [True, False])
def test_baked_networks_take_pixels_and_give_unit_embeddings(tmp_path, flip, bgr):
    net, pixels = network(), np.stack(IMAGES)
    statistics = {"mean": (100, 110, 120), "std": (60, 55, 50)}
    config = settings(flip=flip, pixel_mean=statistics["mean"], pixel_std=statistics["std"])
    export_backbone(net, config, tmp_path / "m", formats=("legacy",), bake=("normalise", "preprocess"), bgr=bgr,
                    images=IMAGES)
    both = eager(net, pixels, **statistics) + (eager(net, pixels[:, :, ::-1], **statistics) if flip else 0)
    given = pixels[..., ::-1] if bgr else pixels
    for path in ("model.json", "legacy/model.pdmodel"):
        assert np.abs(Predictor(tmp_path / "m" / path).run(given) - unit(both)).max() < 1e-5
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - unit(both)).max() < 1e-5


@pytest.mark.parametrize("bake", [("normalise",), ("preprocess",)])
def test_what_is_baked_changes_no_embedding(tmp_path, bake):
    net = network()
    config = settings(pixel_mean=(100, 110, 120), pixel_std=(60, 55, 50))
    export_backbone(net, config, tmp_path / "plain", images=IMAGES)
    export_backbone(net, config, tmp_path / "baked", bake=bake, images=IMAGES)
    plain, baked = (load_inference_model(tmp_path / name).embed(IMAGES) for name in ("plain", "baked"))
    assert np.abs(plain - baked).max() < 1e-5


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


@pytest.mark.parametrize("name", INSTEAD)
def test_what_stands_in_for_an_untraceable_function_computes_the_same(tmp_path, name):
    paddle.seed(0)
    asked, advised = Function(name, False), Function(name, True)
    advised.set_state_dict(asked.state_dict())
    advice = rf"paddle\.{name} cannot be traced .* Write {re.escape(INSTEAD[name])} for it"
    with pytest.raises(ExportError, match=advice):
        export_backbone(asked, settings(), tmp_path / "m", formats=("legacy",), images=IMAGES)
    export_backbone(advised, settings(), tmp_path / "m", formats=("legacy",), images=IMAGES)
    pixels = np.stack(IMAGES)
    batch = (pixels.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 128.0
    found = Predictor(tmp_path / "m" / "legacy" / "model.pdmodel").run(batch)
    assert np.abs(found - eager(asked, pixels)).max() < 1e-5 * np.abs(found).max()


@pytest.mark.parametrize("bake", [(), ("normalise",)])
def test_a_layer_that_the_legacy_representation_cannot_trace_is_named(tmp_path, bake):
    export_backbone(Gated(), settings(), tmp_path / "m", images=IMAGES)
    with pytest.raises(ExportError, match=r"layer 'blocks\.1' \(Gate\): paddle\.sigmoid cannot be traced .* without "
                                          r"'legacy' and 'serving'"):
        export_backbone(Gated(), settings(), tmp_path / "m2", formats=("serving",), bake=bake, images=IMAGES)
    assert not (tmp_path / "m2").exists() and [path.name for path in tmp_path.iterdir()] == ["m"]


class Unknown(BaseModel):
    def __init__(self):
        super().__init__(16)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 16))

    def build_network(self, input, label, is_train=True):
        return paddle.lgamma(self.body(input) ** 2 + 1)


def test_an_operator_unknown_to_the_onnx_converter_is_an_error_of_ours(tmp_path, onnxruntime):
    with pytest.raises(ExportError, match=r"Unknown: paddle2onnx cannot convert it: .*unsupported operators.*; export "
                                          r"without 'onnx'.* The network has .*lgamma"):
        export_backbone(Unknown(), settings(), tmp_path / "m", formats=("onnx",), images=IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function, found", [(lambda x: (x, x), "tuple"), (lambda x: x.unsqueeze(2), r"\[2, 16, 1\]")])
def test_a_network_that_gives_no_embeddings(tmp_path, function, found):
    class Other(Unknown):
        def build_network(self, input, label, is_train=True):
            return function(self.body(input))

    with pytest.raises(ConfigError, match=rf"Other returned {found} for 2 images, expected \[2, 16\]"):
        export_backbone(Other(), settings(), tmp_path / "m", bake=("normalise",), images=IMAGES)


def test_a_network_that_fails_or_is_left_to_chance(tmp_path):
    class Two(Unknown):
        def forward(self, images, others):
            return self.body(images) + others

    class Chance(Unknown):
        def build_network(self, input, label, is_train=True):
            return F.dropout(self.body(input), 0.5)

    for net, message in ((Two(), r"Two: fails on images \[2, 3, 16, 16\].*'others'"),
                         (Chance(), "Chance: gives another embedding of the same images each time")):
        with pytest.raises(ExportError, match=message):
            export_backbone(net, settings(), tmp_path / "m", images=IMAGES)


def test_a_layer_that_fused_kernels_cannot_run(tmp_path):
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, 2), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2D(1), nn.Flatten(),
                        nn.Linear(8, 16))
    export_backbone(net, settings(flip=False), tmp_path / "m", images=IMAGES)
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5


def test_an_operator_that_the_legacy_predictor_does_not_know(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.RReLU())
    with pytest.raises(ExportError, match="format 'legacy' cannot be run on random images: .*rrelu"):
        export_backbone(net, settings(), tmp_path / "m", formats=("legacy",), images=IMAGES)


def test_a_failed_trace_leaves_nothing_behind_for_the_next(tmp_path):
    # Paddle 3.3 keeps its parameters, and gives them to a program that comes to lie at the same address.
    spec = paddle.static.InputSpec([None, 8], "float32", "x")
    with pytest.raises(ExportError, match="paddle.tanh"):
        save_traced(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), spec, tmp_path / "bad", legacy=True)
    assert not ProgramTranslator.get_instance()._params_recorder.params_dict


def test_a_network_that_says_float32_itself(tmp_path):
    class Cast(Attention):
        def build_network(self, input, label, is_train=True):
            return super().build_network(input.astype("float32"), label)

    paddle.seed(0)
    export_backbone(Cast(), settings(), tmp_path / "m", images=IMAGES)


def test_a_network_that_differs_from_its_export_is_refused_and_the_old_export_stays(tmp_path, monkeypatch):
    net = network()
    export_backbone(net, settings(), tmp_path / "m", images=IMAGES)
    before = (tmp_path / "m" / "model.json").stat().st_mtime_ns
    real = Predictor.run
    monkeypatch.setattr(Predictor, "run", lambda self, batch: real(self, batch) * np.float32(1.0001))
    with pytest.raises(ExportError, match=r"format 'paddle' differs from the network by .* expected 1e-05 at most; "
                                          r"nothing was put in place"):
        export_backbone(net, settings(), tmp_path / "m", images=IMAGES)
    assert (tmp_path / "m" / "model.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_network_that_float32_rounds_is_judged_in_float64():
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
        export_check.check_export(Rough(), {"x": lambda batch: (truth * factor)}, {"random": batch})

    check(1)
    with pytest.raises(ExportError, match="expected 3e-05 at most"):
        check(1 - 5e-5)


def test_embeddings_that_are_not_numbers_are_refused(tmp_path):
    net = network()
    net.head[1].bias.set_value(paddle.full([16], float("nan")))
    with pytest.raises(ExportError, match="differs from the network by nan"):
        export_backbone(net, settings(), tmp_path / "m", images=IMAGES)


@pytest.mark.parametrize("values, message", [
    ({"formats": ("torch",)}, "format: got 'torch', expected any of paddle, legacy, serving, onnx"),
    ({"bake": ("resize",)}, "bake: got 'resize', expected any of preprocess, normalise"),
    ({"bgr": True}, "bgr says how baked pre-processing takes pixels"),
])
def test_wrong_wishes(tmp_path, values, message):
    with pytest.raises(ExportError, match=message):
        export_backbone(network(), settings(), tmp_path / "m", **values)


def test_export_compares_on_the_data_set_or_says_that_it_could_not(entry, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = settings()
    export_backbone(network(), config, tmp_path / "m")
    assert "no image found to compare the export on" in caplog.text
    config.dataset_dir = entry.dataset_dir
    export_backbone(network(), config, tmp_path / "m")
    assert "real images" in caplog.records[-1].getMessage()


# Paddle Serving's configuration

FEED, FETCH = Variable("x", "x", "float32", (3, None, -1, 112)), Variable("fc_0.tmp_1", "embedding", "float32", (512,))
TEXT = """feed_var {
  name: "x"
  alias_name: "x"
  is_lod_tensor: false
  feed_type: 1
  shape: 3
  shape: 112
}
fetch_var {
  name: "fc_0.tmp_1"
  alias_name: "embedding"
  is_lod_tensor: false
  fetch_type: 1
  shape: 512
}
"""
BYTES = (b"\n\x0e\n\x01x\x12\x01x\x18\x00 \x01(\x03(p"
         b"\x12\x1e\n\nfc_0.tmp_1\x12\tembedding\x18\x00 \x01(\x80\x04")


def test_serving_configuration_is_that_of_the_official_converter(tmp_path):
    export_backbone(network(), settings(), tmp_path / "m", formats=("serving",), images=IMAGES)
    folder = tmp_path / "m" / "serving"
    server, client = folder / "serving_server", folder / "serving_client"
    text = (server / "serving_server_conf.prototxt").read_text()
    assert (client / "serving_client_conf.prototxt").read_text() == text
    stream = (server / "serving_server_conf.stream.prototxt").read_bytes()
    assert (client / "serving_client_conf.stream.prototxt").read_bytes() == stream
    config = GeneralModelConfig.FromString(stream)
    predictor = Predictor(server / "model.pdmodel")
    assert config.feed_var[0].name == config.feed_var[0].alias_name == predictor.input_name
    assert config.fetch_var[0].name == predictor.output_name and config.fetch_var[0].alias_name == "embedding"
    assert list(config.feed_var[0].shape) == [3, 16, 16] and list(config.fetch_var[0].shape) == [16]
    assert json.loads((folder / ABOUT_FILE).read_text())["emb_dim"] == 16


def test_text_and_bytes_of_a_serving_configuration():
    from google.protobuf import text_format

    config = model_config([FEED], [FETCH])
    assert text_format.MessageToString(config) == TEXT
    assert config.SerializeToString() == BYTES


def test_an_element_type_unknown_to_paddle_serving_is_named():
    with pytest.raises(ExportError, match="'x' is bfloat16, which Paddle Serving has no number for"):
        model_config([Variable("x", "x", "bfloat16", (3,))], [])
