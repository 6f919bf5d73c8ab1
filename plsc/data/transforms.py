"""From an encoded image to what a network takes: decode, resize, augment, flip, channels first, normalize.

Workers hand out uint8, a quarter of float32's bytes; `normalize` runs where the batch is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from plsc.data.augment import Augment
from plsc.data.jpeg import decode_jpeg
from plsc.errors import DataError

# What OpenCV prints of a damaged image names no file; the error that is raised does.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_FATAL)

# As PLSC 0.1 had it: pixels 0 ... 255 become about -1 ... 1.
PIXEL_MEAN, PIXEL_STD = 127.5, 128.0


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """Encoded bytes, or pixels as they are, to [H, W, 3] uint8 RGB.

    Raises:
        DataError: empty, not an image that OpenCV reads, or an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return np.ascontiguousarray(image)
        raise DataError(f"got an array {list(image.shape)} of {image.dtype}, expected [H, W, 3] of uint8")
    if not image:
        raise DataError("the image is empty (0 bytes)")
    pixels = decode_jpeg(image)
    if pixels is None:
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise DataError(
            f"{len(image)} bytes that are no image known to OpenCV, or a damaged one (they begin with "
            f"{bytes(image[:8])!r})"
        )
    return pixels


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, 3] to [height, width, 3]: area averaging when shrinking, linear when growing."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = pixels.shape[0] > height
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def random_keys(seed: int, epoch: int, indices: Sequence[int]) -> np.ndarray:
    """[N] uint64 that look random and depend on (seed, epoch, index) alone: what chance is drawn from.

    Seeding a generator takes as long as a fifth of decoding a small image, so chance as plain as a flip is read off
    the key's bits. The mixing is SplitMix64's (Steele, Lea and Flood, 2014).
    """
    root = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    keys = root + np.asarray(indices).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


class Transform:
    """One record's image to [3, H, W] uint8; a finished [3, H, W] float32 array passes untouched.

    Args:
        image_shape: (3, H, W).
        flip: mirror with probability one half.
        augment: what else may happen to the image; nothing by default.
    """

    def __init__(self, image_shape: tuple[int, int, int], flip: bool = False, augment: Augment | None = None) -> None:
        self.image_shape = tuple(image_shape)
        self._height, self._width = self.image_shape[1:]
        self.flip = flip
        self.augment = None if augment is None or augment.is_off else augment

    def __call__(self, image: bytes | np.ndarray, key: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Transform one image.

        Args:
            image: encoded bytes, pixels [H, W, 3] uint8 RGB, or a finished [3, H, W] float32 array.
            key: an int of `random_keys`: equal keys give equal pixels. None leaves chance out, so nothing is changed.
            out: [3, H, W] uint8 to write into and return, instead of a new array.

        Raises:
            DataError: the image cannot be decoded, or is finished and of another shape.
        """
        if isinstance(image, np.ndarray) and image.dtype == np.float32:
            if image.shape == self.image_shape:
                return image
            raise DataError(
                f"got a finished image {list(image.shape)} of float32, expected {list(self.image_shape)}, "
                f"or pixels [H, W, 3] of uint8, which are resized"
            )
        pixels = resize(decode(image), self._height, self._width)
        if key is not None:
            if self.augment is not None:
                pixels = self.augment(pixels, np.random.default_rng(key))
            if self.flip and key >> 63:
                pixels = cv2.flip(pixels, 1)
        out = np.empty(self.image_shape, np.uint8) if out is None else out
        cv2.split(pixels, [out[0], out[1], out[2]])  # three times as fast as copying a transposed view
        return out


Channels = float | Sequence[float]


def normalize(images: Any, mean: Channels = PIXEL_MEAN, std: Channels = PIXEL_STD) -> Any:
    """Pixels 0 ... 255 to (pixel - mean) / std in float32; float32 passes untouched.

    Args:
        images: [..., 3, H, W] uint8, array or tensor.
        mean, std: one for all channels, or three, in the order red, green, blue.
    """
    if "float32" in str(images.dtype):
        return images
    mean, std = (np.broadcast_to(np.asarray(value, np.float64), 3) for value in (mean, std))
    if not isinstance(images, np.ndarray):
        images = images.astype("float32")
        if len(set(mean)) == len(set(std)) == 1:
            return (images - float(mean[0])) / float(std[0])
        mean, std = (value.astype(np.float32).reshape(3, 1, 1) for value in (mean, std))
        return (images - mean) / std
    groups = 1 if len(set(mean)) == len(set(std)) == 1 else 3
    pixels = np.ascontiguousarray(images).reshape(-1, groups, 3 * images.shape[-2] * images.shape[-1] // groups)
    finished = np.empty(pixels.shape, np.float32)
    for group in range(groups):
        # OpenCV's one vectorized pass from uint8 to scaled float32 asks where the least and the greatest value are to
        # go. A look-up takes four times as long.
        low, high = ((end - mean[group]) / std[group] for end in _ends(pixels[:, group]))
        cv2.normalize(pixels[:, group], finished[:, group], low, high, cv2.NORM_MINMAX, cv2.CV_32F)
    return finished.reshape(images.shape)


def _ends(images: np.ndarray) -> tuple[float, float]:
    """The least and the greatest value of [N, P] uint8. Most photographs have both 0 and 255, so few are looked at."""
    least, greatest = 255.0, 0.0
    for image in images:
        low, high, _, _ = cv2.minMaxLoc(image)
        least, greatest = min(least, low), max(greatest, high)
        if (least, greatest) == (0.0, 255.0):
            break
    return least, greatest
