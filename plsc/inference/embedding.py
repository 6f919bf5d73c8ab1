"""The path from an image to its embedding. Every user of a trained network takes it.

    image --prepare--> pixels [3, H, W] uint8 --to_input--> network input --network--> outputs --to_embeddings--> [N, D]

The embedding of an image x under the network f is e / max(|e|, EPSILON), where

    e = f(x) + f(mirror(x))    if `flip` is set
    e = f(x)                   otherwise

The rule for zero length: an embedding of length EPSILON = 1e-12 or more is brought to length 1. The zero embedding
stays zero, so that its cosine with every embedding is 0 and no NaN arises. The rule is written in five places that
share no code: `to_unit_length` here (NumPy), `BakedNetwork` in plsc/export/baking.py (Paddle operators), web_service.py
of the Paddle Serving pipeline (runs without this library), plsc/metrics/embeddings.py (float64, in blocks) and
plsc/losses/reference.py (features in training, with a gradient of its own). tests/inference/test_embedding.py compares
them. A gallery refuses an embedding shorter than EPSILON, since it is similar to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.data.images import OnDamage
from plsc.data.transforms import Channels, Transform, normalize
from plsc.errors import DataError
from plsc.metrics.embeddings import EPSILON
from plsc.utils.finite import find_nonfinite

Pixels = NDArray[np.uint8]
Embeddings = NDArray[np.float32]
COSINE_DECIMALS = 7


@dataclass(frozen=True, kw_only=True)
class EmbeddingPath:
    """What happens to an image before and after the network.

    Attributes:
        image_shape: (3, H, W) of the network.
        flip: the embedding is the sum over the image and its mirror image.
        pixel_mean: mean of the normalization (pixel - mean) / std, in units of 0 to 255; one number, or one each for
            red, green and blue.
        pixel_std: standard deviation of the normalization, in the same form.
        takes_pixels: the network resizes and normalizes by itself. Its input is pixels [N, H', W', 3] uint8 of any
            H' and W'. Otherwise its input is normalized images [N, 3, H, W] float32.
        gives_unit: the network itself sums over mirror images, where `flip` is set, and brings embeddings to unit
            length.
        bgr: the channels of pixels [N, H', W', 3] are in the order blue, green, red. Only with `takes_pixels`.

    Example:
        >>> path = EmbeddingPath(image_shape=(3, 112, 112), flip=True, pixel_mean=127.5, pixel_std=128.0)
        >>> pixels = np.stack([path.prepare(image) for image in images])
        >>> embeddings = path.to_embeddings(network(path.to_input(pixels)), len(pixels))
    """

    image_shape: tuple[int, int, int]
    flip: bool
    pixel_mean: Channels
    pixel_std: Channels
    takes_pixels: bool = False
    gives_unit: bool = False
    bgr: bool = False

    def prepare(self, image: Any, *, on_damage: OnDamage | None = None) -> NDArray[Any]:
        """Decode and resize one image to [3, H, W] uint8 RGB.

        Args:
            image: encoded bytes, or pixels [H', W', 3] uint8 RGB. A [3, H, W] float32 array counts as normalized and
                is returned as it is.
            on_damage: is called where the image is damaged but can be decoded, see `plsc.data.images.decode`.

        Raises:
            DataError: the image cannot be decoded, is an array of another shape or type, or holds NaN or infinity; or
                it is normalized, and the network normalizes by itself.
        """
        prepared = Transform(self.image_shape)(image, on_damage=on_damage)
        found = find_nonfinite(prepared)
        if found is not None:
            raise DataError(f"got an image of float32 that holds {found[1]:g}, expected finite numbers")
        if self.takes_pixels and prepared.dtype != np.uint8:
            raise DataError(
                f"got a finished image {list(prepared.shape)} of {prepared.dtype}, expected pixels [H, W, 3] of uint8: "
                f"the network was exported with bake='preprocess' and normalizes by itself"
            )
        return prepared

    def normalize(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(pixels - mean) / std of [..., 3, H, W] uint8; float32 counts as normalized and is returned as it is."""
        normalized: NDArray[np.float32] = normalize(pixels, mean=self.pixel_mean, std=self.pixel_std)
        return normalized

    def to_input(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The network's input for images [N, 3, H, W].

        Args:
            pixels: uint8 RGB; without `takes_pixels` also normalized float32.

        Returns:
            N rows, or 2 N rows where mirror images are summed outside of the network: the images, then their mirror
            images.
        """
        if self._sums_mirror_images:
            pixels = np.concatenate([pixels, pixels[..., ::-1]])
        if self.takes_pixels:
            return np.ascontiguousarray((pixels[:, ::-1] if self.bgr else pixels).transpose(0, 2, 3, 1))
        return self.normalize(pixels)

    def sum_mirror_images(self, outputs: Embeddings, count: int) -> Embeddings:
        """Embeddings [count, D], not of unit length, of the network's outputs for `to_input` of `count` images."""
        return outputs[:count] + outputs[count:] if self._sums_mirror_images else outputs

    def to_embeddings(self, outputs: Embeddings, count: int) -> Embeddings:
        """Embeddings [count, D] of unit length, of the network's outputs for `to_input` of `count` images."""
        return outputs if self.gives_unit else to_unit_length(self.sum_mirror_images(outputs, count))

    def to_features(self, outputs: Embeddings, count: int) -> Embeddings:
        """Features [count, D] of any length, as training makes them: the mean over mirror images where `flip` is set.

        Only without `gives_unit`.
        """
        features = self.sum_mirror_images(outputs, count)
        return features * np.float32(0.5) if self._sums_mirror_images else features

    @property
    def _sums_mirror_images(self) -> bool:
        return self.flip and not self.gives_unit


def to_unit_length(embeddings: Embeddings) -> Embeddings:
    """e / max(|e|, EPSILON) of each row e of [N, D]; the zero embedding stays zero."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: Embeddings = embeddings / np.maximum(lengths, EPSILON)
    return unit


def cosines(embeddings: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each row of [n, D] with the embedding [D]: n numbers in [-1, 1], rounded to 7 decimals.

    Embeddings in float32 give no more than 7 decimals. Rounded there, an embedding has cosine 1 with itself, and the
    cosine of two does not depend on how many others are computed with it. 0 where an embedding is zero.
    """
    wide, probe = np.asarray(embeddings, np.float64), np.asarray(other, np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(probe)
    rounded = np.round(wide @ probe / np.maximum(lengths, EPSILON), COSINE_DECIMALS)
    found: NDArray[np.float64] = np.clip(rounded, -1, 1)
    return found


def reaches(cosine: float, threshold: float) -> bool:
    """Whether a cosine reaches the threshold. The threshold is rounded as cosines are."""
    return cosine >= round(threshold, COSINE_DECIMALS)


def check_finite(embeddings: Embeddings, *, first: int = 0, describe: Callable[[int], str] | None = None) -> None:
    """Check embeddings [n, D], of any length, of the images from number `first` on.

    Args:
        embeddings: are checked.
        first: number of the first image.
        describe: the number of an image -> what messages call it.

    Raises:
        DataError: one holds NaN or infinity; names the image by its number, or as `describe` does.
    """
    found = find_nonfinite(embeddings)
    if found is not None:
        (row, _), value = found
        name = f"image {first + row}" if describe is None else describe(first + row)
        raise DataError(
            f"{name}: its embedding holds {value:g}, expected finite numbers; the network has "
            f"diverged, or the image is beyond what it was trained on"
        )
