"""Whole trainings: mixed precision, overflow, resume, readers, export."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import plsc
from plsc.checkpoint import Checkpoint
from plsc.losses.creation import initial_centers
from plsc.models.tiny import ResNetTiny
from plsc.utils.ranges import Range
from tests._support.exporting import eager, unit
from tests._support.patterns import CLASSES, SIDE, Pixels
from tests.gpu.conftest import CLOSE


def tensors(folder):
    """The tensors of the newest checkpoint in a folder."""
    newest = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    saved = Checkpoint(newest)
    return {name: saved.read(name) for name in saved.names() if name.startswith(("backbone.", "head."))}


@pytest.mark.parametrize("sample_ratio, dtype", [(1.0, "float16"), (0.5, "float16"), (1.0, "bfloat16")])
def test_mixed_precision_learns_what_float32_learns(half_device, make_entry, sample_ratio, dtype):
    results = []
    for use_fp16 in (False, True):
        entry = make_entry(str(use_fp16), use_fp16=use_fp16, amp_dtype=dtype, sample_ratio=sample_ratio)
        entry.set_lr(1.0)
        entry.set_train_epochs(12)
        results.append(entry.train())
    assert results[0]["acc1"] == results[1]["acc1"] == 1.0
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], abs=0.3)


def test_a_step_that_overflows_moves_nothing(half_device, make_entry, tmp_path):
    paddle.seed(0)
    network = ResNetTiny(16, (3, SIDE, SIDE))
    before = {name: value.numpy().copy() for name, value in network.named_parameters()}
    entry = make_entry(use_fp16=True, init_loss_scaling=2.0**126, train_epochs=1)
    entry.set_model(network)
    entry.train()
    for name, value in network.named_parameters():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
    centers = np.concatenate([rows for _, rows in initial_centers(Range(0, CLASSES), 16, seed=entry.config.seed)])
    np.testing.assert_array_equal(tensors(tmp_path / "output")["head.weight"], centers)


@pytest.mark.parametrize("settings", [{}, {"sample_ratio": 0.5, "momentum_storage": "bfloat16"}])
def test_a_run_that_resumes_ends_as_one_that_was_never_stopped(device, make_entry, tmp_path, settings):
    whole = make_entry("whole", train_epochs=2, **settings)
    whole.train()
    for epochs in (1, 2):
        part = make_entry("parts", train_epochs=epochs, **settings)
        part.set_auto_resume(True)
        part.train()
    found, expected = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert found.keys() == expected.keys() and len(found) > 10
    for name, value in expected.items():
        if value.dtype != np.uint16:
            scale = max(np.abs(value).max(initial=0.0), 1e-6)
            np.testing.assert_allclose(found[name], value, atol=CLOSE[device] * scale, err_msg=name)


def test_forked_readers_serve_a_training(device, make_entry):
    entry = make_entry(num_workers=2, train_epochs=3)
    assert np.isfinite(entry.train()["loss"])


def test_the_exported_network_embeds_as_the_trained_one(device, make_entry, tmp_path):
    network = ResNetTiny(16, (3, SIDE, SIDE))
    entry = make_entry(train_epochs=1, flip=False)
    entry.set_model(network)
    entry.train()
    entry.convert_for_prediction()
    model = plsc.load_inference_model(tmp_path / "output" / "inference_model")
    pixels = Pixels().images[:4]
    network.eval()
    expected = unit(eager(network, pixels, entry.config.pixel_mean, entry.config.pixel_std))
    np.testing.assert_allclose(model.embed(list(pixels)), expected, atol=2e-3)
