"""Random changes to training images, by OpenCV. All are off by default.

Sources: random erasing, Zhong et al. 2017 (cutout, DeVries and Taylor 2017, erases squares); RandAugment, Cubuk et al.
2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from plsc.data.images import Pixels
from plsc.errors import ConfigError

Rng = np.random.Generator
_Operation = Callable[[Pixels, float], Pixels]
_GRAY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Augment:
    """The random changes to a training image, in this order. 0, the default, turns a change off.

    Attributes:
        crop: the share of each side to cut off at most, 0 to under 1; the rest is resized to the whole.
        rotate: degrees of rotation to either side at most, 0 to 180.
        color_jitter: x, 0 to 1; brightness, contrast and saturation change by factors of 1 - x to 1 + x, in random
            order.
        rand_augment: the number of RandAugment operations, drawn with repetition; 0 or more.
        rand_magnitude: the strength of the RandAugment operations, 0 to 10; the default is 5.
        gray: probability that the image loses its colors.
        blur: probability of a Gaussian blur with a sigma of 0.5 to 0.5 + W / 40 pixels.
        erase: probability that a rectangle becomes noise: 2 to 33 % of the area, sides in a ratio up to 3.3.

    Raises:
        ConfigError: a value out of its range.

    Example:
        >>> augment = Augment(crop=0.1, color_jitter=0.2)
        >>> changed = augment(np.zeros((112, 112, 3), np.uint8), np.random.default_rng(0))
    """

    crop: float = 0.0
    rotate: float = 0.0
    color_jitter: float = 0.0
    rand_augment: int = 0
    rand_magnitude: float = 5.0
    gray: float = 0.0
    blur: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        limits = {
            "crop": 0.99,
            "rotate": 180,
            "color_jitter": 1,
            "rand_augment": 100,
            "rand_magnitude": 10,
            "gray": 1,
            "blur": 1,
            "erase": 1,
        }
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected 0 to {most}")

    @property
    def is_off(self) -> bool:
        """Whether all changes are off."""
        crop, rotate, color_jitter, rand_augment, _, *chances = astuple(self)
        return not any((crop, rotate, color_jitter, rand_augment, *chances))

    def __call__(self, pixels: Pixels, rng: Rng) -> Pixels:
        """Pixels [H, W, 3] uint8 RGB to a new array of the same shape and type."""
        if self.crop or self.rotate:
            pixels = _crop_and_rotate(pixels, self.crop, self.rotate, rng)
        if self.color_jitter:
            pixels = _color_jitter(pixels, self.color_jitter, rng)
        for _ in range(self.rand_augment):
            operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
            strength = self.rand_magnitude / 10 * (1 if rng.random() < 0.5 else -1)
            pixels = operation(pixels, strength)
        if self.gray and rng.random() < self.gray:
            pixels = _saturation(pixels, 0.0)
        if self.blur and rng.random() < self.blur:
            pixels = cv2.GaussianBlur(pixels, (0, 0), 0.5 + rng.random() * pixels.shape[1] / 40)
        if self.erase and rng.random() < self.erase:
            pixels = _erase(pixels, rng)
        return pixels


def _crop_and_rotate(pixels: Pixels, crop: float, rotate: float, rng: Rng) -> Pixels:
    """Crop and rotate in one warp, so that the image is resampled once."""
    height, width = pixels.shape[:2]
    kept = 1 - crop * rng.random()
    angle = rotate * (2 * rng.random() - 1)
    shift = (1 - kept) * (rng.random(2) - 0.5) * (width, height)
    center = np.array([width - 1, height - 1]) / 2
    matrix = cv2.getRotationMatrix2D((center + shift).tolist(), angle, 1 / kept)
    matrix[:, 2] = matrix[:, 2] - shift
    return _warp(pixels, matrix)


def _color_jitter(pixels: Pixels, strength: float, rng: Rng) -> Pixels:
    changes: list[_Operation] = [_brightness, _contrast, _saturation]
    for place in rng.permutation(3):
        pixels = changes[place](pixels, 1 + strength * (2 * rng.random() - 1))
    return pixels


def _erase(pixels: Pixels, rng: Rng) -> Pixels:
    height, width = pixels.shape[:2]
    area, ratio = rng.uniform(0.02, 0.33) * height * width, np.exp(rng.uniform(-1, 1) * np.log(3.3))
    rows = int(np.clip(round((area * ratio) ** 0.5), 1, height))
    columns = int(np.clip(round((area / ratio) ** 0.5), 1, width))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    pixels = pixels.copy()
    pixels[top : top + rows, left : left + columns] = rng.integers(0, 256, (rows, columns, 3), np.uint8)
    return pixels


# The operations keep shape and type. Color operations take a factor; 1 means no change.


def _brightness(pixels: Pixels, factor: float) -> Pixels:
    return cv2.addWeighted(pixels, factor, pixels, 0, 0)


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    mean = float(np.dot(cv2.mean(pixels)[:3], _GRAY))
    return cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * mean)


def _saturation(pixels: Pixels, factor: float) -> Pixels:
    gray = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(pixels, factor, gray, 1 - factor, 0)


def _sharpness(pixels: Pixels, factor: float) -> Pixels:
    return cv2.addWeighted(pixels, factor, cv2.GaussianBlur(pixels, (3, 3), 0), 1 - factor, 0)


# RandAugment operations take a strength, -1 to 1; 0 means no change.


def _equalize(pixels: Pixels, strength: float) -> Pixels:
    equal = cv2.merge([cv2.equalizeHist(plane) for plane in cv2.split(pixels)])
    return cv2.addWeighted(equal, abs(strength), pixels, 1 - abs(strength), 0)


def _autocontrast(pixels: Pixels, strength: float) -> Pixels:
    full = cv2.normalize(pixels, np.empty_like(pixels), 0, 255, cv2.NORM_MINMAX)
    return cv2.addWeighted(full, abs(strength), pixels, 1 - abs(strength), 0)


def _posterize(pixels: Pixels, strength: float) -> Pixels:
    lost_bits = round(4 * abs(strength))
    kept: Pixels = pixels & np.uint8(256 - (1 << lost_bits))
    return kept


def _solarize(pixels: Pixels, strength: float) -> Pixels:
    return np.where(pixels >= 256 * (1 - abs(strength) / 2), 255 - pixels, pixels)


def _warped_by(matrix: Callable[[float, tuple[int, ...]], Any]) -> _Operation:
    """The operation that warps by `matrix(strength, shape of the pixels)`, [2, 3]."""
    return lambda pixels, strength: _warp(pixels, np.array(matrix(strength, pixels.shape), np.float64))


def _warp(pixels: Pixels, matrix: npt.NDArray[Any]) -> Pixels:
    return cv2.warpAffine(
        pixels, matrix, (pixels.shape[1], pixels.shape[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )


_OPERATIONS: tuple[_Operation, ...] = (
    _equalize,
    _autocontrast,
    _posterize,
    _solarize,
    lambda pixels, strength: _brightness(pixels, 1 + 0.9 * strength),
    lambda pixels, strength: _contrast(pixels, 1 + 0.9 * strength),
    lambda pixels, strength: _saturation(pixels, 1 + 0.9 * strength),
    lambda pixels, strength: _sharpness(pixels, 1 + 0.9 * strength),
    _warped_by(lambda strength, shape: [[1, 0.3 * strength, -0.15 * strength * shape[0]], [0, 1, 0]]),
    _warped_by(lambda strength, shape: [[1, 0, 0], [0.3 * strength, 1, -0.15 * strength * shape[1]]]),
    _warped_by(lambda strength, shape: [[1, 0, 0.3 * strength * shape[1]], [0, 1, 0]]),
    _warped_by(lambda strength, shape: [[1, 0, 0], [0, 1, 0.3 * strength * shape[0]]]),
    _warped_by(
        lambda strength, shape: cv2.getRotationMatrix2D(((shape[1] - 1) / 2, (shape[0] - 1) / 2), 30 * strength, 1)
    ),
)
