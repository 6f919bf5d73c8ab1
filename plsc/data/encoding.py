"""From pixels to an image file's bytes, and what such bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from plsc.data.transforms import decode
from plsc.errors import DataError


def encode(image: Any, suffix: str = ".png", parameters: Sequence[int] = ()) -> bytes:
    """Encoded bytes as they are; pixels [H, W, 3] uint8 RGB as PNG, which loses nothing, or as `suffix` says.

    Raises:
        DataError: the pixels are too many for the format.
    """
    if not isinstance(image, np.ndarray):
        return image
    try:
        is_done, encoded = cv2.imencode(suffix, cv2.cvtColor(decode(image), cv2.COLOR_RGB2BGR), parameters)
    except cv2.error:
        is_done = False
    if not is_done:
        raise DataError(
            f"{image.shape[1]} x {image.shape[0]} pixels cannot be written as JPEG or PNG; JPEG has 65,535 "
            f"a side at most"
        )
    return encoded.tobytes()


_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"BM": ".bmp",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"GIF8": ".gif",
    b"\0\0\0\x0cjP": ".jp2",
    b"P5": ".pgm",
    b"P6": ".ppm",
}


def suffix_of(image: bytes, unknown: str = ".jpg") -> str:
    """The file suffix by an image's first bytes; `unknown` where they say nothing, as readers decide by content."""
    return next((suffix for start, suffix in _SUFFIXES.items() if image.startswith(start)), unknown)
