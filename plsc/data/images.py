"""Encoded images: the table of image kinds, decoding, resizing and encoding.

JPEGs are decoded by libjpeg-turbo (simplejpeg) to the pixels that OpenCV gives, a fifth faster at 112 x 112. OpenCV
uses the same library, but chooses where the pixels are written. The library's conversion to RGB writes each row that
begins at a multiple of 32 bytes past the caches, so that the next step must read the row back from memory. At widths
of 112, 160 or 224 pixels this concerns every second row or all rows. No row begins at such an address if the first
row begins at an odd address and rows have an even length; simplejpeg lets the caller choose the address.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from plsc.errors import DataError

# OpenCV's own messages about a damaged image name no file; the DataError does.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_FATAL)

# [H, W, 3] uint8 RGB. The annotations of OpenCV do not say that its results are uint8.
Pixels = npt.NDArray[Any]


class ImageKind(NamedTuple):
    """One format of image files. The table has those that OpenCV decodes to 8 bits a color.

    Attributes:
        name: Pillow's name of the format.
        suffixes: of file names, in lower case; files that the library writes get the first.
        starts: first bytes of a file, any of them.
        beside: whether such a file beside an image of another kind is no image of the sample: a GIF beside a JPEG is a
            preview, a PGM a mask.
        served: whether the HTTP server decodes it. The decoders of the other formats have a history of security holes.
    """

    name: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...]
    beside: bool = False
    served: bool = False


def _starts_of_pnm(digits: str) -> tuple[bytes, ...]:
    return tuple(f"P{digit}{blank}".encode() for digit in digits for blank in "\n \t\r")


# A box of 16 bytes and 4 for each brand, whose length comes first.
_STARTS_OF_AVIF = tuple(
    length.to_bytes(4, "big") + brand for length in range(16, 68, 4) for brand in (b"ftypavif", b"ftypavis")
)

IMAGE_KINDS = (
    ImageKind("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), (b"\xff\xd8\xff",), served=True),
    ImageKind("PNG", (".png", ".apng"), (b"\x89PNG",), served=True),
    ImageKind("BMP", (".bmp", ".dib"), (b"BM",), served=True),
    ImageKind("WEBP", (".webp",), (b"RIFF",), served=True),
    ImageKind("TIFF", (".tif", ".tiff"), (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ImageKind("GIF", (".gif",), (b"GIF8",), beside=True),
    ImageKind("JPEG2000", (".jp2", ".j2k"), (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"), beside=True),
    ImageKind("AVIF", (".avif",), _STARTS_OF_AVIF, beside=True),
    # Pillow calls all three PPM.
    ImageKind("PPM", (".pbm",), _starts_of_pnm("14"), beside=True, served=True),
    ImageKind("PPM", (".pgm",), _starts_of_pnm("25"), beside=True, served=True),
    ImageKind("PPM", (".ppm", ".pnm"), _starts_of_pnm("36"), beside=True, served=True),
    ImageKind("PAM", (".pam",), (b"P7\n",), beside=True),
    ImageKind("SUN", (".ras", ".sr"), (b"\x59\xa6\x6a\x95",), beside=True),
)
IMAGE_SUFFIXES = tuple(suffix for kind in IMAGE_KINDS for suffix in kind.suffixes)
BESIDE_SUFFIXES = tuple(suffix for kind in IMAGE_KINDS if kind.beside for suffix in kind.suffixes)
IMAGE_STARTS = tuple(start for kind in IMAGE_KINDS for start in kind.starts)
SERVED_FORMATS = tuple(dict.fromkeys(kind.name for kind in IMAGE_KINDS if kind.served))
KIND_NAMES = ", ".join(dict.fromkeys(kind.name for kind in IMAGE_KINDS))


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def suffix_of(image: bytes, unknown: str = ".jpg") -> str:
    """The file suffix that fits an image's first bytes, or `unknown`; readers decide by content, not by suffix."""
    starts = ((start, kind.suffixes[0]) for kind in IMAGE_KINDS for start in kind.starts)
    return next((suffix for start, suffix in starts if image.startswith(start)), unknown)


def decode(image: bytes | npt.NDArray[Any]) -> Pixels:
    """Encoded bytes to pixels [H, W, 3] uint8 RGB; an array of such pixels is returned as it is.

    Raises:
        DataError: no bytes, bytes that OpenCV cannot decode, or an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return np.ascontiguousarray(image)
        raise DataError(f"got an array {list(image.shape)} of {image.dtype}, expected [H, W, 3] of uint8")
    if not image:
        raise DataError("the image is empty (0 bytes)")
    pixels: Pixels | None = decode_jpeg(image)
    if pixels is None:
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise DataError(
            f"{len(image)} bytes that are no image known to OpenCV, or a damaged one (they begin with "
            f"{bytes(image[:8])!r})"
        )
    return pixels


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Pixels [H, W, 3] to `size` (height, width): area averaging where the height shrinks, else linear."""
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = pixels.shape[0] > height
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def encode(image: bytes | Pixels, suffix: str = ".png", *, parameters: Sequence[int] = ()) -> bytes:
    """Pixels [H, W, 3] uint8 RGB as the bytes of a file; encoded bytes are returned as they are.

    Args:
        image: pixels or encoded bytes.
        suffix: the format. PNG, the default, loses nothing.
        parameters: of `cv2.imencode`, as (cv2.IMWRITE_JPEG_QUALITY, 95).

    Raises:
        DataError: the format cannot hold as many pixels.
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
    written: bytes = encoded.tobytes()
    return written


# Larger images outgrow the caches wherever their rows begin, and OpenCV limits the number of pixels.
_MAX_PIXELS = 1 << 20
_FRAMES, _START_OF_SCAN = (0xC0, 0xC1, 0xC2), 0xDA
# APP1, which holds Exif data; and markers that have no length.
_NOT_WALKED = frozenset([0xE1, 0x00, 0x01, 0xFF, *range(0xD0, 0xDA)])


def decode_jpeg(image: bytes) -> Pixels | None:
    """The pixels [H, W, 3] uint8 RGB of a JPEG, or None where OpenCV must decode the image.

    None: the bytes are no JPEG, or one that is damaged, larger than a megapixel, of four colors, or possibly rotated
    by its Exif data.
    """
    try:
        if image[:2] == b"\xff\xd8" and 0 < (count := _jpeg_pixels(image)) <= _MAX_PIXELS:
            # NumPy's memory begins at a multiple of 16, so one byte further is an odd address.
            pixels: Pixels = simplejpeg.decode_jpeg(image, buffer=np.empty(3 * count + 1, np.uint8)[1:])
            return pixels
    except (ValueError, LookupError):
        pass
    return None


def _jpeg_pixels(image: bytes) -> int:
    """The number of pixels of a JPEG; 0 where a segment may hold Exif data or is unknown to this walk."""
    at, count = 2, 0
    while image[at] == 0xFF:
        marker = image[at + 1]
        if marker == _START_OF_SCAN:
            return count
        if marker in _NOT_WALKED:
            return 0
        if marker in _FRAMES and image[at + 9] <= 3:
            count = (image[at + 5] << 8 | image[at + 6]) * (image[at + 7] << 8 | image[at + 8])
        at += 2 + (image[at + 2] << 8 | image[at + 3])
    return 0
