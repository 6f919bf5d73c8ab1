"""PNG files without their text, which costs time and says nothing of the pixels."""

from __future__ import annotations

_SIGNATURE = 8  # bytes
_COMPRESSED = (b"zTXt", b"iTXt")


def without_text(image: bytes) -> bytes:
    """A PNG without its compressed text chunks.

    libpng unpacks each of them, to 8 MB at most. A file of 1 MB can hold a thousand, for which it needs ten seconds.
    """
    if not any(kind in image for kind in _COMPRESSED):
        return image
    kept, at = [image[:_SIGNATURE]], _SIGNATURE
    while at < len(image):
        # Length, type, data, checksum.
        end = at + 12 + int.from_bytes(image[at : at + 4], "big")
        if image[at + 4 : at + 8] not in _COMPRESSED:
            kept.append(image[at:end])
        at = end
    return b"".join(kept)
