"""What a conversion does to the images: align, resize, re-encode."""

from __future__ import annotations

import zlib
from typing import Any

import cv2
import numpy as np

from plsc.data.alignment import TEMPLATE_SIZE, align
from plsc.data.images import OnDamage, decode, encode, resize
from plsc.errors import ConfigError
from plsc.utils.hints import argument


class Preprocessing:
    """The changes that a conversion makes to each image. By default none: encoded images keep their bytes.

    Args:
        image_size: side length in pixels of the square images to write.
        landmarks: [n, 5, 2], the five points of each record in pixels: align the face to the template of 112 x 112
            pixels, or of `image_size`.
        encoding: "jpg" or "png": re-encode all images. By default images that are aligned or resized become jpg,
            other encoded images keep their bytes, and pixels become png, which loses nothing.
        quality: of JPEG, 1 to 100.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> convert(records, "small", to="rec", preprocessing=Preprocessing(112, quality=90))
    """

    def __init__(
        self,
        image_size: int | None = None,
        landmarks: np.ndarray | None = None,
        *,
        encoding: str | None = None,
        quality: int = 95,
    ) -> None:
        if encoding not in (None, "jpg", "png"):
            raise ConfigError(f"encoding: got {encoding!r}, expected 'jpg' or 'png'; see {argument('encoding')}")
        if not 1 <= quality <= 100:
            raise ConfigError(f"quality: got {quality}, expected 1 to 100; see {argument('quality')}")
        if image_size is not None and image_size < 1:
            raise ConfigError(f"image_size: got {image_size}, expected 1 or more; see {argument('image_size')}")
        self.image_size, self.landmarks, self.encoding, self.quality = image_size, landmarks, encoding, quality

    def apply(self, index: int, image: Any, *, on_damage: OnDamage | None = None) -> Any:
        """Align, resize or decode the image of record `index`.

        Args:
            index: of the record.
            image: encoded bytes, or pixels [H, W, 3] uint8 RGB.
            on_damage: is called where the image is decoded, damaged, and usable in part, see `decode`.

        Returns:
            Pixels [H, W, 3] uint8 RGB; the image as it is where it needs no change.
        """
        if self.landmarks is None and self.image_size is None and self.encoding is None:
            return image
        pixels = decode(image, on_damage=on_damage)
        if self.landmarks is not None:
            return align(pixels, self.landmarks[index], image_size=self.image_size or TEMPLATE_SIZE)
        return pixels if self.image_size is None else resize(pixels, (self.image_size, self.image_size))

    def encode(self, image: Any) -> bytes:
        """Pixels as JPEG or PNG; encoded bytes as they are."""
        is_changed = self.landmarks is not None or self.image_size is not None
        if isinstance(image, bytes) or (self.encoding or ("jpg" if is_changed else "png")) == "png":
            return encode(image)
        return encode(image, ".jpg", parameters=(cv2.IMWRITE_JPEG_QUALITY, self.quality))

    def describe(self) -> list[Any]:
        """The arguments as values that JSON can hold, the landmarks by a checksum."""
        marks = None if self.landmarks is None else zlib.crc32(np.ascontiguousarray(self.landmarks).data)
        return [self.image_size, marks, self.encoding, self.quality]
