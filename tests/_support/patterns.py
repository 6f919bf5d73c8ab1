"""A small training that learns: noisy images of ten patterns, in memory."""

from __future__ import annotations

import numpy as np

import plsc

CLASSES, SIDE = 10, 16


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


def make_entry(folder, **settings):
    """An entry that trains a small network on `Pixels` and saves into the folder."""
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
    entry.set_model_save_dir(folder)
    for name, value in settings.items():
        setattr(entry, name, value)
    return entry
