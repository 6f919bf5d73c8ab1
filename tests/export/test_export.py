"""Every format computes what the eager network does; what cannot be exported is refused with a reason."""

from __future__ import annotations

import logging
import os

import numpy as np
import paddle
import pytest
from paddle import nn

import plsc
from plsc import ExportError, load_inference_model
from plsc.data.sources.synthetic import SyntheticRecords
from plsc.export.export import export_backbone
from plsc.inference.predictor import Predictor
from plsc.models.base_model import BaseModel
from tests._support.exporting import IMAGES, Attention, eager, network, settings, unit


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


@pytest.mark.parametrize(
    "values, message",
    [
        ({"formats": ("torch",)}, "format: got 'torch', expected any of paddle, legacy, serving, onnx"),
        ({"bake": ("resize",)}, "bake: got 'resize', expected any of preprocess, normalize"),
        ({"bgr": True}, "bgr says how baked pre-processing takes pixels"),
    ],
)
def test_unknown_formats_and_parts_are_refused(tmp_path, values, message):
    with pytest.raises(ExportError, match=message):
        export_backbone(network(), settings(), directory=tmp_path / "m", **values)


def test_export_compares_on_the_data_set_or_says_that_it_could_not(entry, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = settings()
    export_backbone(network(), config, directory=tmp_path / "m")
    assert "no image found to compare the export on" in caplog.text
    for name, value in (("train_dataset", SyntheticRecords(3, 9, image_size=16)), ("dataset_dir", entry.dataset_dir)):
        config = settings()
        config.assign(**{name: value})
        export_backbone(network(), config, directory=tmp_path / "m")
        assert "real images" in caplog.records[-1].getMessage()


def test_a_network_that_fused_kernels_compute_wrongly_is_served_by_plain_ones(tmp_path, caplog):
    paddle.seed(0)
    net = Attention()
    export_backbone(net, settings(flip=False), directory=tmp_path / "m", images=IMAGES)
    assert "format 'paddle, fused' differs" in caplog.text and "served by plain kernels" in caplog.text
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5
    with pytest.raises(ExportError, match="format 'serving' differs .* Export without this format"):
        export_backbone(net, settings(), directory=tmp_path / "m", formats=("serving",), images=IMAGES)


def test_a_layer_that_fused_kernels_cannot_run(tmp_path):
    paddle.seed(0)
    net = nn.Sequential(
        nn.Conv2D(3, 8, 3, 2), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(8, 16)
    )
    export_backbone(net, settings(flip=False), directory=tmp_path / "m", images=IMAGES)
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5


def test_export_replaces_an_earlier_export(entry):
    entry.train()
    folder = entry.convert_for_prediction()
    assert entry.convert_for_prediction() == folder
    assert plsc.load_inference_model(folder).emb_dim == 16


def test_export_never_touches_a_folder_that_is_not_ours(entry, tmp_path):
    entry.train()
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("...")
    with pytest.raises(ExportError, match="is not empty and holds no exported model.*nothing was written"):
        entry.convert_for_prediction(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(ExportError):
        entry.convert_for_prediction(entry.model_save_dir)


def test_every_format_in_a_folder_whose_name_is_no_utf8(tmp_path, onnxruntime):
    folder = tmp_path / os.fsdecode("模型".encode("gbk"))
    net = network()
    export_backbone(net, settings(), directory=folder, formats=("onnx", "legacy", "serving"), images=IMAGES)
    for file in ("onnx/model.onnx", "legacy/model.pdmodel", "serving/serving_server/model.pdmodel"):
        assert (folder / file).is_file()
    both = eager(net, np.stack(IMAGES)) + eager(net, np.stack(IMAGES)[:, :, ::-1])
    assert np.abs(load_inference_model(folder).embed(IMAGES) - unit(both)).max() < 1e-5
