"""JPEGs: decoded to the pixels that OpenCV gives, with a verdict on whether the file is whole, a fifth faster.

libjpeg-turbo decodes them (simplejpeg). OpenCV uses the same library, but chooses where the pixels are written. The
library's conversion to RGB writes each row that begins at a multiple of 32 bytes past the caches, so that the next
step must read the row back from memory. At widths of 112, 160 or 224 pixels this concerns every second row or all rows.
No row begins at such an address if the first row begins at an odd address and rows have an even length; simplejpeg lets
the caller choose the address.

libjpeg decodes what it can of a damaged file and warns. simplejpeg refuses such a file; then OpenCV decides whether it
is an image, and what both know of the damage is passed on with the pixels.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from plsc.utils.c_stderr import captured_c_stderr

# [H, W, 3] uint8 RGB. The annotations of OpenCV do not say that its results are uint8.
Pixels = npt.NDArray[Any]

# How libjpeg's warnings begin. It decodes on after them, and stops after all other messages.
_WARNINGS = (
    "Corrupt JPEG data",
    "Premature end of JPEG file",
    "Inconsistent progression sequence",
    "Invalid SOS parameters for sequential JPEG",
    "Warning: unknown JFIF revision",
    "Unknown Adobe color transform code",
)
# A damaged header may state 65,535 x 65,535 pixels. OpenCV does not fill what it has no data for.
_MAX_PIXELS = 1 << 26
_FRAMES, _START_OF_SCAN, _APP1 = (0xC0, 0xC1, 0xC2), 0xDA, 0xE1
_WITHOUT_LENGTH = frozenset([0x00, 0x01, 0xFF, *range(0xD0, 0xDA)])
# APP1, which holds Exif data; and markers that have no length.
_SPECIAL = _WITHOUT_LENGTH | {_APP1}
# Every frame that a decoder may know; of the numbers between, C4, C8 and CC are no frames.
_ALL_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Most bytes of segments that may hold Exif data, as `_turn` keeps the last 64 of them. An Exif segment has 64 KiB.
_MAX_EXIF = 1 << 17
# Most segments before the image data that are looked at.
_MAX_SEGMENTS = 10_000
# A marker within or behind a scan: there, 0xff is followed by 0 or a restart marker.
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])")


# Called with what is wrong with an image that can be decoded in part.
OnDamage = Callable[[str], None]


def decode_jpeg(image: bytes, *, on_damage: OnDamage | None = None) -> Pixels | None:
    """Decode bytes that begin as a JPEG does: the pixels of OpenCV, [H, W, 3] uint8 RGB, or None where it refuses.

    Args:
        image: the bytes of a file.
        on_damage: is called with what libjpeg says is wrong with a file that it decodes nevertheless. Files of more
            than 2^26 pixels, of four colors or of an unusual sampling of the colors, and files with a damaged header
            are decoded by OpenCV, one at a time; of them only the first fault is known.
    """
    refusal = ""
    try:
        count, exif = _read_header(image)
        if 0 < count <= _MAX_PIXELS and len(exif) <= _MAX_EXIF:
            # NumPy's memory begins at a multiple of 16, so one byte further is an odd address.
            pixels: Pixels = simplejpeg.decode_jpeg(image, buffer=np.empty(3 * count + 1, np.uint8)[1:])
            if not exif:
                return pixels
            turn = _turn(exif)
            if turn is not None:
                return turn(pixels)
    except (ValueError, LookupError) as error:
        refusal = str(error)
    with captured_c_stderr() as lines:
        decoded = decode_by_opencv(image)
    damage = next((line for line in [*lines, refusal] if line.startswith(_WARNINGS)), None)
    if decoded is not None and damage is not None and on_damage is not None:
        on_damage(damage)
    return decoded


def decode_by_opencv(image: bytes) -> Pixels | None:
    """The pixels [H, W, 3] uint8 RGB, upright, of any file that OpenCV can decode, else None."""
    with contextlib.suppress(cv2.error):
        return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    return None


def jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Height and width that a JPEG states; None where no frame comes within its first 10,000 segments."""
    at = 2
    with contextlib.suppress(IndexError):
        for _ in range(_MAX_SEGMENTS):
            # As libjpeg does: bytes that are no marker are passed over.
            while not (image[at] == 0xFF and image[at + 1] not in _WITHOUT_LENGTH):
                at = image.find(b"\xff", at + 1)
                if at < 0:
                    return None
            if image[at + 1] in _ALL_FRAMES:
                return image[at + 5] << 8 | image[at + 6], image[at + 7] << 8 | image[at + 8]
            at += 2 + (image[at + 2] << 8 | image[at + 3])
    return None


def has_more_scans(image: bytes, most: int) -> bool:
    """Whether a JPEG has more than `most` scans. What is behind the end of the image does not count."""
    # The exact count takes longer, and is not needed where the bytes of the marker are rare.
    if image.count(b"\xff\xda") <= most:
        return False
    at, count = 2, 0
    while (found := _MARKER.search(image, at)) is not None and found[1] != b"\xd9":
        count += found[1] == b"\xda"
        at = found.end()
        at += int.from_bytes(image[at : at + 2], "big")
    return count > most


def _read_header(image: bytes) -> tuple[int, bytes]:
    """The number of pixels, 0 where a segment is unknown to this walk; and the segments that may hold Exif data."""
    at, count, exif = 2, 0, b""
    while image[at] == 0xFF and len(exif) <= _MAX_EXIF:
        marker = image[at + 1]
        if marker == _START_OF_SCAN:
            return count, exif
        end = at + 2 + (image[at + 2] << 8 | image[at + 3])
        if marker in _SPECIAL:
            if marker != _APP1:
                break
            exif += image[at:end]
        elif marker in _FRAMES and image[at + 9] <= 3:
            count = (image[at + 5] << 8 | image[at + 6]) * (image[at + 7] << 8 | image[at + 8])
        at = end
    return 0, exif


_Turn = Callable[[Pixels], Pixels]


@functools.lru_cache(64)
def _turn(exif: bytes) -> _Turn | None:
    """How OpenCV turns an image with these segments; None where it does not decode an image with them.

    A small image is decoded with them, so that one program reads Exif data.
    """
    plain, turns = _turns()
    upright = decode_by_opencv(plain[:2] + exif + plain[2:])
    return None if upright is None else turns.get(upright.tobytes())


@functools.cache
def _turns() -> tuple[bytes, dict[bytes, _Turn]]:
    """A small JPEG, and the eight ways to turn and mirror an image by what each makes of this one."""
    encoded: bytes = cv2.imencode(".jpg", np.arange(128, dtype=np.uint8).reshape(8, 16))[1].tobytes()
    pixels = decode_by_opencv(encoded)
    if pixels is None:
        raise RuntimeError("OpenCV cannot decode a JPEG that it has written; install it again")
    ways: list[_Turn] = [lambda image: image, *(functools.partial(_flip, axis=axis) for axis in (0, 1, -1))]
    ways += [functools.partial(_flip_transposed, axis=axis) for axis in (None, 0, 1, -1)]
    return encoded, {way(pixels).tobytes(): way for way in ways}


def _flip(image: Pixels, axis: int) -> Pixels:
    return cv2.flip(image, axis)


def _flip_transposed(image: Pixels, axis: int | None) -> Pixels:
    turned: Pixels = cv2.transpose(image)
    return turned if axis is None else cv2.flip(turned, axis)
