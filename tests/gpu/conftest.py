"""Where the tests of this folder run: on a GPU where there is one, and their bodies on the CPU, so that they do run."""

from __future__ import annotations

import pytest

from tests._support import fake_gpu, patterns

# What may differ on a GPU: cuDNN and atomic sums order their terms anew in each run.
CLOSE = {"cpu": 1e-5, "gpu": 2e-2}


def cards():
    """How many GPUs Paddle finds."""
    import paddle

    return paddle.device.cuda.device_count()


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """'gpu': a real one. 'cpu': the same body on the CPU, under PLSC_FAKE_GPU=1 by the code of GPUs."""
    if request.param == "cpu" and cards():
        pytest.skip("training takes the GPU where there is one")
    return request.param


@pytest.fixture
def half_device(device):
    """As `device`, where half precision has an effect: on a GPU, or one that is played."""
    if device == "cpu" and not fake_gpu.is_asked_for():
        pytest.skip("mixed precision has no effect on a CPU; runs under PLSC_FAKE_GPU=1")
    return device


@pytest.fixture
def make_entry(tmp_path):
    """(folder, settings) -> an entry that trains a small network and saves into the folder."""
    return lambda folder="output", **settings: patterns.make_entry(tmp_path / folder, **settings)
