"""From a configuration to what the engine reads: training batches and verification sets."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle

from plsc.config import Config, check_callable
from plsc.data.augment import Augment
from plsc.data.loader import Batch, ReaderLoader, TrainLoader
from plsc.data.records import DatasetRecords, open_records
from plsc.data.subset import with_min_images
from plsc.data.transforms import Transform
from plsc.data.verification_set import VerificationSet
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.errors import ConfigError, DataError

log = logging.getLogger("plsc")


def open_train_loader(config: Config, topology: Topology) -> TrainLoader | ReaderLoader:
    """The user's `train_reader`, else `train_dataset`, else the data folder.

    Raises:
        DataError: the source cannot be opened, or has labels beyond the class number.
    """
    if config.train_reader is not None:
        reader = check_callable("train_reader", config.train_reader, "a function that returns an iterable of batches")
        loader = ReaderLoader(
            reader, config.image_shape, config.num_classes, config.train_image_num, topology.world_size
        )
        if loader.num_images is None and config.warmup_epochs:
            log.info(
                "warm-up in epochs needs the number of images: reading train_reader once to count them "
                "(set_train_image_num saves this)"
            )
            loader.num_images = loader.count()
        return loader
    own = config.train_dataset
    records = (
        open_records(config.dataset_dir) if own is None else own if hasattr(own, "describe") else (DatasetRecords(own))
    )
    if config.min_images_per_class:
        records = with_min_images(records, config.min_images_per_class)
    if records.num_classes > config.num_classes:
        raise DataError(
            f"{_first_beyond(records, config.num_classes)} is out of range, expected 0 to "
            f"{config.num_classes - 1}; set_class_num({records.num_classes}) (--num-classes) or mend "
            f"the list"
        )
    if config.train_image_num not in (None, len(records)):
        log.warning(
            "set_train_image_num says %d images, the data set has %d; the data set counts",
            config.train_image_num,
            len(records),
        )
    return TrainLoader(
        records,
        Transform(config.image_shape, config.flip, _augment(config)),
        config.num_classes,
        config.train_batch_size,
        topology.rank,
        topology.world_size,
        config.seed,
        config.num_workers,
        config.bad_images == "skip",
        config.class_balanced,
        config.worker_timeout,
    )


def _augment(config: Config) -> Augment:
    return Augment(**{field.name: getattr(config, f"augment_{field.name}") for field in dataclasses.fields(Augment)})


def agreed_batches(batches: Iterator[Batch], collectives: Collectives) -> Iterator[Batch]:
    """Batches of a user's reader, cut to the shortest over ranks, until the first rank has no more.

    Ranks whose readers differ in length would otherwise wait for each other for ever.
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
        if shared == 0:
            break
        yield Batch(batch.images[:shared], batch.labels[:shared])
    if dropped:
        log.warning(
            "train_reader of rank %d had %d images more than another rank's; they were left out of this epoch",
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


def _first_beyond(records: Any, num_classes: int) -> str:
    labels = getattr(records, "labels", None)
    if labels is None:
        return f"label {records.num_classes - 1}"
    index = int((labels >= num_classes).argmax())
    return f"{records.describe(index)}: label {int(labels[index])}"
