"""Whole images of unusual files: with data behind them, large or damaged text, many segments, every kind of pixels."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

_RNG = np.random.default_rng(0)
PIXELS = cv2.resize(_RNG.integers(0, 256, (8, 8, 3), np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def mutate_head(image: bytes, rng) -> bytes:
    """A few bytes changed, most of them among the first hundred."""
    changed = bytearray(image)
    for _ in range(rng.randint(1, 4)):
        at = min(len(changed) - 1, int(rng.expovariate(1 / 40)))
        changed[at] = rng.choice([0, 1, 9, 10, 13, 32, 35, 48, 192, 216, 255, rng.randrange(256)])
    return bytes(changed)


def _cv(suffix: str, *parameters: int, pixels=PIXELS) -> bytes:
    return cv2.imencode(suffix, pixels, parameters)[1].tobytes()


def _pil(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[..., ::-1]).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _files() -> dict[str, bytes]:
    png, jpeg = _cv(".png"), _cv(".jpg")
    head, rest = png[:33], png[33:]
    wrong_checksum = chunk(b"tEXt", b"a\0b")[:-1] + b"\0"
    others = [Image.fromarray(PIXELS)]
    turned = Image.Exif()
    turned[274] = 6
    found = {"png": png, "jpeg": jpeg, "bmp": _cv(".bmp"), "webp": _cv(".webp"), "ppm": _cv(".ppm")}
    found |= {f"{name} and zeros": image + bytes(2 * len(image) + 100) for name, image in found.items()}
    found |= {
        # An MP4 of several MB holds each pair of bytes a hundred times.
        "motion photo": jpeg + b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xe1" * 200 + _RNG.bytes(300_000),
        "png zTXt": head + chunk(b"zTXt", b"a\0\0" + zlib.compress(_RNG.bytes(2 << 20))) + rest,
        "png iTXt": head + chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2 << 20))) + rest,
        "png tEXt": head + chunk(b"tEXt", b"a\0" + b"x" * (2 << 20)) + rest,
        "png wrong text checksum": head + wrong_checksum + rest,
        "png ICC": _pil("PNG", icc_profile=_RNG.bytes(1_500_000)),
        "jpeg ICC": _pil("JPEG", icc_profile=_RNG.bytes(1_500_000)),
        "webp ICC": _pil("WEBP", icc_profile=_RNG.bytes(1_500_000)),
        "jpeg of 150 APP1": jpeg[:2] + b"\xff\xe1\0\x08Exif\0\0" * 150 + jpeg[2:],
        "jpeg comment": jpeg[:2] + b"\xff\xfe\xff\xff" + (b"\xff\xe1\xff\xda" * 20_000)[:65533] + jpeg[2:],
        "jpeg fill bytes": jpeg[:2] + b"\xff" * 50 + jpeg[2:],
        "jpeg progressive": _cv(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "jpeg CMYK": _pil("JPEG", "CMYK"),
        "jpeg gray": _pil("JPEG", "L"),
        "jpeg turned": _pil("JPEG", exif=turned),
        "mpo": _pil("MPO", save_all=True, append_images=others),
        "apng": _pil("PNG", save_all=True, append_images=others),
        "png interlaced 16 bits": _cv(".png", pixels=PIXELS.astype(np.uint16) * 257),
        "png turned": _pil("PNG", exif=turned),
        "webp lossless": _cv(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
        "webp animated": _pil("WEBP", save_all=True, append_images=others),
        "webp alpha": _pil("WEBP", "RGBA"),
        "bmp palette": _pil("BMP", "P"),
        "ppm text": b"P3\n2 2\n255\n" + b"1 2 3 " * 4,
        "ppm comments": b"P6 #a\n# b\n64 #c\n 48\n255\n" + PIXELS.tobytes(),
        "ppm 16 bits": b"P6\f64\t48\r65535\n" + PIXELS.astype(">u2").tobytes(),
    }
    found |= {f"png {mode}": _pil("PNG", mode) for mode in ("1", "L", "LA", "P", "RGBA")}
    return found


ODD = _files()
