"""Closed sets: images of the classes of training, and how many of them the class centers find.

n images, D embedding, C classes.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plsc.config import Config
from plsc.data.class_names import LEFT_OUT, ClassNames, match_labels
from plsc.data.damage import DamageLog
from plsc.data.records import Labels, Records, as_records
from plsc.data.sources import open_records
from plsc.data.sources.string_table import StringTable
from plsc.data.subset import TrainingPart
from plsc.distributed import watch
from plsc.distributed.agreement import agree, on_all_ranks, require_equal
from plsc.distributed.collectives import Collectives
from plsc.engine.shares import gather_rows, share_of
from plsc.errors import ConfigError, DataError
from plsc.inference.embedding import Embeddings
from plsc.losses.centers import Centers, top_classes
from plsc.metrics.closed_set import TOP, ClosedSetReport
from plsc.utils.atomic import write_file
from plsc.utils.csv_rows import csv_bytes
from plsc.utils.hints import setter
from plsc.utils.plural import counted
from plsc.utils.seeding import derive_seed, kept_global_generators, seed_global_generators

NAME = "val"
"""Begins the names of the metrics: val/top1."""
_BATCHES = 4  # forward passes of each rank between two looks at the class centers


@dataclass(frozen=True, kw_only=True)
class ClosedSet:
    """Images of the classes of training.

    Attributes:
        records: the images.
        labels: [n], the class of each in training; `LEFT_OUT` for one that is left out.
        what: the data, for messages.
        names: of the classes.
        num_classes: C, of training.
        damaged: warns of images that are damaged but can be decoded in part.
    """

    records: Records
    labels: Labels
    what: str
    names: ClassNames
    num_classes: int
    damaged: DamageLog = field(default_factory=DamageLog)

    @property
    def digest(self) -> str:
        """Of the classes of the images, in order."""
        return hashlib.sha256(np.ascontiguousarray(self.labels).tobytes()).hexdigest()[:12]


class Embed(Protocol):
    """Embeds images, see `plsc.engine.evaluator.Embedder`."""

    def __call__(self, images: Iterator[Any], *, damaged: DamageLog, describe: Callable[[int], str]) -> Embeddings: ...


def open_closed_set(
    config: Config,
    training: Records | None,
    *,
    names: StringTable | None,
    num_classes: int,
    collectives: Collectives,
) -> ClosedSet | None:
    """The validation data of a configuration, the same on all ranks; None where there is none. Every rank must call it.

    Args:
        config: the settings.
        training: the training data, of which `val_split` has held a part out; None where that is not known.
        names: of the classes in training; None where they have none.
        num_classes: C.
        collectives: over the ranks.

    Raises:
        DataError: it cannot be opened, or a class is not in training; or ranks have different data.
        ConfigError: `val_split` is set, and the training data is not one that the settings name.
    """

    def open_own() -> ClosedSet | None:
        found = validation_records(config, training)
        if found is None:
            return None
        records, what = found
        labels = match_labels(
            records, names, num_classes=num_classes, what=what, leave_out=config.min_images_per_class > 0
        )
        return ClosedSet(records=records, labels=labels, what=what, names=ClassNames(names), num_classes=num_classes)

    opened = agree(open_own, collectives, error=DataError)
    facts = None if opened is None else f"{counted(len(opened.labels), 'image')} ({opened.digest})"
    require_equal(facts, collectives, what="validation data, which they validate together")
    return opened


def validation_records(config: Config, training: Records | None) -> tuple[Records, str] | None:
    """The images, and what messages call them; None where the settings name none.

    Args:
        config: the settings.
        training: the training data, of which `val_split` has held a part out.

    Raises:
        DataError: they cannot be opened.
        ConfigError: as for `open_closed_set`.
    """
    if config.val_dataset is not None:
        return as_records(config.val_dataset, "val_dataset"), "val_dataset"
    if config.val_dataset_dir is not None:
        return open_records(config.val_dataset_dir), config.val_dataset_dir
    if not config.val_split:
        return None
    if not isinstance(training, TrainingPart):
        raise ConfigError(
            f"val_split holds out images of dataset_dir or train_dataset, and this run was given another loader; "
            f"give validation data of its own: {setter('val_dataset_dir')}"
        )
    return training.held_out, "the held-out images"


def check_closed_set(closed: ClosedSet, prepare: Callable[[Any], object], *, collectives: Collectives) -> None:
    """Find out whether the images of a closed set can be read: decode a few on each rank. Every rank must call this.

    All images may be too many: a part of the training data may be millions.

    Raises:
        DataError: one cannot be read; the same on every rank.
    """
    indices = np.flatnonzero(closed.labels != LEFT_OUT)
    own = share_of(len(indices), collectives)
    chosen = indices[np.unique(np.linspace(own.start, own.stop - 1, 32).astype(np.int64))] if own.size else indices[:0]

    def decode() -> None:
        for image, index in zip(_images(closed, chosen, 0), chosen.tolist()):
            try:
                prepare(image)
            except DataError as error:
                raise DataError(f"{closed.records.describe(index)}: {error}") from None

    with kept_global_generators():
        agree(decode, collectives, error=DataError, prefix=f"{closed.what}: ")


def validate(
    embed: Embed,
    closed: ClosedSet,
    *,
    centers: Centers,
    config: Config,
    collectives: Collectives,
    is_stopped: Callable[[], bool] | None = None,
) -> ClosedSetReport | None:
    """Classify the images of a closed set. Each rank embeds its share; the report is the same on all ranks.

    Args:
        embed: embeds images, the sum over mirror images where `config.flip` is set.
        closed: the images.
        centers: of this rank.
        config: `test_batch_size`, `flip`, `bad_images` and `seed` are used.
        collectives: over the ranks.
        is_stopped: asked before each image; where it is True on any rank, all ranks return None.

    Raises:
        DataError: an image cannot be read, unless `bad_images` is 'skip', or none is left; the same on all ranks.
    """
    indices = np.flatnonzero(closed.labels != LEFT_OUT)
    size = collectives.topology.world_size * _BATCHES * config.test_batch_size
    kept, predicted = [], []
    for start in range(0, len(indices), size):
        places = indices[start : start + size]
        own = share_of(len(places), collectives)
        read = _Reading(embed, closed, config=config, is_stopped=is_stopped or (lambda: False))
        embeddings = agree(
            functools.partial(read, places[own.start : own.stop]),
            collectives,
            error=DataError,
            prefix=f"{closed.what}: ",
        )
        told = collectives.gather_objects((read.is_stopped(), read.skipped))
        if any(stopped for stopped, _ in told):
            return None
        watch.phase(f"classifying image {start} and following")
        features = gather_rows(embeddings, len(places), collectives=collectives)
        if config.flip and not centers.is_cosine:  # the length counts: the mean of both in place of their sum
            features /= 2
        is_kept = ~np.isin(places, [index for _, skipped in told for index in skipped])
        kept.append(places[is_kept])
        predicted.append(
            top_classes(features[is_kept], centers, count=TOP, num_classes=closed.num_classes, collectives=collectives)
        )
    found = np.concatenate(kept)
    if not len(found):
        raise on_all_ranks(DataError(f"{closed.what}: none of {counted(len(indices), 'image')} can be read"))
    return ClosedSetReport(closed.labels[found], np.concatenate(predicted))


class _Reading:
    """Embeds images of a closed set by their places in it.

    Attributes:
        skipped: places of those that cannot be read.
    """

    def __init__(self, embed: Embed, closed: ClosedSet, *, config: Config, is_stopped: Callable[[], bool]) -> None:
        self._embed, self._closed, self._config = embed, closed, config
        self.is_stopped = is_stopped
        self.skipped: list[int] = []

    def __call__(self, places: NDArray[np.int64]) -> Embeddings:
        """[n, D], zero for those that are skipped; fewer where it was stopped."""
        with kept_global_generators():
            try:
                return self._embedded(places)
            except DataError:
                if self._config.bad_images != "skip":
                    raise
            rows = []  # one by one, to find those that cannot be read
            for place in places:
                try:
                    rows.append(self._embedded(np.array([place])))
                except DataError:
                    self.skipped.append(int(place))
                    rows.append(np.zeros([1, self._config.emb_dim], np.float32))
            return np.concatenate(rows)

    def _embedded(self, places: NDArray[np.int64]) -> Embeddings:
        images = itertools.takewhile(lambda _: not self.is_stopped(), _images(self._closed, places, self._config.seed))
        return self._embed(
            images,
            damaged=self._closed.damaged,
            describe=lambda number: self._closed.records.describe(int(places[number])),
        )


def _images(closed: ClosedSet, places: NDArray[np.int64], seed: int) -> Iterator[Any]:
    """The images at some places, each read when it is asked for."""
    for place in places.tolist():
        if closed.records.uses_global_random:  # the same image each time
            seed_global_generators(derive_seed(seed, place))
        try:
            yield closed.records[place].image
        except DataError as error:
            raise DataError(f"{closed.records.describe(place)}: {error}") from None


def write_tables(folder: Path, report: ClosedSetReport, names: ClassNames) -> None:
    """Write two tables: classes.csv, a class per row, and confusions.csv, a pair of confused classes per row.

    Args:
        folder: is made where it does not exist.
        report: what was found.
        names: of the classes.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    classes: list[list[object]] = [["class", "images", "top1", "most_confused_with", "times"]]
    for found in report.classes():
        confusion = ["", ""] if found.confusion is None else [names[found.confusion.predicted], found.confusion.images]
        classes.append([names[found.label], found.images, round(found.correct / found.images, 6), *confusion])
    confusions: list[list[object]] = [["class", "predicted", "images"]]
    confusions += [[names[each.label], names[each.predicted], each.images] for each in report.confusions()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("classes.csv", classes), ("confusions.csv", confusions)):
            with write_file(folder / name) as file:
                file.write(csv_bytes(rows))
    except OSError as error:
        raise ConfigError(f"{folder}: the tables cannot be written: {error.strerror or error}") from None
