"""From an encoded image to what a network takes: decode, resize, flip, channels first, normalise.

Workers hand out uint8, a quarter of float32's bytes; `normalise` runs where the batch is used.
"""

from __future__ import annotations

from typing import Any, Tuple, Union

import cv2
import numpy as np

from plsc.errors import DataError

# As PLSC 0.1 had it: pixels 0 ... 255 become about -1 ... 1.
PIXEL_MEAN, PIXEL_STD = 127.5, 128.0


def decode(image: Union[bytes, np.ndarray]) -> np.ndarray:
    """Encoded bytes, or pixels as they are, to [H, W, 3] uint8 RGB.

    Raises:
        DataError: empty, not an image that OpenCV reads, or an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
        raise DataError(f"got an array {list(image.shape)} of {image.dtype}, expected [H, W, 3] of uint8")
    if not image:
        raise DataError("the image is empty (0 bytes)")
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"{len(image)} bytes that are no image known to OpenCV (they begin with {bytes(image[:8])!r})")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, 3] to [height, width, 3]: area averaging when shrinking, linear when growing."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = pixels.shape[0] > height
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


class Transform:
    """One record's image to [3, H, W] uint8; a finished [3, H, W] float32 array passes untouched.

    Args:
        image_shape: (3, H, W).
        flip: mirror with probability one half.
    """

    def __init__(self, image_shape: Tuple[int, int, int], flip: bool = False) -> None:
        self.image_shape = tuple(image_shape)
        self.flip = flip

    def __call__(self, image: Union[bytes, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Transform one image; `rng` decides, so equal generators give equal pixels.

        Raises:
            DataError: the image cannot be decoded.
        """
        if isinstance(image, np.ndarray) and image.dtype == np.float32 and image.shape == self.image_shape:
            return image
        pixels = resize(decode(image), *self.image_shape[1:])
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def normalise(images: Any) -> Any:
    """Pixels 0 ... 255 (uint8, array or tensor) to float32 about -1 ... 1; float32 passes untouched."""
    if "float32" in str(images.dtype):
        return images
    return (images.astype("float32") - PIXEL_MEAN) / PIXEL_STD
