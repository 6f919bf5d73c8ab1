"""An exported model in this process: images in, embeddings of unit length out."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.data.damage import DamageLog
from plsc.data.records import read_image
from plsc.errors import DataError, ServingError
from plsc.inference.embedding import Embeddings, Pixels, as_list_of_images
from plsc.inference.model_card import ModelCard, read_model_card
from plsc.inference.predictor import Predictor


def load_inference_model(directory: str | Path) -> InferenceModel:
    """Load a model that `plsc export` or `Entry.convert_for_prediction` wrote.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/.

    Raises:
        ServingError: the folder holds no export, or Paddle cannot load it.

    Example:
        >>> model = plsc.load_inference_model("output")
        >>> embeddings = model.embed(["ann.jpg", "bob.jpg"])
        >>> cosine = embeddings[0] @ embeddings[1]
    """
    return InferenceModel(directory)


class InferenceModel:
    """An exported network with its pre-processing. It needs nothing of training.

    Not for several threads at once: a thread makes an InferenceModel of its own.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/.
        threads: CPU threads of a forward pass, 1 or more; by default Paddle's own choice, which is 1.

    Attributes:
        card: the model's inputs and outputs.
        image_shape: (3, H, W) that images are resized to.
        emb_dim: D.

    Raises:
        ServingError: the folder holds no export, or Paddle cannot load it.

    Example:
        >>> model = InferenceModel("output/inference_model", threads=4)
        >>> model.embed(["ann.jpg", open("bob.jpg", "rb").read()]).shape
        (2, 512)
    """

    def __init__(self, directory: str | Path, threads: int | None = None) -> None:
        self.card: ModelCard = read_model_card(directory)
        self.image_shape, self.emb_dim = self.card.image_shape, self.card.emb_dim
        self._predictor = Predictor(self.card.model_file, threads, plain=self.card.plain_kernels)

    def embed(self, images: Any | Iterable[Any], batch_size: int = 32) -> Embeddings:
        """Embed images: [n, D] float32 of unit length, in the order of the images.

        There is a warning of an image that is damaged but can be decoded in part.

        Args:
            images: one image or several; each a path, encoded bytes, or pixels [H, W, 3] uint8 RGB.
            batch_size: images per forward pass, 1 or more.

        Raises:
            DataError: an image cannot be read; the message has its path, or its place in the sequence.
            ServingError: the batch size is below 1.
        """
        if batch_size < 1:
            raise ServingError(f"embed: got batch_size {batch_size}, expected 1 or more")
        images, damaged = as_list_of_images(images), DamageLog()
        embeddings = []
        for start in range(0, len(images), batch_size):
            chunk = enumerate(images[start : start + batch_size], start)
            rows = [self._prepare(index, image, damaged) for index, image in chunk]
            embeddings.append(self.embed_pixels(np.stack(rows)))
        return np.concatenate(embeddings) if embeddings else np.zeros([0, self.emb_dim], np.float32)

    def embed_pixels(self, pixels: Pixels) -> Embeddings:
        """Embed pixels [N, 3, H, W] uint8 RGB of the model's size: [N, D] float32 of unit length."""
        return self.card.to_embeddings(self._predictor.run(self.card.to_input(pixels)), len(pixels))

    def run(self, batch: NDArray[Any]) -> Embeddings:
        """Run the network alone: normalized images [N, 3, H, W] float32 to outputs [N, D], not of unit length.

        What was baked in at export changes both. `card.takes_pixels` says that it takes pixels [N, H', W', 3] uint8,
        `card.gives_unit` that the outputs have unit length.
        """
        return self._predictor.run(np.asarray(batch, self.card.input_dtype))

    def warm_up(self) -> tuple[str, str]:
        """Run once on a black image, since the first pass is slow; returns the names of input and output."""
        self.embed_pixels(np.zeros([1, *self.image_shape], np.uint8))
        return self._predictor.input_name, self._predictor.output_name

    def _prepare(self, index: int, image: Any, damaged: DamageLog) -> Pixels:
        is_file = isinstance(image, (str, Path))
        encoded, name = (read_image(image), str(image)) if is_file else (image, f"image {index}")
        try:
            return self.card.prepare(encoded, on_damage=functools.partial(damaged.warn, name))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
