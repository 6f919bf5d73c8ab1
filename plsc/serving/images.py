"""Images from strangers: what they claim to be is looked at before they are decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from plsc.data.images import SERVED_FORMATS
from plsc.errors import DataError
from plsc.inference.model_card import ModelCard
from plsc.serving.http_error import Refused

# Baseline JPEGs have one scan, progressive ones about ten, and photographs a few EXIF segments. Of thousands, which a
# small file has room for, decoding or reading the header takes minutes.
_MAX_SEGMENTS = 100
# What the second half of an intact file holds.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


def decode_images(encoded: Sequence[bytes], description: ModelCard, max_pixels: int) -> np.ndarray:
    """Encoded images to pixels [N, 3, H, W] uint8 RGB of the model's size.

    Raises:
        Refused: one is no image, is truncated, or has more than `max_pixels` pixels.
    """
    rows = []
    for index, image in enumerate(encoded):
        _check(index, image, max_pixels)
        try:
            rows.append(description.prepare(image))
        except DataError as error:
            raise Refused(400, f"image {index}: {error}") from None
    return np.stack(rows)


def _check(index: int, image: bytes, max_pixels: int) -> None:
    # Within a scan's data a 0xff is always followed by 0 or a restart mark, so these are no accidents.
    if image[:2] == b"\xff\xd8" and max(image.count(b"\xff\xda"), image.count(b"\xff\xe1")) > _MAX_SEGMENTS:
        raise Refused(400, f"image {index}: a JPEG of more than {_MAX_SEGMENTS} scans or EXIF segments")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Image.open(io.BytesIO(image), formats=SERVED_FORMATS)
    except Image.DecompressionBombError:
        raise Refused(413, f"image {index}: more than {max_pixels} pixels, the most that is taken") from None
    except Exception:
        # Pillow's readers raise whatever a damaged header makes them stumble on.
        raise Refused(
            400,
            f"image {index}: {len(image)} bytes that begin with {bytes(image[:8])!r}, expected one of "
            f"{', '.join(SERVED_FORMATS)}",
        ) from None
    width, height = found.size
    if width * height > max_pixels:
        raise Refused(413, f"image {index}: {width} x {height} pixels, expected {max_pixels} in all at most")
    end = _ENDS.get(found.format or "")
    if end is not None and image.rfind(end, len(image) // 2) < 0:
        # OpenCV would fill what is missing with gray.
        raise Refused(400, f"image {index}: a truncated {found.format} of {len(image)} bytes; send it whole")
