"""Images from clients: each is checked before it is decoded, because a client may send anything.

The decoder and its verdict are those of every other user of an image (`plsc.data.images.decode`). In addition there are
a list of formats, a limit on the pixels and one on the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plsc.data.image_size import stated_size
from plsc.data.images import SERVED_FORMATS, OnDamage, kind_of
from plsc.data.jpeg import has_more_scans
from plsc.errors import DataError
from plsc.inference.embedding import Pixels
from plsc.inference.model_card import ModelCard
from plsc.serving.http_error import HTTPError
from plsc.utils.plural import counted

# A baseline JPEG has one scan and a progressive one about ten. A small file can hold thousands, each of which goes over
# all pixels, so that decoding takes minutes.
_MAX_SCANS = 100


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
    kind = kind_of(image)
    size = stated_size(image, kind.name) if kind is not None and kind.served else None
    if kind is None or size is None:
        raise HTTPError(
            400,
            f"image {index}: {counted(len(image), 'byte')} that begin with {bytes(image[:8])!r}, expected one of "
            f"{', '.join(SERVED_FORMATS)} with a header that is whole",
        )
    height, width = size
    if width * height > max_pixels:
        raise HTTPError(413, f"image {index}: {width} x {height} pixels, expected {max_pixels} in all at most")
    if kind.name == "JPEG" and has_more_scans(image, _MAX_SCANS):
        raise HTTPError(400, f"image {index}: a JPEG of more than {_MAX_SCANS} scans")
