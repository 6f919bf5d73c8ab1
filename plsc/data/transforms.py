"""From an encoded image to the input of a network: decode, resize, augment, flip, channels first, normalize.

Worker processes do all but the last step and return uint8, a quarter of the bytes of float32. `normalize` runs where
the batch is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from plsc.data.augment import Augment
from plsc.data.images import OnDamage, decode, resize
from plsc.errors import DataError

# The values of PLSC 0.1: pixels 0 ... 255 become about -1 ... 1.
PIXEL_MEAN, PIXEL_STD = 127.5, 128.0


def random_keys(seed: int, epoch: int, *, indices: Sequence[int]) -> npt.NDArray[np.uint64]:
    """One pseudorandom number per image, [N] uint64, that depends on (seed, epoch, index) only.

    It seeds the augmentation, and its highest bit decides the flip: seeding a generator takes a fifth of the time of
    decoding a small image. The mixing function is that of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    root = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    keys: npt.NDArray[np.uint64] = root + np.asarray(indices).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys


class Transform:
    """The image of a record to [3, H, W] uint8. A finished image [3, H, W] float32 is returned as it is.

    Args:
        image_shape: (3, H, W).
        flip: mirror with probability one half.
        augment: further random changes; none by default.

    Example:
        >>> transform = Transform((3, 112, 112), flip=True)
        >>> transform(np.zeros((200, 160, 3), np.uint8), key=5).shape
        (3, 112, 112)
    """

    def __init__(
        self, image_shape: tuple[int, int, int], flip: bool = False, *, augment: Augment | None = None
    ) -> None:
        self.image_shape: tuple[int, ...] = tuple(image_shape)
        self._size = (image_shape[1], image_shape[2])
        self.flip = flip
        self.augment = None if augment is None or augment.is_off else augment

    def __call__(
        self,
        image: bytes | npt.NDArray[Any],
        key: int | None = None,
        *,
        out: npt.NDArray[np.uint8] | None = None,
        on_damage: OnDamage | None = None,
    ) -> npt.NDArray[Any]:
        """Transform one image.

        Args:
            image: encoded bytes, pixels [H, W, 3] uint8 RGB, or a finished [3, H, W] float32 array.
            key: an int of `random_keys`; equal keys give equal pixels. With None there is no random change.
            out: [3, H, W] uint8 to write to and return; by default a new array.
            on_damage: is called where the image is damaged but can be decoded, see `decode`.

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
        pixels = resize(decode(image, on_damage=on_damage), self._size)
        if key is not None:
            if self.augment is not None:
                pixels = self.augment(pixels, np.random.default_rng(key))
            if self.flip and key >> 63:
                pixels = cv2.flip(pixels, 1)
        out = np.empty(self.image_shape, np.uint8) if out is None else out
        cv2.split(pixels, [out[0], out[1], out[2]])  # takes a third of the time of copying a transposed view
        return out


Channels = float | Sequence[float]


def normalize_tensor(images: Any, *, mean: Any, std: Any) -> Any:
    """`normalize` for a tensor, computed where the tensor lies.

    Args:
        images: [..., 3, H, W] uint8.
        mean, std: numbers, or tensors [3, 1, 1] float32 that lie where the images do; see `tensor_constants`.
    """
    return images if "float32" in str(images.dtype) else (images.astype("float32") - mean) / std


def tensor_constants(
    mean: Channels, std: Channels
) -> tuple[float, float] | tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation for `normalize_tensor`: two numbers where channels are equal, else two [3, 1, 1]."""
    means, stds, are_channels_equal = _by_channel(mean, std)
    if are_channels_equal:
        return float(means[0]), float(stds[0])
    return means.astype(np.float32).reshape(3, 1, 1), stds.astype(np.float32).reshape(3, 1, 1)


def normalize(
    images: npt.NDArray[Any], *, mean: Channels = PIXEL_MEAN, std: Channels = PIXEL_STD
) -> npt.NDArray[np.float32]:
    """(pixel - mean) / std in float32. Images that are float32 already are returned as they are.

    Args:
        images: [..., 3, H, W] uint8.
        mean, std: one number for all channels, or three in the order red, green, blue; pixels are 0 to 255.
    """
    if images.dtype == np.float32:
        return images
    means, stds, are_channels_equal = _by_channel(mean, std)
    groups = 1 if are_channels_equal else 3
    pixels = np.ascontiguousarray(images).reshape(-1, groups, 3 * images.shape[-2] * images.shape[-1] // groups)
    finished = np.empty(pixels.shape, np.float32)
    for group in range(groups):
        # cv2.normalize is OpenCV's only vectorized pass from uint8 to scaled float32. It takes the values that the
        # least and the greatest pixel are mapped to. A look-up table takes four times as long.
        low, high = ((end - means[group]) / stds[group] for end in _ends(pixels[:, group]))
        cv2.normalize(pixels[:, group], finished[:, group], low, high, cv2.NORM_MINMAX, cv2.CV_32F)
    return finished.reshape(images.shape)


def _by_channel(mean: Channels, std: Channels) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], bool]:
    """Mean [3], standard deviation [3], and whether both are equal in all channels."""
    means, stds = (np.broadcast_to(np.asarray(value, np.float64), 3) for value in (mean, std))
    return means, stds, len(set(means)) == len(set(stds)) == 1


def _ends(images: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """The least and the greatest value of [N, P] uint8. Most photographs hold 0 and 255, so few images are read."""
    least, greatest = 255.0, 0.0
    for image in images:
        low, high, _, _ = cv2.minMaxLoc(image)
        least, greatest = min(least, low), max(greatest, high)
        if (least, greatest) == (0.0, 255.0):
            break
    return least, greatest
