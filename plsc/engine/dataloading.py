"""From the settings to training batches and verification sets."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import paddle

from plsc.config import Config, check_callable
from plsc.data.augment import Augment
from plsc.data.loader import Batch, ReaderLoader, TrainLoader
from plsc.data.records import DatasetRecords, Records, as_records
from plsc.data.sources import open_records
from plsc.data.subset import with_min_images
from plsc.data.transforms import Transform
from plsc.data.verification_set import VerificationSet
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.errors import ConfigError, DataError

log = logging.getLogger("plsc")


class Loader(Protocol):
    """A source of training batches for one rank. Its position is (epoch, step), nothing else.

    Attributes:
        num_images: images per epoch of all ranks; None where unknown.
        skipped: unreadable images left out so far.
    """

    @property
    def num_images(self) -> int | None: ...

    @property
    def skipped(self) -> int: ...

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_step` on, for a run that resumes within the epoch."""
        ...

    def close(self) -> None:
        """Release what reading needs: processes, files."""
        ...


def build_dataloader(config: Config, topology: Topology) -> TrainLoader | ReaderLoader:
    """A loader of the user's `train_reader`, else of `train_dataset`, else of `dataset_dir`.

    Raises:
        ConfigError: `train_reader` is no function.
        DataError: the source cannot be opened, or has labels of `num_classes` or more.
    """
    if config.train_reader is not None:
        return _reader_loader(config, topology)
    return TrainLoader(
        _training_records(config),
        Transform(config.image_shape, config.flip, augment=_augment(config)),
        num_classes=config.num_classes,
        batch_size=config.train_batch_size,
        rank=topology.rank,
        world_size=topology.world_size,
        seed=config.seed,
        num_workers=config.num_workers,
        skip_bad_images=config.bad_images == "skip",
        strict_images=config.strict_images,
        class_balanced=config.class_balanced,
        worker_timeout=config.worker_timeout,
    )


def check_loader(loader: Loader, config: Config, *, topology: Topology) -> Loader:
    """Return a user's loader if it fits the run.

    Raises:
        ConfigError: it lacks a part of `Loader`, or a `TrainLoader` was made for another batch size or another rank.
    """
    missing = [name for name in ("epoch", "close") if not callable(getattr(loader, name, None))]
    missing += [name for name in ("num_images", "skipped") if not hasattr(loader, name)]
    if missing:
        raise ConfigError(
            f"loader: got {type(loader).__name__}, which has no {', '.join(missing)}; expected an object with "
            f"epoch(epoch, first_step), close(), num_images and skipped"
        )
    if isinstance(loader, TrainLoader):
        found = (loader.batch_size, loader.rank, loader.world_size)
        expected = (config.train_batch_size, topology.rank, topology.world_size)
        if found != expected:
            raise ConfigError(
                f"loader: was made for (batch size, rank, world size) {found}, this process trains with {expected}; "
                f"make it with train_batch_size, and the rank and world size of init_topology()"
            )
    return loader


def count_steps_per_epoch(loader: Loader, global_batch: int) -> int | None:
    """Steps per epoch; None where the number of training images is unknown."""
    if isinstance(loader, TrainLoader):
        return loader.steps_per_epoch
    return None if loader.num_images is None else max(1, -(-loader.num_images // global_batch))


def _reader_loader(config: Config, topology: Topology) -> ReaderLoader:
    reader = check_callable(
        "train_reader", config.train_reader, expected="a function that returns an iterable of batches"
    )
    loader = ReaderLoader(
        reader,
        config.image_shape,
        num_classes=config.num_classes,
        num_images=config.train_image_num,
        world_size=topology.world_size,
    )
    if loader.num_images is None and config.warmup_epochs:
        log.info(
            "warm-up in epochs needs the number of images: reading train_reader once to count them "
            "(set_train_image_num saves this)"
        )
        loader.num_images = loader.count()
    return loader


def _training_records(config: Config) -> Records:
    own = config.train_dataset
    records = open_records(config.dataset_dir) if own is None else as_records(own)
    if config.min_images_per_class:
        records = with_min_images(records, config.min_images_per_class)
    if records.num_classes is not None and records.num_classes > config.num_classes:
        raise DataError(
            f"{_first_beyond(records, config.num_classes)} is out of range, expected 0 to "
            f"{config.num_classes - 1}; set_class_num({records.num_classes}) (--num-classes), or correct the label"
        )
    if config.train_image_num not in (None, len(records)):
        log.warning(
            "set_train_image_num says %d images, the data set has %d; training uses the data set's number",
            config.train_image_num,
            len(records),
        )
    return records


def _augment(config: Config) -> Augment:
    return Augment(**{field.name: getattr(config, f"augment_{field.name}") for field in dataclasses.fields(Augment)})


def agreed_batches(batches: Iterator[Batch], collectives: Collectives) -> Iterator[Batch]:
    """The batches of a loader that may have more on one rank than on another.

    Each batch is cut to the shortest over ranks, and the batches end when the first rank has none left. Otherwise ranks
    would wait for each other without end.
    """
    if collectives.topology.world_size == 1:
        yield from batches
        return
    dropped = 0
    while True:
        batch = next(batches, None)
        own = 0 if batch is None else len(batch.labels)
        shared = int(collectives.all_reduce_min(paddle.to_tensor([own], dtype="int64")).item())
        dropped += own - shared
        if batch is None or shared == 0:
            break
        yield Batch(batch.images[:shared], batch.labels[:shared])
    if dropped:
        log.warning(
            "train_reader of rank %d had %d images more than another rank's; this epoch left them out",
            collectives.topology.rank,
            dropped,
        )


def open_verification_sets(config: Config) -> list[VerificationSet]:
    """The user's `test_dataset` or `test_reader`, else `<name>.bin` of each of `val_targets`.

    Raises:
        DataError: a set that was asked for by name is missing or damaged.
    """
    if config.test_dataset is not None:
        return _as_sets(config.test_dataset, "test_dataset")
    if config.test_reader is not None:
        return _as_sets(config.test_reader(), "test_reader")
    sets, folder = [], Path(config.dataset_dir)
    if not folder.is_dir():  # a file, a pattern
        folder = folder.parent
    for name in config.val_names:
        path = folder / f"{name}.bin"
        if path.is_file():
            sets.append(VerificationSet.load(path, name))
        elif config.val_targets is not None:
            raise DataError(
                f"verification set '{name}' of val_targets: {path} does not exist; put it there, name "
                f"others with set_val_targets, or set_with_test(False)"
            )
        else:
            log.warning("no verification: %s (the default of val_targets) does not exist", path)
    return sets


def _as_sets(value: Any, setting: str) -> list[VerificationSet]:
    sets = [value] if isinstance(value, VerificationSet) else list(value)
    for item in sets:
        if not isinstance(item, VerificationSet):
            raise ConfigError(
                f"{setting}: got {type(item).__name__}, expected plsc.data.verification_set."
                f"VerificationSet, or a list of them"
            )
    return sets


def _first_beyond(records: Records, num_classes: int) -> str:
    if isinstance(records, DatasetRecords):  # finding the record would read every image
        return f"label {records.count_classes() - 1}"
    index = int((records.labels >= num_classes).argmax())
    return f"{records.describe(index)}: label {int(records.labels[index])}"
