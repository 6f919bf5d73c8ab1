"""Encoded images: the table of image kinds, decoding, resizing and encoding."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from plsc.data.image_size import stated_size
from plsc.data.jpeg import OnDamage as OnDamage
from plsc.data.jpeg import Pixels as Pixels
from plsc.data.jpeg import decode_by_opencv, decode_jpeg
from plsc.data.png import without_text
from plsc.errors import DataError
from plsc.utils.c_stderr import quiet_c_stderr
from plsc.utils.plural import counted

# OpenCV's own messages about a damaged image name no file; the DataError does.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_FATAL)

# The limits of OpenCV, which the environment may change (OPENCV_IO_MAX_IMAGE_PIXELS and others).
_MAX_PIXELS, _MAX_SIDE = 1 << 30, 1 << 20


class ImageKind(NamedTuple):
    """One format of image files. The table has those that OpenCV decodes to 8 bits a color.

    Attributes:
        name: Pillow's name of the format.
        suffixes: of file names, in lower case; files that the library writes get the first.
        starts: first bytes of a file, any of them.
        beside: whether such a file beside an image of another kind is no image of the sample: a GIF beside a JPEG is a
            preview, a PGM a mask.
        served: whether the HTTP server decodes it. The decoders of the other formats have a history of security holes.
        end: bytes without which a file is truncated; empty where the format has none.
    """

    name: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...]
    beside: bool = False
    served: bool = False
    end: bytes = b""


def _starts_of_pnm(digits: str) -> tuple[bytes, ...]:
    return tuple(f"P{digit}{blank}".encode() for digit in digits for blank in "\n \t\r\v\f")


# A box of 16 bytes and 4 for each brand, whose length comes first.
_STARTS_OF_AVIF = tuple(
    length.to_bytes(4, "big") + brand for length in range(16, 68, 4) for brand in (b"ftypavif", b"ftypavis")
)

IMAGE_KINDS = (
    ImageKind("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), (b"\xff\xd8\xff",), served=True, end=b"\xff\xd9"),
    ImageKind("PNG", (".png", ".apng"), (b"\x89PNG",), served=True, end=b"IEND\xaeB`\x82"),
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


def kind_of(image: bytes) -> ImageKind | None:
    """The format that fits an image's first bytes; readers decide by content, not by suffix."""
    return next((kind for kind in IMAGE_KINDS if image.startswith(kind.starts)), None)


def suffix_of(image: bytes, unknown: str = ".jpg") -> str:
    """The file suffix that fits an image's first bytes, or `unknown`."""
    kind = kind_of(image)
    return unknown if kind is None else kind.suffixes[0]


def decode(image: bytes | npt.NDArray[Any], *, on_damage: OnDamage | None = None) -> Pixels:
    """Encoded bytes to pixels [H, W, 3] uint8 RGB; an array of such pixels is returned as it is.

    Args:
        image: the bytes of a file, or pixels.
        on_damage: is called with the words of libjpeg where a JPEG is damaged but can be decoded, so that a part of the
            pixels may be wrong. The decoders of other formats either refuse a damaged file or do not notice.

    Raises:
        DataError: no bytes, bytes that OpenCV cannot decode, or an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return np.ascontiguousarray(image)
        raise DataError(f"got an array {list(image.shape)} of {image.dtype}, expected [H, W, 3] of uint8")
    if not image:
        raise DataError("the image is empty (0 bytes)")
    if image[:2] == b"\xff\xd8":
        pixels = decode_jpeg(image, on_damage=on_damage)
    else:
        with quiet_c_stderr():
            pixels = decode_by_opencv(without_text(image) if image.startswith(b"\x89PNG") else image)
    if pixels is None:
        raise DataError(_refusal(image))
    return pixels


def _refusal(image: bytes) -> str:
    kind = kind_of(image)
    if kind is not None and kind.end and kind.end not in image:
        return f"no image: a truncated {kind.name} of {counted(len(image), 'byte')}, whose end is missing"
    size = stated_size(image, kind.name) if kind is not None and kind.served else None
    if size is not None and (max(size) > _MAX_SIDE or size[0] * size[1] > _MAX_PIXELS):
        return f"{size[1]} x {size[0]} pixels, more than OpenCV decodes: {_MAX_PIXELS} in all, {_MAX_SIDE} a side"
    found = counted(len(image), "byte")
    return f"{found} that are no image known to OpenCV, or a damaged one (they begin with {bytes(image[:8])!r})"


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
