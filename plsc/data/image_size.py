"""The size that an encoded image states, read before it is decoded: a small file may state a giant one.

Only the formats that the server takes (`ImageKind.served`). Each reader follows the decoder of OpenCV: where that
decodes an image, the size is that of the pixels, except that Exif data may turn them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from plsc.data.jpeg import jpeg_size

# (height, width)
Size = tuple[int, int]


def _png(image: bytes) -> Size | None:
    return int.from_bytes(image[20:24], "big"), int.from_bytes(image[16:20], "big")


def _bmp(image: bytes) -> Size | None:
    def number(start: int, size: int) -> int:
        return abs(int.from_bytes(image[start : start + size], "little", signed=True))

    if number(14, 4) >= 36:
        return number(22, 4), number(18, 4)
    # The header of OS/2 1.
    return int.from_bytes(image[20:22], "little"), int.from_bytes(image[18:20], "little")


def _webp(image: bytes) -> Size | None:
    def number(start: int, size: int) -> int:
        return int.from_bytes(image[start : start + size], "little")

    kind = image[12:16]
    if kind == b"VP8X":
        return number(27, 3) + 1, number(24, 3) + 1
    if kind == b"VP8L":
        bits = number(21, 4)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        return number(28, 2) & 0x3FFF, number(26, 2) & 0x3FFF
    return None


# White space and comments, each up to the end of its line, then the number. One byte behind a number is passed over.
_PPM_NUMBER = re.compile(rb"(?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])*(\d{1,9})")


def _ppm(image: bytes) -> Size | None:
    width = _PPM_NUMBER.match(image, 2)
    height = width and _PPM_NUMBER.match(image, width.end() + 1)
    return None if width is None or height is None else (int(height[1]), int(width[1]))


_READERS: dict[str, Callable[[bytes], Size | None]] = {
    "JPEG": jpeg_size,
    "PNG": _png,
    "BMP": _bmp,
    "WEBP": _webp,
    "PPM": _ppm,
}


def stated_size(image: bytes, kind: str) -> Size | None:
    """Height and width that an encoded image states, 1 or more each; None where its header is damaged.

    Args:
        image: the bytes of a file.
        kind: `ImageKind.name` of its format, one that the server takes.
    """
    size = _READERS[kind](image)
    return size if size is not None and min(size) > 0 else None
