"""Images of a few classes."""

from __future__ import annotations

import numpy as np

CLASSES, SIDE = 6, 16


def make_images(classes=CLASSES, per_class=5, side=SIDE):
    """[n, side, side, 3] uint8 and their labels: noisy versions of one pattern a class."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 255, (classes, side, side, 3))
    labels = np.arange(classes * per_class) % classes
    images = np.clip(patterns[labels] + rng.normal(0, 20, (len(labels), side, side, 3)), 0, 255)
    return images.astype(np.uint8), labels
