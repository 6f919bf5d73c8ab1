"""Alignment of faces to the standard position by five landmarks, as face recognition networks expect it.

The transform is the similarity (rotation, uniform scale, shift; no mirror) with the least squared error: Umeyama,
"Least-squares estimation of transformation parameters between two point patterns", PAMI 1991. The positions in the
112 x 112 image are those of ArcFace and the public face sets.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from plsc.data.images import Pixels
from plsc.errors import DataError
from plsc.utils.files import text_lines
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# Left eye, right eye, tip of the nose, left and right corner of the mouth, as seen in the image: (x, y) in pixels.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE_SIZE = 112
# Root mean square distance from the template, in pixels, above which points are taken for no face. Faces are at 2 to 5,
# in profile up to 13; points in another order are at 14 or more.
_FAR = 12
_CHECKED = 1000  # images of a set


def similarity_transform(source: Any, target: Any) -> npt.NDArray[np.float64]:
    """The similarity that maps `source` points to `target` points with the least squared error.

    Args:
        source, target: [n, 2] points (x, y), n of 2 or more, not all the same.

    Returns:
        matrix [2, 3] float64: target is about matrix[:, :2] @ point + matrix[:, 2].

    Raises:
        DataError: other shapes, points that are not finite, or source points that are all the same.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise DataError(
            f"got points {list(source.shape)} and {list(target.shape)}, expected [n, 2] twice, n of 2 or more"
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise DataError(f"landmarks {source.tolist()} are not all finite")
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_centered, target_centered = source - source_mean, target - target_mean
    variance = (source_centered**2).sum() / len(source)
    if variance < 1e-12:
        raise DataError(f"landmarks {source.tolist()} lie on one point")
    u, singular, v = np.linalg.svd(target_centered.T @ source_centered / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])  # -1 where the best fit would mirror
    rotation = u @ np.diag(signs) @ v
    scale = (singular * signs).sum() / variance
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def align(pixels: Pixels, landmarks: Any, *, image_size: int = TEMPLATE_SIZE) -> Pixels:
    """Warp an image so that its five landmarks move to the positions of the template.

    Args:
        pixels: [H, W, 3] uint8.
        landmarks: [5, 2] (x, y) in pixels: left eye, right eye, nose, left and right corner of the mouth, left
            and right as seen in the image.
        image_size: side of the result in pixels; the template is scaled to it.

    Returns:
        [image_size, image_size, 3] uint8, black where the image does not reach.

    Raises:
        DataError: landmarks of another shape, not finite, or all on one point.
    """
    if np.shape(landmarks) != (5, 2):
        raise DataError(f"landmarks: got {list(np.shape(landmarks))}, expected [5, 2]: eyes, nose, mouth corners")
    # The center of pixel (0, 0) is at (0.5, 0.5) from the corner of the image, and the corner is what scaling keeps.
    scale = image_size / TEMPLATE_SIZE
    matrix = similarity_transform(landmarks, (TEMPLATE + 0.5) * scale - 0.5)
    return cv2.warpAffine(pixels, matrix, (image_size, image_size), flags=cv2.INTER_LINEAR)


def read_landmarks(path: str | Path, count: int) -> npt.NDArray[np.float32]:
    """Landmarks of a whole set: a `.npy` of [n, 5, 2], or text with one line per image, in the order of the set.

    A line is x1 y1 ... x5 y5, separated by white space or commas. A name may stand before the numbers.

    Args:
        path: the file.
        count: n, the images of the set.

    Returns:
        [n, 5, 2] float32.

    Raises:
        DataError: not as many lines as images, or a line without ten numbers; names the line.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            points = np.load(path, allow_pickle=False)
        else:
            lines = enumerate(text_lines(path, "the landmarks"), start=1)
            points = np.array([_ten_numbers(path, number, line.strip()) for number, line in lines if line.strip()])
            points = points.reshape(-1, 5, 2)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: the landmarks cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(points, np.ndarray) or points.shape != (count, 5, 2) or points.dtype.kind not in "fiu":
        found = f"{list(points.shape)} of {points.dtype}" if isinstance(points, np.ndarray) else "several arrays"
        raise DataError(
            f"{path}: found {found}, expected [{count}, 5, 2], five points (x, y) for each of {count} "
            f"images: in a text, a line x1 y1 ... x5 y5 each"
        )
    _warn_of_another_order(path, points)
    return points.astype(np.float32)


def _ten_numbers(path: Path, number: int, line: str) -> list[float]:
    parts = line.replace(",", " ").split()
    try:
        # A number before or after the ten is a label or a score.
        if len(parts) == 10 or len(parts) > 10 and not _is_number(parts[-11]):
            return [float(part) for part in parts[-10:]]
    except ValueError:
        pass
    raise DataError(
        f"{path}, line {number}: got {line[:120]!r}, expected ten numbers x1 y1 ... x5 y5, and before them "
        f"nothing but a name"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _warn_of_another_order(path: Path, points: npt.NDArray[Any]) -> None:
    """Warn where the points are those of no face: given as x1 ... x5 y1 ... y5, or with left and right exchanged."""
    chosen = points[np.unique(np.linspace(0, len(points) - 1, min(len(points), _CHECKED)).astype(int))]
    far = sum(_distance(face) > _FAR for face in chosen)
    if 2 * far > len(chosen):
        log.warning(
            "%s: in %d of %s checked the points are those of no face; expected x1 y1 ... x5 y5, the "
            "eyes, the nose and the corners of the mouth, left and right as seen in the image",
            path,
            far,
            counted(len(chosen), "image"),
        )


def _distance(face: npt.NDArray[Any]) -> float:
    """The root mean square distance of five aligned points from the template, in pixels of the template."""
    try:
        matrix = similarity_transform(face, TEMPLATE)
    except DataError:
        return float("inf")
    return float(np.sqrt(((face @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE) ** 2).sum(1).mean()))
