"""The predictor works around faults of Paddle, and says which file is missing or damaged."""

from __future__ import annotations

import pickle
import re
import shutil
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc import ServingError, load_inference_model
from plsc.export.export import export_backbone
from plsc.inference import predictor
from plsc.inference.predictor import Predictor
from tests._support.exporting import IMAGES, eager, settings, unit


def test_a_leaky_relu_after_a_convolution_does_not_crash(tmp_path):
    # Paddle 3.3 ends the process where it fuses the two.
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, 2), nn.BatchNorm2D(8), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(392, 16))
    net.eval()
    export_backbone(net, settings(flip=False), directory=tmp_path / "m", formats=("legacy",))
    expected = unit(eager(net, np.stack(IMAGES)))
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - expected).max() < 1e-5


@pytest.mark.parametrize("suffix", [".json", ".pdiparams"])
def test_missing_and_damaged_files(model, tmp_path, suffix):
    copy = tmp_path / "m"
    shutil.copytree(model, copy)
    (copy / f"model{suffix}").write_bytes(b"damaged")
    with pytest.raises(ServingError, match="(?s)model.json: Paddle .* cannot load it: .*; export the model again"):
        Predictor(copy / "model.json")
    (copy / f"model{suffix}").unlink()
    with pytest.raises(ServingError, match=f"model{suffix} is missing; export the model again"):
        Predictor(copy / "model.json")


def test_plain_kernels_compute_what_fused_ones_do(model):
    batch = np.random.default_rng(0).uniform(-1, 1, [3, 3, 16, 16]).astype(np.float32)
    fused, plain = (Predictor(model / "model.json", 1, plain=plain).run(batch) for plain in (False, True))
    assert fused.shape == (3, 16) and np.abs(fused - plain).max() < 1e-5 * np.abs(plain).max()


class FakeConfig:
    """What a predictor asks Paddle's configuration for, of which it gets nothing but the record `asked`."""

    def __init__(self, *files):
        self.asked = []

    def __getattr__(self, name):
        return lambda *values: self.asked.append((name, *values))


@pytest.fixture
def on_machine(monkeypatch, model):
    """Load a predictor where Paddle finds so many GPUs and computes on a device; returns what it asks Paddle for."""

    def load(gpus, current, **options):
        made = []

        def create(config):
            made.append(config)
            return SimpleNamespace(get_input_names=lambda: ["x"], get_output_names=lambda: ["y"])

        monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(paddle, "get_device", lambda: current)
        monkeypatch.setattr(paddle.inference, "Config", FakeConfig)
        monkeypatch.setattr(paddle.inference, "create_predictor", create)
        Predictor(model / "model.json", **options)
        return [values for name, *values in made[0].asked if name == "enable_use_gpu"]

    return load


@pytest.mark.parametrize(
    "gpus, current, device, index",
    [
        (4, "gpu:3", None, 3),  # a rank's own GPU
        (4, "gpu:3", "gpu:1", 1),
        (4, "gpu:3", "cpu", None),
        (4, "cpu", None, None),  # as in an export
        (0, "cpu", None, None),
        (0, "xpu:0", None, None),
    ],
)
def test_a_predictor_computes_where_paddle_does_in_its_process_or_where_it_is_told(
    on_machine, gpus, current, device, index
):
    asked = on_machine(gpus, current, device=device)
    assert [values[1] for values in asked] == ([] if index is None else [index])


@pytest.mark.parametrize("device", ["gpu:2", "gpu", "gpu:-1", "gpu:x", "cuda:0", "", "0", 0, "gpu:²"])
def test_a_device_that_is_not_there_is_refused(on_machine, device):
    message = f"device: got {device!r}, expected cpu or gpu:<index>; Paddle finds 2 GPUs here"
    with pytest.raises(ServingError, match=f"^{re.escape(message)}$"):
        on_machine(2, "gpu:0", device=device)


def test_a_model_is_loaded_on_a_device_and_again_from_its_pickle(model, monkeypatch):
    devices = []
    monkeypatch.setattr(predictor, "_gpu_of", lambda device, count: devices.append(device))
    loaded = load_inference_model(model, device="gpu:1")
    pickle.loads(pickle.dumps(loaded))
    assert devices == ["gpu:1", "gpu:1"]
