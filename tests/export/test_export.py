"""Every format of an export computes what the eager network does; what cannot be exported says why."""

from __future__ import annotations

import json
import logging

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc import ExportError, load_inference_model
from plsc.export import checking as export_check
from plsc.export.export import export_backbone
from plsc.export.formats.paddle_serving import Variable, model_config
from plsc.inference.model_card import ABOUT_FILE
from plsc.inference.paddle_serving_messages import GeneralModelConfig
from plsc.inference.predictor import Predictor
from plsc.models.base_model import BaseModel
from tests._support.exporting import IMAGES, SHAPE, eager, network, settings, unit


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


@pytest.mark.parametrize("make", [network, custom])
def test_all_formats_compute_what_the_network_does(tmp_path, onnxruntime, make):
    net, pixels = make(), np.stack(IMAGES)
    export_backbone(net, settings(), directory=tmp_path / "m", formats=("onnx", "legacy", "serving"), images=IMAGES)
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


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("bgr", [True, False])
def test_baked_networks_take_pixels_and_give_unit_embeddings(tmp_path, flip, bgr):
    net, pixels = network(), np.stack(IMAGES)
    statistics = {"mean": (100, 110, 120), "std": (60, 55, 50)}
    config = settings(flip=flip, pixel_mean=statistics["mean"], pixel_std=statistics["std"])
    export_backbone(
        net,
        config,
        directory=tmp_path / "m",
        formats=("legacy",),
        bake=("normalize", "preprocess"),
        bgr=bgr,
        images=IMAGES,
    )
    both = eager(net, pixels, **statistics) + (eager(net, pixels[:, :, ::-1], **statistics) if flip else 0)
    given = pixels[..., ::-1] if bgr else pixels
    for path in ("model.json", "legacy/model.pdmodel"):
        assert np.abs(Predictor(tmp_path / "m" / path).run(given) - unit(both)).max() < 1e-5
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - unit(both)).max() < 1e-5


@pytest.mark.parametrize("bake", [("normalize",), ("preprocess",)])
def test_what_is_baked_changes_no_embedding(tmp_path, bake):
    net = network()
    config = settings(pixel_mean=(100, 110, 120), pixel_std=(60, 55, 50))
    export_backbone(net, config, directory=tmp_path / "plain", images=IMAGES)
    export_backbone(net, config, directory=tmp_path / "baked", bake=bake, images=IMAGES)
    plain, baked = (load_inference_model(tmp_path / name).embed(IMAGES) for name in ("plain", "baked"))
    assert np.abs(plain - baked).max() < 1e-5


def test_a_network_that_differs_from_its_export_is_refused_and_the_old_export_stays(tmp_path, monkeypatch):
    net = network()
    export_backbone(net, settings(), directory=tmp_path / "m", images=IMAGES)
    before = (tmp_path / "m" / "model.json").stat().st_mtime_ns
    real = Predictor.run
    monkeypatch.setattr(Predictor, "run", lambda self, batch: real(self, batch) * np.float32(1.0001))
    with pytest.raises(
        ExportError,
        match=r"format 'paddle' differs from the network by .* expected 1e-05 at most; "
        r"nothing was put in place",
    ):
        export_backbone(net, settings(), directory=tmp_path / "m", images=IMAGES)
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
        inputs = {"random": batch}
        expected = export_check.run_eager(Rough(), inputs)
        export_check.check_export(Rough(), {"x": lambda batch: truth * factor}, inputs, expected)

    check(1)
    with pytest.raises(ExportError, match="expected 3e-05 at most"):
        check(1 - 5e-5)


def test_embeddings_that_are_not_numbers_are_refused(tmp_path):
    net = network()
    net.head[1].bias.set_value(paddle.full([16], float("nan")))
    with pytest.raises(ExportError, match="differs from the network by nan"):
        export_backbone(net, settings(), directory=tmp_path / "m", images=IMAGES)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"formats": ("torch",)}, "format: got 'torch', expected any of paddle, legacy, serving, onnx"),
        ({"bake": ("resize",)}, "bake: got 'resize', expected any of preprocess, normalize"),
        ({"bgr": True}, "bgr says how baked pre-processing takes pixels"),
    ],
)
def test_wrong_wishes(tmp_path, values, message):
    with pytest.raises(ExportError, match=message):
        export_backbone(network(), settings(), directory=tmp_path / "m", **values)


def test_export_compares_on_the_data_set_or_says_that_it_could_not(entry, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = settings()
    export_backbone(network(), config, directory=tmp_path / "m")
    assert "no image found to compare the export on" in caplog.text
    config.dataset_dir = entry.dataset_dir
    export_backbone(network(), config, directory=tmp_path / "m")
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
BYTES = b"\n\x0e\n\x01x\x12\x01x\x18\x00 \x01(\x03(p\x12\x1e\n\nfc_0.tmp_1\x12\tembedding\x18\x00 \x01(\x80\x04"


def test_serving_configuration_is_that_of_the_official_converter(tmp_path):
    export_backbone(network(), settings(), directory=tmp_path / "m", formats=("serving",), images=IMAGES)
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
