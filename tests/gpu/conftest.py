"""Where the tests of this folder run: on a GPU where there is one, and their bodies on the CPU, so that they do run."""

from __future__ import annotations

import numpy as np
import pytest

import plsc
from tests._support import fake_gpu

CLASSES, SIDE = 10, 16
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


class Pixels:
    """Sixty noisy images of ten patterns."""

    num_classes = CLASSES

    def __init__(self):
        rng = np.random.default_rng(1)
        self.labels = np.arange(60) % CLASSES
        patterns = rng.integers(0, 255, (CLASSES, SIDE, SIDE, 3))
        noisy = patterns[self.labels] + rng.normal(0, 25, (60, SIDE, SIDE, 3))
        self.images = np.clip(noisy, 0, 255).astype(np.uint8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


@pytest.fixture
def make_entry(tmp_path):
    """(folder, settings) -> an entry that trains a small network on `Pixels` and saves into the folder."""

    def make(folder="output", **settings):
        entry = plsc.Entry()
        entry.train_dataset = Pixels()
        entry.set_with_test(False)
        entry.set_class_num(CLASSES)
        entry.set_emb_size(16)
        entry.set_image_shape((3, SIDE, SIDE))
        entry.set_model_name("ResNetTiny")
        entry.set_train_batch_size(20)
        entry.set_num_workers(0)
        entry.set_scale(16.0)
        entry.set_calc_acc(True)
        entry.set_model_save_dir(tmp_path / folder)
        for name, value in settings.items():
            setattr(entry, name, value)
        return entry

    return make
