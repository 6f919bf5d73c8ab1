"""The built-in data set: letters, digits and symbols in the faces of the DejaVu fonts, without a download.

An identity is a character that at least four faces of the DejaVu fonts draw; matplotlib ships these fonts. Images of an
identity differ in face, position, rotation, scale, shear, colors and noise. Characters that look alike, such as the
Latin, Greek and Cyrillic A, are one identity.

The number of an identity depends on no seed, so that a range of numbers held out of training stays held out. Every
range is a fair sample of all scripts.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from plsc.data.images import Pixels
from plsc.data.records import Labels, Record, Records
from plsc.data.verification_set import VerificationSet
from plsc.errors import ConfigError, DataError
from plsc.metrics.pairs import FOLDS
from plsc.utils.lazy import require

_MIN_FACES = 4
_KINDS = "LNPS"  # Unicode categories: letters, numbers, punctuation, symbols; no marks, blanks or private use
_ALIKE = 0.94  # correlation of canonical drawings; seen on contact sheets to join what 32 x 32 cannot tell apart
_CANON = 24


class GlyphRecords(Records):
    """Images of glyphs, [H, W, 3] uint8 RGB, class by class.

    Record `i` is image `i % images_per_identity` of class `i // images_per_identity`. It depends on
    (seed, first_identity + class, image) and the image size only.

    Args:
        num_identities: C, the number of classes.
        images_per_identity: images of each class.
        image_size: H = W in pixels, 16 to 512.
        seed: 0 or more; decides all variation of the images.
        first_identity: identity of class 0. Sets over disjoint ranges of identities share no class.

    Raises:
        ConfigError: a number is no integer or out of range.
        DataError: there are not as many identities.
        MissingDependencyError: matplotlib or fontTools is not installed.

    Example:
        >>> training = GlyphRecords(num_identities=1000, images_per_identity=20, image_size=32)
        >>> held_out = GlyphRecords(num_identities=500, first_identity=1000)
    """

    uses_global_random = False
    format = "glyph images"

    def __init__(
        self,
        num_identities: int = 1000,
        images_per_identity: int = 20,
        *,
        image_size: int = 32,
        seed: int = 0,
        first_identity: int = 0,
    ) -> None:
        self.num_classes: int = _integer("num_identities", num_identities, 1)
        self.images_per_identity = _integer("images_per_identity", images_per_identity, 1)
        self.image_size = _integer("image_size", image_size, 16, 512)
        self.seed = _integer("seed", seed, 0)
        self.first_identity = _integer("first_identity", first_identity, 0)
        # Part of the object, so that a worker process need not build the table.
        self._glyphs = _identities(self.first_identity, self.num_classes)

    @functools.cached_property
    def labels(self) -> Labels:
        return np.arange(len(self)) // self.images_per_identity

    def __len__(self) -> int:
        return self.num_classes * self.images_per_identity

    def __getitem__(self, index: int) -> Record:
        label, number = self._split(index)
        return Record(self.draw(label, number), label)

    def draw(self, label: int, number: int) -> Pixels:
        """Image `number`, 0 or more, of class `label`: [H, W, 3] uint8 RGB."""
        rng = np.random.default_rng((self.seed, self.first_identity + label, number))
        code_point, faces = self._glyphs[label]
        ink = _ink(faces[rng.integers(len(faces))], code_point, 3 * self.image_size // 2)
        return _paint(_place(ink, self.image_size, rng), rng)

    def describe(self, index: int) -> str:
        label, number = self._split(index)
        return f"glyph U+{self._glyphs[label][0]:04X}, image {number}"

    def _split(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return divmod(int(index), self.images_per_identity)


def glyph_verification_set(
    first_identity: int = 1000,
    num_identities: int = 500,
    *,
    num_pairs: int = 2000,
    image_size: int = 32,
    seed: int = 0,
) -> VerificationSet:
    """Pairs of glyph images of identities that training has not seen.

    In each of the ten folds, the first half of the pairs shows one identity each and the second half two identities
    each. No image is in two pairs.

    Args:
        first_identity, num_identities: the range of identities, two or more.
        num_pairs: P, a multiple of 20.
        image_size: H = W in pixels.
        seed: decides the pairs and the variation of their images.

    Raises:
        ConfigError: a number is no integer or out of range.
        DataError: there are not as many identities.
        MissingDependencyError: matplotlib or fontTools is not installed.
    """
    records = GlyphRecords(
        _integer("num_identities", num_identities, 2),
        1,
        image_size=image_size,
        seed=seed,
        first_identity=first_identity,
    )
    if _integer("num_pairs", num_pairs, 1) % (2 * FOLDS):
        raise ConfigError(
            f"num_pairs: got {num_pairs}, expected a multiple of {2 * FOLDS}, so that each of the "
            f"{FOLDS} folds has as many same as different pairs"
        )
    rng = np.random.default_rng((seed, first_identity, num_identities, num_pairs))
    same = np.tile(np.repeat([True, False], num_pairs // (2 * FOLDS)), FOLDS)
    first = rng.integers(num_identities, size=num_pairs)
    step = np.where(same, 0, rng.integers(1, num_identities, size=num_pairs))
    labels = np.stack([first, (first + step) % num_identities], axis=1).reshape(-1)
    images = [records.draw(int(label), number) for number, label in enumerate(labels)]
    return VerificationSet("glyphs", images, is_same=same, folds=np.repeat(np.arange(FOLDS), num_pairs // FOLDS))


def count_identities() -> int:
    """The number of identities."""
    return len(_table())


def _identities(first: int, count: int) -> list[tuple[int, tuple[int, ...]]]:
    table = _table()
    if first + count > len(table):
        raise DataError(
            f"glyphs: got first_identity={first} and num_identities={count}, expected at most "
            f"{len(table)} together, the number of identities in the fonts"
        )
    return table[first : first + count]


def _integer(name: str, value: int, least: int, most: int | None = None) -> int:
    expected = f"{least} or more" if most is None else f"{least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name}: got {value!r}, expected an integer, {expected}") from None
    if number < least or (most is not None and number > most):
        raise ConfigError(f"{name}: got {number}, expected {expected}")
    return number


# Drawing.


@functools.cache
def _faces() -> tuple[str, ...]:
    matplotlib = require("matplotlib", "matplotlib fonttools", purpose="the glyph data set")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return tuple(sorted(str(path) for path in folder.glob("DejaVu*.ttf")))


@functools.lru_cache(maxsize=64)
def _font(face: int, size: int) -> Any:
    image_font = require("PIL.ImageFont", "Pillow", purpose="the glyph data set")
    # Pillow's other layout depends on how Pillow was built.
    return image_font.truetype(_faces()[face], size, layout_engine=image_font.Layout.BASIC)


def _ink(face: int, code_point: int, size: int) -> Pixels:
    """The glyph at a font size in pixels, cropped to its ink: [h, w] uint8, [0, 0] where it has none."""
    image = require("PIL.Image", "Pillow", purpose="the glyph data set")
    draw = require("PIL.ImageDraw", "Pillow", purpose="the glyph data set")
    font, text = _font(face, size), chr(code_point)
    left, top, right, bottom = font.getbbox(text)
    canvas = image.new("L", (max(1, right - left + 2), max(1, bottom - top + 2)))
    draw.Draw(canvas).text((1 - left, 1 - top), text, fill=255, font=font)
    pixels = np.asarray(canvas)
    x, y, width, height = cv2.boundingRect(pixels)
    return pixels[y : y + height, x : x + width]


def _place(ink: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Ink [h, w] scaled, rotated, sheared and shifted on a field [size, size] uint8."""
    length = size * rng.uniform(0.6, 0.8)
    if max(ink.shape) > 2 * length:  # a warp samples single points and would lose thin strokes
        shrink = 2 * length / max(ink.shape)
        ink = cv2.resize(ink, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    height, width = ink.shape
    scale, angle, shear = length / max(height, width), rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.1)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    rotation = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, shear], [0, 1]])
    center = np.array([width - 1, height - 1]) / 2
    target = (size - 1) / 2 + size * rng.uniform(-0.08, 0.08, size=2)
    return cv2.warpAffine(
        ink, np.column_stack([rotation, target - rotation @ center]), (size, size), flags=cv2.INTER_LINEAR
    )


def _paint(field: Pixels, rng: np.random.Generator) -> Pixels:
    """A field [H, W] uint8 in a random ink color on a random paper color with noise: [H, W, 3] uint8 RGB."""
    paper, ink = rng.uniform(130, 255, 3), rng.uniform(0, 100, 3)
    noise = rng.standard_normal((*field.shape, 3), np.float32)
    noise *= np.float32(rng.uniform(2, 14))
    noise += paper.astype(np.float32)
    noise += (field[:, :, None] * np.float32(1 / 255)) * (ink - paper).astype(np.float32)
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


# The table of identities.


@functools.cache
def _table() -> list[tuple[int, tuple[int, ...]]]:
    """All identities in their fixed order: a code point, and the faces that draw it."""
    faces = _faces_by_code_point()
    points, drawings = [], []
    for point in sorted(faces):
        drawing = _canonical(_ink(faces[point][0], point, 48))
        if drawing is not None:
            points.append(point)
            drawings.append(drawing)
    first_of = _merge_alike(np.stack(drawings))
    identities = [point for place, point in enumerate(points) if first_of[place] == place]
    # Sorted by hash: other versions of the fonts, with a few glyphs more or less, keep the order of the rest.
    identities.sort(key=lambda point: hashlib.sha256(str(point).encode()).digest())
    return [(point, faces[point]) for point in identities]


def _faces_by_code_point() -> dict[int, tuple[int, ...]]:
    fonts = require("fontTools.ttLib", "matplotlib fonttools", purpose="the glyph data set")
    found: dict[int, list[int]] = {}
    for face, path in enumerate(_faces()):
        with fonts.TTFont(path, lazy=True) as font:
            for point in font.getBestCmap():
                found.setdefault(point, []).append(face)
    plain = next(face for face, path in enumerate(_faces()) if Path(path).name == "DejaVuSans.ttf")
    # The plain face comes first, because characters are compared as it draws them.
    return {
        point: tuple(sorted(drawn, key=lambda face: face != plain))
        for point, drawn in found.items()
        if len(drawn) >= _MIN_FACES and unicodedata.category(chr(point))[0] in _KINDS
    }


def _canonical(ink: Pixels) -> npt.NDArray[np.float32] | None:
    """Ink at a fixed size, centered and slightly blurred: [24, 24], integers 0 to 63; None for hardly any ink."""
    if (ink > 127).sum() < 6:
        return None
    scale = (_CANON - 4) / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    canvas = np.zeros([_CANON, _CANON], np.float32)
    top, left = (_CANON - height) // 2, (_CANON - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)
    canonical: npt.NDArray[np.float32] = np.rint(cv2.GaussianBlur(canvas, (0, 0), 0.8) * (63 / 255))
    return canonical


def _merge_alike(drawings: npt.NDArray[np.float32]) -> Labels:
    """For each of n drawings [n, 24, 24] the first drawing of its cluster, [n]. Drawings that look alike are linked,
    and a cluster is all that links connect."""
    rows = drawings.reshape(len(drawings), -1).astype(np.float32)
    sums, pixels = rows.sum(axis=1, dtype=np.float64), rows.shape[1]
    spreads = np.sqrt(pixels * np.square(rows, dtype=np.float64).sum(axis=1) - sums * sums)
    parent = list(range(len(rows)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    for start in range(0, len(rows), 512):
        block = slice(start, start + 512)
        # Sums of products of six-bit integers stay below 2^24, where float32 is exact, so the result is the same on
        # every machine.
        covariance = pixels * (rows[block] @ rows.T).astype(np.float64) - np.outer(sums[block], sums)
        alike = covariance > _ALIKE * np.outer(spreads[block], spreads)
        for one, other in zip(*np.nonzero(alike)):
            low, high = sorted((root(start + int(one)), root(int(other))))
            parent[high] = low
    return np.array([root(place) for place in range(len(rows))])
