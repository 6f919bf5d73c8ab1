"""A source in memory for conversions, and what a converted folder holds."""

from __future__ import annotations

import importlib.util

import cv2
import numpy as np
import pytest

from plsc.data.convert.writers import WRITERS
from plsc.data.images import decode
from plsc.data.records import Record, Records

FORMATS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "parquet" and not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed"
        ),
    )
    for name in WRITERS
]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (23, 6, 7, 3), np.uint8)
LABELS = np.append(np.arange(22) % 5, 4)


class Images(Records):
    """Encoded images in memory; those of `broken` cannot be read, and one may end the process's work."""

    format = "images"

    def __init__(self, encoding: str = ".png", class_names=None, broken=(), stop_at=None) -> None:
        self.images = [cv2.imencode(encoding, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes() for image in PIXELS]
        self.labels, self.num_classes, self.class_names = LABELS, 5, class_names
        self.broken, self.stop_at = broken, stop_at

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        if index in self.broken:
            return Record(self.broken[index], int(self.labels[index]))
        return Record(self.images[index], int(self.labels[index]))

    def describe(self, index):
        return f"image {index}"


def content(records) -> list:
    """Pixels and labels, in an order that class folders do not change."""
    return sorted((decode(records[n].image).tobytes(), records[n].label) for n in range(len(records)))


def files_of(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
