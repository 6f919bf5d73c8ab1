"""An exported model in this process: images in, unit-length embeddings out. Needs nothing of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterable, Union

import numpy as np

from plsc.data.records import read_image
from plsc.data.transforms import Transform, normalise
from plsc.errors import DataError, ServingError
from plsc.utils.lazy import require

FORMAT = "plsc-inference-model"
ABOUT_FILE = "plsc_model.json"
MODEL_PREFIX = "model"


def load_inference_model(directory: Union[str, Path]) -> InferenceModel:
    """Load what `Entry.convert_for_prediction` wrote.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/.

    Raises:
        ServingError: there is no such model.
    """
    return InferenceModel(directory)


class InferenceModel:
    """A Paddle inference model with its pre-processing.

    Attributes:
        image_shape: (3, H, W) that it takes.
        emb_dim: D that it gives.
    """

    def __init__(self, directory: Union[str, Path]) -> None:
        directory = Path(directory)
        if not (directory / ABOUT_FILE).is_file() and (directory / "inference_model" / ABOUT_FILE).is_file():
            directory = directory / "inference_model"
        about = _read_about(directory)
        self.image_shape, self.emb_dim = tuple(about["image_shape"]), about["emb_dim"]
        self._mean, self._std, self._flip = about["pixel_mean"], about["pixel_std"], about["flip"]
        self._transform = Transform(self.image_shape)
        inference = require("paddle.inference", "'plsc[cpu]' (or 'plsc[gpu]')", "load_inference_model")
        config = inference.Config(str(directory / f"{MODEL_PREFIX}.json"), str(directory / f"{MODEL_PREFIX}.pdiparams"))
        config.disable_glog_info()
        paddle = require("paddle", "'plsc[cpu]' (or 'plsc[gpu]')", "load_inference_model")
        if paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count():
            config.enable_use_gpu(256, 0)
        self._predictor = inference.create_predictor(config)

    def embed(self, images: Union[Any, Iterable[Any]], batch_size: int = 32) -> np.ndarray:
        """Embed images: [n, D] float32 of unit length.

        Args:
            images: one or many of: a path, encoded bytes, or a [H, W, 3] uint8 RGB array.
            batch_size: images per forward pass.

        Raises:
            DataError: an image cannot be read; the message has its place in the sequence.
        """
        if isinstance(images, (str, Path, bytes)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        images = list(images)
        found = [self._embed(images, start, batch_size) for start in range(0, len(images), batch_size)]
        embeddings = np.concatenate(found) if found else np.zeros([0, self.emb_dim], np.float32)
        return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The bare network: normalised images [N, 3, H, W] float32 to embeddings [N, D], not of unit length."""
        feed = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        feed.reshape(batch.shape)
        feed.copy_from_cpu(np.ascontiguousarray(batch, np.float32))
        self._predictor.run()
        return self._predictor.get_output_handle(self._predictor.get_output_names()[0]).copy_to_cpu()

    def _embed(self, images: list, start: int, count: int) -> np.ndarray:
        pixels = np.stack([self._read(index, images[index]) for index in range(start, min(start + count, len(images)))])
        batch = normalise(pixels, self._mean, self._std)
        embeddings = self.run(batch)
        return embeddings + self.run(batch[..., ::-1]) if self._flip else embeddings

    def _read(self, index: int, image: Any) -> np.ndarray:
        try:
            encoded = read_image(image) if isinstance(image, (str, Path)) else image
            return self._transform(encoded)
        except DataError as error:
            raise DataError(f"image {index}: {error}") from None


def _read_about(directory: Path) -> dict:
    path = directory / ABOUT_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ServingError(f"{directory}: no exported model there ({ABOUT_FILE} is missing); make one with "
                           f"convert_for_prediction() or plsc export") from None
    except (OSError, ValueError) as error:
        raise ServingError(f"{path}: cannot be read: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != 1:
        raise ServingError(f"{path}: found {str(about)[:80]!r}, expected format {FORMAT!r} version 1")
    return about
