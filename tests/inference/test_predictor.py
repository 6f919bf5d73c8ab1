"""The predictor works around faults of Paddle, and says which file is missing or damaged."""

from __future__ import annotations

import shutil

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc import ServingError, load_inference_model
from plsc.export.export import export_backbone
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
