"""All ways from an image to its embedding agree, also where the embedding is zero."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc import DataError, load_inference_model
from plsc.distributed.topology import Topology
from plsc.engine import evaluator
from plsc.export.baking import BakedNetwork
from plsc.export.export import export_backbone
from plsc.inference.embedding import EmbeddingPath, to_unit_length
from plsc.inference.predictor import Predictor
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.reference import as_directions
from plsc.metrics.embeddings import EPSILON
from plsc.metrics.embeddings import to_unit_length as metrics_unit_length
from plsc.metrics.verification import verification_report
from tests._support.exporting import EMB_DIM, IMAGES, SHAPE, Flat, eager, network, settings, unit
from tests._support.web_service import load_operator, write_service

FORMATS = ("legacy", "serving")
MODELS = ("model.json", "legacy/model.pdmodel", "serving/serving_server/model.pdmodel")


def zero_network():
    """Returns zero for every image."""
    made = Flat()
    for parameter in made.parameters():
        parameter.set_value(paddle.zeros_like(parameter))
    made.eval()
    return made


@pytest.fixture(scope="module", params=[network, zero_network], ids=["ordinary", "zero"])
def exports(request, tmp_path_factory):
    """A network, the folder of its plain export, and that of its baked one."""
    net, folder = request.param(), tmp_path_factory.mktemp("exports")
    for name, bake in (("plain", ()), ("baked", ("normalize",))):
        export_backbone(net, settings(), directory=folder / name, formats=FORMATS, bake=bake, images=IMAGES)
    return net, folder / "plain", folder / "baked"


@pytest.fixture(scope="module")
def expected(exports):
    """The embeddings by the formula, in plain NumPy."""
    pixels = np.stack(IMAGES)
    both = eager(exports[0], pixels) + eager(exports[0], pixels[:, :, ::-1])
    return unit(both) if both.any() else both


def test_an_exported_model(exports, expected):
    for folder in exports[1:]:
        assert np.abs(load_inference_model(folder).embed(IMAGES) - expected).max() < 1e-5


def test_a_baked_network_in_every_format_with_and_without_fused_kernels(exports, expected):
    path = EmbeddingPath(image_shape=SHAPE, flip=False, pixel_mean=127.5, pixel_std=128.0)
    batch = path.to_input(np.stack([path.prepare(image) for image in IMAGES]))
    for model in MODELS:
        for plain in (True, False):
            assert np.abs(Predictor(exports[2] / model, plain=plain).run(batch) - expected).max() < 1e-5


def test_a_baked_network_in_onnx(tmp_path, onnxruntime):
    net = zero_network()
    export_backbone(net, settings(), directory=tmp_path / "m", formats=("onnx",), bake=("normalize",), images=IMAGES)
    session = onnxruntime.InferenceSession(str(tmp_path / "m/onnx/model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: np.ones([2, *SHAPE], np.float32)})
    assert np.array_equal(found, np.zeros([2, EMB_DIM]))


def test_predict_by_a_checkpoint(exports, expected, monkeypatch):
    for batch_size in (120, 3):
        config = settings(test_batch_size=batch_size)
        monkeypatch.setattr(evaluator, "open_backbone", lambda config: (exports[0], config, None))
        assert np.abs(evaluator.predict(config, Topology(), images=IMAGES) - expected).max() < 1e-5


@pytest.mark.parametrize("name", [1, 2], ids=["plain", "baked"])
def test_the_pipeline_service(exports, expected, name):
    folder = Path(exports[name]) / "serving"
    operator = load_operator(folder)
    outputs = Predictor(folder / "serving_server" / "model.pdmodel").run(operator.batch({"image": np.stack(IMAGES)}))
    reply, _, _ = operator.postprocess({}, {"out": outputs})
    found = np.frombuffer(base64.b64decode(reply["embedding"]), "<f4").reshape(json.loads(reply["shape"]))
    assert np.abs(found - expected).max() < 1e-5


def test_zero_embeddings_have_a_cosine_of_zero_in_verification():
    embeddings = np.zeros([8, EMB_DIM], np.float32)
    embeddings[4:] = unit(np.random.default_rng(0).normal(size=[4, EMB_DIM]))
    embeddings[5], embeddings[7] = embeddings[4], embeddings[6]
    report = verification_report(embeddings, [False, False, True, True], folds=2)
    assert report.accuracy == 1 and 0 < report.threshold < 1


def test_unit_length_of_short_and_zero_embeddings():
    rows = np.asarray([(3, 4, 0), (0, -1e-10, 0), (0, 0, 0)], np.float32)
    found = to_unit_length(rows)
    assert found.dtype == np.float32
    assert np.allclose(found, [(0.6, 0.8, 0), (0, -1, 0), (0, 0, 0)])


def test_every_place_that_makes_unit_length_has_the_same_rule(tmp_path):
    """At zero, on both sides of 1e-12, and where the squares of float32 numbers are 0."""
    rows = np.random.default_rng(0).normal(size=[6, EMB_DIM]).astype(np.float32)
    rows *= (np.asarray([0, 1e-25, 5e-13, 2e-12, 1e-3, 7]) / np.linalg.norm(rows, axis=1)).astype(np.float32)[:, None]
    expected = to_unit_length(rows)
    assert np.linalg.norm(expected, axis=1) == pytest.approx([0, 1e-13, 0.5, 1, 1, 1], abs=1e-5)
    baked = BakedNetwork(paddle.nn.Identity(), settings(flip=False), bake=("normalize",), bgr=False)
    write_service(tmp_path / "s", {"image_shape": list(SHAPE), "flip": False, "pixel_mean": 127.5, "pixel_std": 128.0})
    reply, _, _ = load_operator(tmp_path / "s").postprocess({}, {"out": rows})
    in_training = as_directions(paddle.to_tensor(rows), CombinedMargin(), floor=EPSILON).rows
    assert np.abs(baked(paddle.to_tensor(rows)).numpy() - expected).max() < 1e-5
    assert np.abs(np.frombuffer(base64.b64decode(reply["embedding"]), "<f4").reshape(6, -1) - expected).max() < 1e-5
    assert np.abs(in_training.numpy() - expected).max() < 1e-5
    assert np.abs(metrics_unit_length(rows)[0] - expected).max() < 1e-5


def test_finished_images_pass_unchanged_and_images_of_another_shape_are_refused():
    path = EmbeddingPath(image_shape=SHAPE, flip=True, pixel_mean=127.5, pixel_std=128.0)
    finished = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    assert path.prepare(finished) is finished
    batch = path.to_input(finished[None])
    assert np.array_equal(batch, np.stack([finished, finished[..., ::-1]]))
    with pytest.raises(DataError, match=r"got an array \[16, 16\] of uint8"):
        path.prepare(np.zeros([16, 16], np.uint8))
