"""An exported model in this process: images in, unit-length embeddings out. Needs nothing of training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.records import read_image
from plsc.errors import DataError
from plsc.inference.model_card import ModelCard, read_model_card
from plsc.inference.predictor import Predictor


def load_inference_model(directory: str | Path) -> InferenceModel:
    """Load what `Entry.convert_for_prediction` wrote.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/.

    Raises:
        ServingError: there is no such model.
    """
    return InferenceModel(directory)


class InferenceModel:
    """A Paddle inference model with its pre-processing.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/.
        threads: of the CPU; Paddle's own choice by default.

    Attributes:
        card: the model's inputs and outputs.
        image_shape: (3, H, W) that images are brought to.
        emb_dim: D that it gives.
    """

    def __init__(self, directory: str | Path, threads: int | None = None) -> None:
        self.card: ModelCard = read_model_card(directory)
        self.image_shape, self.emb_dim = self.card.image_shape, self.card.emb_dim
        self._predictor = Predictor(self.card.model_file, threads, self.card.plain_kernels)

    def embed(self, images: Any | Iterable[Any], batch_size: int = 32) -> np.ndarray:
        """Embed images: [n, D] float32 of unit length.

        Args:
            images: one or many of: a path, encoded bytes, or a [H, W, 3] uint8 RGB array.
            batch_size: images per forward pass.

        Raises:
            DataError: an image cannot be read; the message has its path, or its place in the sequence.
        """
        if isinstance(images, (str, Path, bytes)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        images = list(images)
        found = []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            found.append(self.embed_pixels(np.stack([self._read(start + i, image) for i, image in enumerate(chunk)])))
        return np.concatenate(found) if found else np.zeros([0, self.emb_dim], np.float32)

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [N, 3, H, W] uint8 RGB of the model's size to embeddings [N, D] float32 of unit length."""
        outputs = self._predictor.run(self.card.to_input(pixels))
        return self.card.to_embeddings(outputs, len(pixels))

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The bare model: normalized images [N, 3, H, W] float32 to embeddings [N, D], not of unit length.

        What was baked in at export changes both: see `card`.
        """
        return self._predictor.run(np.asarray(batch, self.card.input_dtype))

    def warm_up(self) -> tuple[str, str]:
        """Run once, so that the first request need not wait for it; returns the names of input and output."""
        self.embed_pixels(np.zeros([1, *self.image_shape], np.uint8))
        return self._predictor.input_name, self._predictor.output_name

    def _read(self, index: int, image: Any) -> np.ndarray:
        is_file = isinstance(image, (str, Path))
        encoded = read_image(image) if is_file else image
        try:
            return self.card.prepare(encoded)
        except DataError as error:
            raise DataError(f"{image if is_file else f'image {index}'}: {error}") from None
