"""Images of a few classes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

CLASSES, SIDE = 6, 16


def make_images(classes=CLASSES, per_class=5, side=SIDE):
    """[n, side, side, 3] uint8 and their labels: noisy versions of one pattern a class."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 255, (classes, side, side, 3))
    labels = np.arange(classes * per_class) % classes
    images = np.clip(patterns[labels] + rng.normal(0, 20, (len(labels), side, side, 3)), 0, 255)
    return images.astype(np.uint8), labels


def damaged_jpeg(side=SIDE, seed=0):
    """A JPEG of which libjpeg decodes a part and says 'Corrupt JPEG data: ...'."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    image = cv2.imencode(".jpg", pixels)[1].tobytes()
    middle = image.rindex(b"\xff\xda") // 2 + len(image) // 2
    return image[:middle] + b"\xff\xd3" + image[middle + 2 :]


def encode_as(kind) -> bytes:
    """An image of 40 x 60 pixels as a file of a kind of `IMAGE_KINDS`."""
    suffix = kind.suffixes[0]
    pixels = np.random.default_rng(0).integers(
        0, 256, (40, 60) if suffix in (".pgm", ".pbm") else (40, 60, 3), np.uint8
    )
    try:
        done, encoded = cv2.imencode(suffix, pixels)
    except cv2.error:
        done = False
    if not done:
        pytest.skip(f"this OpenCV writes no {suffix}")
    return encoded.tobytes()
