"""Embeddings and verification by a backbone in training or from a checkpoint. Ranks share the images of a set."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.config import DEFAULT_VAL_TARGETS, Config
from plsc.data.damage import DamageLog
from plsc.data.records import read_image
from plsc.data.verification_set import VerificationSet
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.dataloading import open_verification_sets
from plsc.engine.state import open_backbone
from plsc.errors import ConfigError, DataError
from plsc.inference.embedding import EmbeddingPath, Embeddings, to_unit_length
from plsc.metrics.verification import VerificationReport, verification_report
from plsc.models.base_model import check_embedding
from plsc.utils.ranges import shard_range, shard_ranges
from plsc.utils.threads import thread_map

log = logging.getLogger("plsc")

_THREADS = 2  # decoding; they keep ahead of a forward pass even on small images


class Embedder:
    """A backbone in evaluation mode, with what happens to an image before and after it.

    Args:
        backbone: [N, 3, H, W] float32 -> [N, D].
        path: pre-processing and flip.
        emb_dim: D.
        batch_size: images per forward pass, 1 or more.
    """

    def __init__(self, backbone: paddle.nn.Layer, path: EmbeddingPath, *, emb_dim: int, batch_size: int) -> None:
        self.emb_dim = emb_dim
        self._backbone, self._path, self._batch_size = backbone, path, batch_size

    def __call__(self, images: Iterable[Any], *, first: int = 0, damaged: DamageLog | None = None) -> Embeddings:
        """Embed images: [n, D] float32, not of unit length.

        The next batch is decoded on threads while the backbone computes. Memory holds two batches and the embeddings.

        Args:
            images: encoded bytes, pixels [H, W, 3] uint8 RGB, or normalized [3, H, W] float32 arrays.
            first: number of the first image in `damaged`.
            damaged: warns of images that are damaged but can be decoded in part.

        Raises:
            DataError: an image cannot be decoded; the message has its place in the sequence.
        """
        damaged = damaged or DamageLog(lambda number: f"image {number}")
        prepare = functools.partial(self._prepare, first=first, damaged=damaged)
        prepared = thread_map(prepare, enumerate(images), threads=_THREADS, ahead=2 * self._batch_size)
        embeddings = []
        while batch := list(itertools.islice(prepared, self._batch_size)):
            embeddings.append(self._embed(np.stack(batch)))
        return np.concatenate(embeddings) if embeddings else np.zeros([0, self.emb_dim], np.float32)

    def _prepare(self, numbered: tuple[int, Any], *, first: int, damaged: DamageLog) -> NDArray[np.float32]:
        index, image = numbered
        try:
            # Normalized one by one, so that finished float32 images and pixels fit into one batch.
            on_damage = functools.partial(damaged.warn, first + index)
            return self._path.normalize(self._path.prepare(image, on_damage=on_damage))
        except DataError as error:
            raise DataError(f"image {index}: {error}") from None

    def _embed(self, images: NDArray[np.float32]) -> Embeddings:
        rows, count = self._path.to_input(images), len(images)
        with _evaluation_mode(self._backbone), paddle.no_grad():
            # Mirror images go through in a pass of their own: one pass of both would take twice the memory.
            outputs = [self._run(rows[start : start + count]) for start in range(0, len(rows), count)]
        return self._path.sum_mirror_images(np.concatenate(outputs), count)

    def _run(self, batch: NDArray[np.float32]) -> Embeddings:
        outputs = self._backbone(paddle.to_tensor(batch))
        embeddings: Embeddings = (
            check_embedding(outputs, self._backbone, images=len(batch), emb_dim=self.emb_dim).astype("float32").numpy()
        )
        return embeddings


def verify(embedder: Embedder, pairs: VerificationSet, *, collectives: Collectives) -> VerificationReport:
    """Verify on one set. Each rank embeds its share of the images; the report is the same on all ranks.

    Raises:
        DataError: an image cannot be decoded; the message names the set. It is raised on all ranks.
    """
    topology, count = collectives.topology, len(pairs.images)
    own = shard_range(count, topology.world_size, shard=topology.rank)
    embeddings, failure = np.zeros([0, embedder.emb_dim], np.float32), None
    try:
        embeddings = embedder(pairs.images[own.start : own.stop], first=own.start, damaged=pairs.damaged)
    except DataError as error:
        failure = f"{pairs.name}, from image {own.start} on: {error}"
    # All ranks learn of a failure before the next collective: without this the others would wait there forever.
    for message in collectives.gather_objects(failure):
        if message is not None:
            raise DataError(message)
    return verification_report(
        _gather_rows(embeddings, count, collectives=collectives), pairs.is_same, folds=min(10, len(pairs))
    )


def _gather_rows(rows: Embeddings, count: int, *, collectives: Collectives) -> Embeddings:
    """[count, D], the same on all ranks, of the rows of this rank's share; shares are padded to equal size."""
    ranks = collectives.topology.world_size
    sizes = [share.size for share in shard_ranges(count, ranks)]
    padded = np.zeros([max(sizes), rows.shape[1]], np.float32)
    padded[: len(rows)] = rows
    gathered = collectives.all_gather(paddle.to_tensor(padded)).numpy().reshape(ranks, max(sizes), -1)
    return np.concatenate([share[:size] for share, size in zip(gathered, sizes)])


def evaluate(
    config: Config, backbone: paddle.nn.Layer, *, sets: Iterable[VerificationSet], collectives: Collectives
) -> dict[str, float]:
    """Verify on each set and log one line per set; returns the metrics as '<set>/<metric>'."""
    results: dict[str, float] = {}
    embedder = _embedder(config, backbone)
    for pairs in sets:
        report = verify(embedder, pairs, collectives=collectives)
        results.update({f"{pairs.name}/{name}": value for name, value in report.metrics().items()})
        if collectives.topology.is_main:
            log.info("%s: %s", pairs.name, report)
    return results


def test(config: Config, topology: Topology) -> dict[str, float]:
    """Verify a checkpoint on the verification sets of a configuration; returns the metrics as '<set>/<metric>'.

    Raises:
        CheckpointError: there is no checkpoint, or it is of another network.
        DataError: there is no verification set, or an image of one cannot be decoded.
    """
    sets = open_verification_sets(config)
    if not sets:
        raise DataError(
            f"nothing to test on: no verification set is given, and {config.dataset_dir} holds no "
            f"{DEFAULT_VAL_TARGETS}.bin; make one with plsc data pairs, or set_val_targets (--val-targets)"
        )
    backbone, config, _ = open_backbone(config)
    return evaluate(config, backbone, sets=sets, collectives=Collectives(topology))


def predict(
    config: Config, topology: Topology, *, images: Iterable[Any] | None = None, save_to: str | Path | None = None
) -> Embeddings:
    """Embed images with the backbone of a checkpoint: [n, D] float32 of unit length.

    Args:
        config: names the checkpoint; `predict_reader` yields the images if `images` is None.
        topology: rank 0 writes `save_to`.
        images: paths, encoded bytes, or pixels [H, W, 3] uint8 RGB.
        save_to: .npy file to write as well; an existing file is not overwritten.

    Raises:
        ConfigError: there are neither images nor a `predict_reader`, or `save_to` exists.
        CheckpointError: there is no checkpoint, or it is of another network.
        DataError: an image cannot be read.
    """
    if images is None and config.predict_reader is None:
        raise ConfigError("predict: nothing to embed; give predict([...files...]) or set entry.predict_reader")
    if save_to is not None and Path(save_to).exists():
        raise ConfigError(f"predict: {save_to} exists and is not overwritten; choose another file")
    source = _flatten(config.predict_reader()) if images is None else images
    encoded = (read_image(image) if isinstance(image, (str, Path)) else image for image in source)
    backbone, config, _ = open_backbone(config)
    embeddings = to_unit_length(_embedder(config, backbone)(encoded))
    if save_to is not None and topology.is_main:
        with open(save_to, "xb") as file:
            np.save(file, embeddings)
    return embeddings


def _embedder(config: Config, backbone: paddle.nn.Layer) -> Embedder:
    path = EmbeddingPath(
        image_shape=config.image_shape, flip=config.flip, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
    )
    return Embedder(backbone, path, emb_dim=config.emb_dim, batch_size=config.test_batch_size)


@contextlib.contextmanager
def _evaluation_mode(backbone: paddle.nn.Layer) -> Iterator[None]:
    was_training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        if was_training:
            backbone.train()


def _flatten(batches: Iterable[Any]) -> Iterator[Any]:
    """The images of a reader, which yields images, (image, ...) samples, or lists of either."""
    for item in batches:
        if isinstance(item, list):
            yield from _flatten(item)
        else:
            yield item[0] if isinstance(item, tuple) else item
