"""Synthetic images of any number of classes, for benchmarks and trials; drawn when they are read."""

from __future__ import annotations

import functools
import re

import cv2
import numpy as np

from plsc.data.records import Labels, Record, Records
from plsc.errors import DataError
from plsc.utils.plural import counted


class SyntheticRecords(Records):
    """Images [H, W, 3] uint8 RGB: a coarse color pattern of the class plus noise of the image.

    Image i is of class i mod C and depends on (seed, i) only.

    Args:
        num_classes: C, 1 to 2^32.
        num_images: 1 to 2^32; the numbers of images of two classes differ by one at most.
        image_size: H and W in pixels.
        seed: 0 or more.

    Raises:
        DataError: a number out of range.

    Example:
        >>> SyntheticRecords(10, 200, image_size=32)[17].label
        7
    """

    uses_global_random = False
    format = "synthetic images"

    def __init__(self, num_classes: int, num_images: int, *, image_size: int = 112, seed: int = 0) -> None:
        if min(num_classes, num_images, image_size) < 1 or max(num_classes, num_images) > 1 << 32 or seed < 0:
            raise DataError(
                f"synthetic images: got {counted(num_classes, 'class')}, {counted(num_images, 'image')} of "
                f"{image_size} pixels, seed {seed}; expected 1 or more of each, 2^32 at most, and a seed of 0 or more"
            )
        self.num_classes: int = num_classes
        self.num_images, self.image_size, self.seed = num_images, image_size, seed

    @classmethod
    def from_name(cls, name: str) -> SyntheticRecords:
        """`synthetic:CLASSES:IMAGES` or `synthetic:CLASSES:IMAGES:SIZE`."""
        parts = name.split(":")[1:]
        if len(parts) not in (2, 3) or not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
            raise DataError(f"{name!r}: expected 'synthetic:CLASSES:IMAGES' or 'synthetic:CLASSES:IMAGES:SIZE'")
        num_classes, num_images, *size = (int(part) for part in parts)
        return cls(num_classes, num_images, image_size=size[0] if size else 112)

    @functools.cached_property
    def labels(self) -> Labels:
        return np.arange(self.num_images) % self.num_classes

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_images:
            raise IndexError(f"index {index} is out of range, expected 0 to {self.num_images - 1}")
        label = index % self.num_classes
        pattern = np.random.default_rng((self.seed, 0, label)).integers(64, 192, (7, 7, 3))
        noise = np.random.default_rng((self.seed, 1, index)).integers(-48, 48, (7, 7, 3))
        pixels = (pattern + noise).astype(np.uint8)
        return Record(cv2.resize(pixels, (self.image_size, self.image_size), interpolation=cv2.INTER_CUBIC), label)

    def describe(self, index: int) -> str:
        return f"synthetic image {index}"
