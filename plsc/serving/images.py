"""Images from clients: each is checked before it is decoded, because a client may send anything."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from plsc.data.images import SERVED_FORMATS, OnDamage
from plsc.errors import DataError
from plsc.inference.embedding import Pixels
from plsc.inference.model_card import ModelCard
from plsc.serving.http_error import HTTPError

# A baseline JPEG has one scan, a progressive one about ten, and a photograph a few EXIF segments. A small file can hold
# thousands, and then reading its header or decoding it takes minutes.
_MAX_SEGMENTS = 100
# Bytes that the second half of a complete file contains.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


def decode_images(
    encoded: Sequence[bytes], card: ModelCard, *, max_pixels: int, on_damage: OnDamage | None = None
) -> Pixels:
    """Decode and resize images to pixels [N, 3, H, W] uint8 RGB of the model's size.

    Args:
        encoded: N encoded images.
        card: the model's.
        max_pixels: largest accepted height times width.
        on_damage: is called for each image that is damaged but can be decoded in part.

    Raises:
        HTTPError: 400 one is no image or truncated, 413 one has more than `max_pixels` pixels.
    """
    rows = []
    for index, image in enumerate(encoded):
        _check(index, image, max_pixels)
        try:
            rows.append(card.prepare(image, on_damage=on_damage))
        except DataError as error:
            raise HTTPError(400, f"image {index}: {error}") from None
    return np.stack(rows)


def _check(index: int, image: bytes, max_pixels: int) -> None:
    # Inside a scan's data 0xff is always followed by 0 or a restart marker, so that the count is exact.
    if image[:2] == b"\xff\xd8" and max(image.count(b"\xff\xda"), image.count(b"\xff\xe1")) > _MAX_SEGMENTS:
        raise HTTPError(400, f"image {index}: a JPEG of more than {_MAX_SEGMENTS} scans or EXIF segments")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Image.open(io.BytesIO(image), formats=SERVED_FORMATS)
    except Image.DecompressionBombError:
        raise HTTPError(413, f"image {index}: more than {max_pixels} pixels, the limit") from None
    except Exception:
        # Pillow's readers raise many classes of errors at a damaged header.
        raise HTTPError(
            400,
            f"image {index}: {len(image)} bytes that begin with {bytes(image[:8])!r}, expected one of "
            f"{', '.join(SERVED_FORMATS)}",
        ) from None
    width, height = found.size
    if width * height > max_pixels:
        raise HTTPError(413, f"image {index}: {width} x {height} pixels, expected {max_pixels} in all at most")
    end = _ENDS.get(found.format or "")
    if end is not None and image.rfind(end, len(image) // 2) < 0:
        # OpenCV would fill the missing part with gray.
        raise HTTPError(400, f"image {index}: a truncated {found.format} of {len(image)} bytes; send it whole")
