"""Embeddings and verification by a backbone in training or from a checkpoint. Ranks share the images of a set."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.config import Config
from plsc.data.damage import DamageLog
from plsc.data.image_input import each_image, named_error, take_image
from plsc.data.verification_set import VerificationSet
from plsc.distributed import watch
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.closed_set import NAME, ClosedSet, check_closed_set, validate
from plsc.engine.places import places_of_use
from plsc.engine.retention import is_named
from plsc.engine.shares import gather_rows, share_of
from plsc.engine.state import open_backbone
from plsc.errors import ConfigError, DataError
from plsc.inference.embedding import EmbeddingPath, Embeddings, check_finite, to_unit_length
from plsc.losses.centers import Centers
from plsc.metrics.closed_set import ClosedSetReport
from plsc.metrics.verification import VerificationReport, verification_report
from plsc.models.base_model import check_embedding
from plsc.utils.hints import setter
from plsc.utils.plural import counted
from plsc.utils.ranges import Range
from plsc.utils.threads import thread_map

log = logging.getLogger("plsc")

_NOTED_SECONDS = 10.0  # of decoding before training, after which the log says what takes long
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

    def __call__(
        self,
        images: Iterable[Any],
        *,
        first: int = 0,
        damaged: DamageLog | None = None,
        describe: Callable[[int], str] | None = None,
    ) -> Embeddings:
        """Embed images: [n, D] float32, not of unit length.

        The next batch is decoded on threads while the backbone computes. Memory holds two batches and the embeddings.

        Args:
            images: each of a kind that `take_image` takes, or a normalized [3, H, W] float32 array.
            first: number of the first image, for messages.
            damaged: warns of images that are damaged but can be decoded in part; by number, or as `describe` says.
            describe: the number of an image -> what messages call it; by default its path, or its number.

        Raises:
            DataError: an image cannot be decoded, or its embedding is not finite; the message has its number.
        """
        damaged = damaged or DamageLog(str if describe is not None else (lambda number: f"image {number}"))
        prepare = functools.partial(self._prepare, damaged=damaged, describe=describe)
        prepared = thread_map(prepare, enumerate(images, first), threads=_THREADS, ahead=2 * self._batch_size)
        embeddings, done = [], first
        while batch := list(itertools.islice(prepared, self._batch_size)):
            watch.phase(f"embedding image {done} and following")
            embeddings.append(self._embed(np.stack(batch)))
            check_finite(embeddings[-1], first=done, describe=describe)
            done += len(batch)
        return np.concatenate(embeddings) if embeddings else np.zeros([0, self.emb_dim], np.float32)

    def _prepare(
        self, numbered: tuple[int, Any], *, damaged: DamageLog, describe: Callable[[int], str] | None
    ) -> NDArray[np.float32]:
        # Normalized one by one, so that finished float32 images and pixels fit into one batch.
        return self._path.normalize(_prepare(self._path, numbered, damaged=damaged, describe=describe))

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


def verify(
    embedder: Embedder,
    pairs: VerificationSet,
    *,
    collectives: Collectives,
    is_stopped: Callable[[], bool] | None = None,
) -> VerificationReport | None:
    """Verify on one set. Each rank embeds its share of the images; the report is the same on all ranks.

    Where `is_stopped` is True on any rank, asked before each batch, all ranks return None.

    Raises:
        DataError: an image cannot be decoded; the message names the set. It is raised on all ranks.
    """
    own = share_of(len(pairs.images), collectives)

    def embed() -> Embeddings:
        images = iter(pairs.images[own.start : own.stop])
        if is_stopped is not None:
            images = itertools.takewhile(lambda _: not is_stopped(), images)
        return embedder(images, first=own.start, damaged=pairs.damaged)

    embeddings = agree(
        embed,
        collectives,
        error=DataError,
        prefix=f"{pairs.label}: ",
    )
    if is_stopped is not None and any(collectives.gather_objects(is_stopped())):
        return None
    return _report(pairs, gather_rows(embeddings, len(pairs.images), collectives=collectives))


def check_keep_best(config: Config, sets: Sequence[VerificationSet], *, has_closed_set: bool = False) -> None:
    """Find out whether verification on `sets`, and on a closed set where there is one, gives the metric `keep_best`.

    Raises:
        ConfigError: it does not.
        DataError: a set has too few pairs.
    """
    metric = config.keep_best
    if metric is None:
        return
    given = [
        f"{pairs.name}.{name}"
        for pairs in sets
        for name, value in _try_report(pairs).metrics().items()
        if math.isfinite(value)
    ]
    if has_closed_set:
        given += [f"{NAME}.top1", f"{NAME}.top5"]
    if any(is_named(name, metric) for name in given):
        return
    if given:
        found = f"verification gives no such metric; expected one of {', '.join(given)}"
    else:
        needed = setter("val_targets") if config.with_test else setter("with_test", True)
        found = f"this run verifies on no set; it needs {needed}, or leave it out"
    raise ConfigError(f"{setter('keep_best', metric)}: {found}")


def check_verification_sets(config: Config, sets: Sequence[VerificationSet], *, collectives: Collectives) -> None:
    """Find out whether sets can be verified: decode each image once, and report on zero embeddings.

    Ranks share the images as in verification. Every rank must call this. The log notes it where it takes long.

    Raises:
        DataError: an image cannot be decoded, or a set has too few pairs; names the set. The same on every rank.
    """
    path, begin, is_noted = _embedding_path(config), time.monotonic(), False
    check_verification_pairs(sets)
    for pairs in sets:
        own = share_of(len(pairs.images), collectives)

        def decode(pairs: VerificationSet = pairs, own: Range = own) -> None:
            nonlocal is_noted
            images = enumerate(pairs.images[own.start : own.stop], own.start)
            for done, _ in enumerate(thread_map(lambda image: _prepare(path, image, damaged=pairs.damaged), images)):
                watch.phase(f"decoding images of the verification set {pairs.name}")
                if not is_noted and time.monotonic() - begin > _NOTED_SECONDS:
                    is_noted = True
                    log.info(
                        "decoding each image of the verification sets once before training: %s, image %d of %d on "
                        "this rank",
                        pairs.name,
                        done + 1,
                        own.size,
                    )

        agree(decode, collectives, error=DataError, prefix=f"{pairs.label}: ")


def check_verification_pairs(sets: Iterable[VerificationSet]) -> None:
    """Raise `DataError` where a set has too few pairs to be verified."""
    for pairs in sets:
        _try_report(pairs)


def check_closed(config: Config, closed: ClosedSet | None, *, collectives: Collectives) -> None:
    """Find out whether images of a closed set can be read, a few on each rank. Every rank must call this.

    Raises:
        DataError: one cannot; the same on every rank.
    """
    if closed is not None and config.bad_images != "skip":
        path = _embedding_path(config)
        check_closed_set(closed, lambda image: path.prepare(take_image(image)), collectives=collectives)


def _try_report(pairs: VerificationSet) -> VerificationReport:
    """The report on embeddings that are zero."""
    return _report(pairs, np.zeros([2 * len(pairs), 1], np.float32))


def _report(pairs: VerificationSet, embeddings: Embeddings) -> VerificationReport:
    try:
        return verification_report(embeddings, pairs.is_same, folds=pairs.folds)
    except (ConfigError, DataError) as error:
        raise DataError(f"{pairs.label} ({counted(len(pairs), 'pair')}) cannot be verified: {error}") from None


def _prepare(
    path: EmbeddingPath,
    numbered: tuple[int, Any],
    *,
    damaged: DamageLog,
    describe: Callable[[int], str] | None = None,
) -> NDArray[Any]:
    index, image = numbered
    name = index if describe is None else describe(index)
    try:
        return path.prepare(take_image(image), on_damage=functools.partial(damaged.warn, name))
    except DataError as error:
        if describe is not None:
            raise DataError(f"{name}: {error}") from None
        raise named_error(error, image, index=index) from None


def evaluate(
    config: Config,
    backbone: paddle.nn.Layer,
    *,
    sets: Iterable[VerificationSet],
    collectives: Collectives,
    is_stopped: Callable[[], bool] | None = None,
    closed: ClosedSet | None = None,
    centers: Callable[[], Centers | None] = lambda: None,
    on_report: Callable[[ClosedSetReport], None] = lambda report: None,
    on_pairs: Callable[[VerificationSet, VerificationReport], None] = lambda pairs, report: None,
) -> dict[str, float] | None:
    """Verify on each set, and on a closed set; log one line per set.

    Args:
        config: the settings.
        backbone: the network.
        sets: the verification sets.
        collectives: over all ranks.
        is_stopped: asked before each batch; where it is True on any rank, verification ends on all.
        closed: images of the classes of training.
        centers: the class centers of this rank, for `closed`.
        on_report: called with what was found for `closed`.
        on_pairs: called with each set and what was found for it.

    Returns:
        The metrics as '<set>/<metric>'; None where it was stopped.
    """
    results: dict[str, float] = {}
    embedder = _embedder(config, backbone)
    for pairs in sets:
        report = verify(embedder, pairs, collectives=collectives, is_stopped=is_stopped)
        if report is None:
            return None
        results.update({f"{pairs.name}/{name}": value for name, value in report.metrics().items()})
        if collectives.topology.is_main:
            log.info("%s: %s", pairs.name, report)
        on_pairs(pairs, report)
    own = centers() if closed is not None else None
    if closed is not None and own is not None:
        found = validate(embedder, closed, centers=own, config=config, collectives=collectives, is_stopped=is_stopped)
        if found is None:
            return None
        results.update({f"{NAME}/{name}": value for name, value in found.metrics().items()})
        if collectives.topology.is_main:
            log.info("%s: %s", NAME, found)
        on_report(found)
    return results


def predict(
    config: Config, topology: Topology, *, images: Iterable[Any] | None = None, save_to: str | Path | None = None
) -> Embeddings:
    """Embed images with the backbone of a checkpoint: [n, D] float32 of unit length.

    Args:
        config: names the checkpoint; `predict_reader` yields the images if `images` is None.
        topology: rank 0 writes `save_to`.
        images: one image or several, each of a kind that `take_image` takes, or a normalized [3, H, W] float32 array.
        save_to: .npy file to write as well; an existing file is not overwritten.

    Raises:
        ConfigError: there are neither images nor a `predict_reader`, or `save_to` exists.
        CheckpointError: there is no checkpoint, or it is of another network.
        DataError: an image cannot be read.
    """
    config.check()
    if images is None and config.predict_reader is None:
        raise ConfigError("predict: nothing to embed; give predict([...files...]) or set entry.predict_reader")
    if save_to is not None and Path(save_to).exists():
        raise ConfigError(f"predict: {save_to} exists and is not overwritten; choose another file")
    source = _flatten(config.predict_reader()) if images is None else each_image(images)
    backbone, config, _ = open_backbone(places_of_use(config))
    embeddings = to_unit_length(_embedder(config, backbone)(source))
    if save_to is not None and topology.is_main:
        with open(save_to, "xb") as file:
            np.save(file, embeddings)
    return embeddings


def _embedder(config: Config, backbone: paddle.nn.Layer) -> Embedder:
    path = _embedding_path(config)
    return Embedder(backbone, path, emb_dim=config.emb_dim, batch_size=config.test_batch_size)


def _embedding_path(config: Config) -> EmbeddingPath:
    return EmbeddingPath(
        image_shape=config.image_shape, flip=config.flip, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
    )


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
