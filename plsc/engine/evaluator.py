"""Images to embeddings, and verification sets to their figures. Ranks share the work."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.data.records import read_image
from plsc.data.transforms import PIXEL_MEAN, PIXEL_STD, Channels, Transform, normalize
from plsc.data.verification_set import VerificationSet
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.dataloading import open_verification_sets
from plsc.engine.state import open_backbone
from plsc.errors import ConfigError, DataError
from plsc.metrics.verification import VerificationReport, verification_report
from plsc.models.base_model import check_embedding
from plsc.utils.ranges import shard_range

log = logging.getLogger("plsc")


class Embedder:
    """A backbone in inference mode.

    Args:
        backbone: [N, 3, H, W] -> [N, D].
        image_shape: (3, H, W).
        emb_dim: D.
        batch_size: images per forward pass.
        flip: add the embedding of the mirrored image.
        mean, std: of pixels, see `normalize`.
    """

    def __init__(
        self,
        backbone: paddle.nn.Layer,
        image_shape: tuple[int, int, int],
        emb_dim: int,
        batch_size: int,
        flip: bool,
        mean: Channels = PIXEL_MEAN,
        std: Channels = PIXEL_STD,
    ) -> None:
        self._mean, self._std = mean, std
        self._backbone, self._emb_dim, self._batch_size, self._flip = backbone, emb_dim, batch_size, flip
        self._transform = Transform(image_shape)

    def __call__(self, images: Iterable[Any]) -> np.ndarray:
        """Embed encoded bytes, [H, W, 3] uint8 pixels or finished [3, H, W] float32 arrays: [n, D] float32.

        Images are decoded a batch ahead on threads and let go again: memory holds two batches and the result.

        Raises:
            DataError: an image cannot be decoded; the message has its place in the sequence.
        """
        embeddings = [self._embed(batch) for batch in self._batches(images)]
        return np.concatenate(embeddings) if embeddings else np.zeros([0, self._emb_dim], np.float32)

    def _batches(self, images: Iterable[Any]) -> Iterator[np.ndarray]:
        numbered = enumerate(images)
        with ThreadPoolExecutor(2) as pool:
            ahead = None
            while chunk := list(itertools.islice(numbered, self._batch_size)):
                submitted = pool.map(self._prepare, chunk)
                if ahead is not None:
                    yield np.stack(list(ahead))
                ahead = submitted
            if ahead is not None:
                yield np.stack(list(ahead))

    def _prepare(self, numbered: tuple[int, Any]) -> np.ndarray:
        index, image = numbered
        try:
            return np.asarray(normalize(self._transform(image), mean=self._mean, std=self._std), np.float32)
        except DataError as error:
            raise DataError(f"image {index}: {error}") from None

    def _embed(self, batch: np.ndarray) -> np.ndarray:
        was_training = self._backbone.training
        self._backbone.eval()
        try:
            with paddle.no_grad():
                images = paddle.to_tensor(batch)
                embeddings = check_embedding(self._backbone(images), self._backbone, len(batch), self._emb_dim)
                if self._flip:
                    embeddings = embeddings + self._backbone(images.flip(3))
                return embeddings.astype("float32").numpy()
        finally:
            if was_training:
                self._backbone.train()


def verify(embedder: Embedder, pairs: VerificationSet, collectives: Collectives) -> VerificationReport:
    """The figures of one verification set, the same on every rank. Each rank embeds its share of the images.

    Raises:
        DataError: an image cannot be decoded; the message names the set.
    """
    topology, count = collectives.topology, len(pairs.images)
    own = shard_range(count, topology.world_size, topology.rank)
    try:
        embeddings, failure = embedder(pairs.images[own.start : own.stop]), None
    except DataError as error:
        embeddings, failure = None, f"{pairs.name}, from image {own.start} on: {error}"
    # Agreed on before the gather, where the other ranks would wait for ever.
    for message in collectives.gather_objects(failure):
        if message is not None:
            raise DataError(message)
    largest = shard_range(count, topology.world_size, 0).size
    padded = np.zeros([largest, embeddings.shape[1]], np.float32)
    padded[: own.size] = embeddings
    gathered = collectives.all_gather(paddle.to_tensor(padded)).numpy().reshape(topology.world_size, largest, -1)
    sizes = [shard_range(count, topology.world_size, rank).size for rank in range(topology.world_size)]
    return verification_report(
        np.concatenate([rows[:size] for rows, size in zip(gathered, sizes)]), pairs.is_same, folds=min(10, len(pairs))
    )


def evaluate(
    config: Config, backbone: paddle.nn.Layer, sets: list[VerificationSet], collectives: Collectives
) -> dict[str, float]:
    """Verify on each set and log a line each; returns figures as '<set>/<figure>'."""
    results: dict[str, float] = {}
    embedder = _embedder(config, backbone)
    for pairs in sets:
        report = verify(embedder, pairs, collectives)
        results.update({f"{pairs.name}/{name}": value for name, value in report.figures().items()})
        if collectives.topology.is_main:
            log.info("%s: %s", pairs.name, report)
    return results


def test(config: Config, topology: Topology) -> dict[str, float]:
    """Verify a checkpoint on the verification sets of a configuration.

    Raises:
        DataError: there is no verification set.
    """
    sets = open_verification_sets(config)
    if not sets:
        raise DataError(
            f"nothing to test on: {config.dataset_dir} holds none of {config.val_targets} as .bin; see set_val_targets"
        )
    backbone, config, _ = open_backbone(config)
    return evaluate(config, backbone, sets, Collectives(topology))


def predict(config: Config, topology: Topology, images: Iterable[Any] | None, save_to: str | Path | None) -> np.ndarray:
    """Embeddings [n, D] float32 of unit length, of images or of the configuration's `predict_reader`.

    Raises:
        ConfigError: there is nothing to predict on, or `save_to` exists.
    """
    if images is None and config.predict_reader is None:
        raise ConfigError("predict: nothing to embed; give predict([...files...]) or set entry.predict_reader")
    if save_to is not None and Path(save_to).exists():
        raise ConfigError(f"predict: {save_to} exists and is not overwritten; choose another file")
    source = _flatten(config.predict_reader()) if images is None else images
    encoded = (read_image(image) if isinstance(image, (str, Path)) else image for image in source)
    backbone, config, _ = open_backbone(config)
    embeddings = _embedder(config, backbone)(encoded)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    if save_to is not None and topology.is_main:
        with open(save_to, "xb") as file:
            np.save(file, embeddings)
    return embeddings


def _embedder(config: Config, backbone: paddle.nn.Layer) -> Embedder:
    return Embedder(
        backbone,
        config.image_shape,
        config.emb_dim,
        config.test_batch_size,
        config.flip,
        config.pixel_mean,
        config.pixel_std,
    )


def _flatten(batches: Iterable[Any]) -> Iterator[Any]:
    """Images of a reader that yields images, (image, ...) samples, or lists of either."""
    for item in batches:
        if isinstance(item, list):
            yield from _flatten(item)
        else:
            yield item[0] if isinstance(item, tuple) else item
