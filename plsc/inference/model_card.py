"""What an exported model takes and gives: `plsc_model.json`, read without Paddle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.transforms import Channels, Transform, normalize
from plsc.errors import ServingError

FORMAT = "plsc-inference-model"
ABOUT_FILE = "plsc_model.json"
MODEL_PREFIX = "model"


@dataclass(frozen=True)
class ModelDescription:
    """An exported model's inputs and outputs.

    Attributes:
        directory: the folder of the export.
        image_shape: (3, H, W) of the backbone.
        emb_dim: D.
        flip: an embedding is of the image and its mirror image together.
        takes_pixels: the model takes pixels [N, H', W', 3] uint8, pre-processing baked in;
            otherwise images [N, 3, H, W] float32.
        gives_unit: the model gives embeddings of unit length, flip included.
        bgr: of a model that takes pixels, blue first.
        weights: a digest of the network's weights, whatever was baked in; empty where the export says none.
        plain_kernels: fused ones compute something else, so that it must do without them.
        pixel_mean, pixel_std: of the normalization (pixel - mean) / std; red, green, blue.
    """

    directory: Path
    image_shape: tuple[int, int, int]
    emb_dim: int
    flip: bool
    takes_pixels: bool
    gives_unit: bool
    bgr: bool
    weights: str
    plain_kernels: bool
    pixel_mean: Channels
    pixel_std: Channels

    @property
    def model_file(self) -> Path:
        return self.directory / f"{MODEL_PREFIX}.json"

    @property
    def fingerprint(self) -> str:
        """The same for models that give the same for the same input."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    @property
    def input_dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.takes_pixels else np.float32)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input; -1 where it is free."""
        return (-1, -1, 3) if self.takes_pixels else self.image_shape

    def prepare(self, image: Any) -> np.ndarray:
        """An encoded image, or [H, W, 3] uint8 RGB pixels, to [3, H, W] uint8 RGB of the model's size.

        Raises:
            DataError: the image cannot be decoded.
        """
        return Transform(self.image_shape)(image)

    def to_input(self, pixels: np.ndarray) -> np.ndarray:
        """[N, 3, H, W] uint8 RGB to what the model takes: as many rows, or twice as many with mirror images behind."""
        if self._adds_mirror:
            pixels = np.concatenate([pixels, pixels[..., ::-1]])
        if self.takes_pixels:
            return np.ascontiguousarray((pixels[:, ::-1] if self.bgr else pixels).transpose(0, 2, 3, 1))
        return normalize(pixels, mean=self.pixel_mean, std=self.pixel_std)

    def to_embeddings(self, outputs: np.ndarray, count: int) -> np.ndarray:
        """What the model gave for `to_input` of `count` images, to embeddings [count, D] of unit length."""
        if self.gives_unit:
            return outputs
        if self._adds_mirror:
            outputs = outputs[:count] + outputs[count:]
        return outputs / np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), 1e-12)

    @property
    def _adds_mirror(self) -> bool:
        return self.flip and not self.gives_unit


def read_description(directory: str | Path) -> ModelDescription:
    """Read what `plsc export` wrote.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/.

    Raises:
        ServingError: there is no such model, or its description is of another kind.
    """
    directory = Path(directory)
    if not (directory / ABOUT_FILE).is_file() and (directory / "inference_model" / ABOUT_FILE).is_file():
        directory = directory / "inference_model"
    about = _read_about(directory)
    baked: dict[str, Any] = about.get("baked", {})
    try:
        return ModelDescription(
            directory=directory,
            image_shape=tuple(about["image_shape"]),
            emb_dim=about["emb_dim"],
            flip=about["flip"],
            takes_pixels=baked.get("preprocess", False),
            gives_unit=baked.get("normalise", False),
            bgr=baked.get("channels") == "BGR",
            weights=about.get("weights", ""),
            plain_kernels=about.get("plain_kernels", False),
            pixel_mean=about["pixel_mean"],
            pixel_std=about["pixel_std"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ServingError(f"{directory / ABOUT_FILE}: damaged ({error!r}); export the model again") from None


def _read_about(directory: Path) -> dict:
    path = directory / ABOUT_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ServingError(
            f"{directory}: no exported model there ({ABOUT_FILE} is missing); make one with "
            f"convert_for_prediction() or plsc export"
        ) from None
    except (OSError, ValueError) as error:
        raise ServingError(f"{path}: cannot be read: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != 1:
        raise ServingError(f"{path}: found {str(about)[:80]!r}, expected format {FORMAT!r} version 1")
    return about
