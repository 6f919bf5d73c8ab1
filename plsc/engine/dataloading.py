"""From the settings to training batches and verification sets."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import paddle

from plsc.config import DEFAULT_VAL_TARGETS, Config, check_callable
from plsc.data.augment import Augment
from plsc.data.loader import Batch, ReaderLoader, TrainLoader
from plsc.data.records import DatasetRecords, Records, as_records
from plsc.data.sources import open_records
from plsc.data.subset import hold_out, with_min_images
from plsc.data.transforms import Transform
from plsc.data.verification_set import VerificationSet, find_bin
from plsc.distributed.agreement import agree, explain, require_equal
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.transfer import Read, Transfers
from plsc.errors import ConfigError, DataError, PLSCError
from plsc.utils.hints import setter
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# Labels of so many times more than there are images are taken for ids that are no class numbers.
_SPARSE = 10


class Loader(Protocol):
    """A source of training batches for one rank. Its position is (epoch, step), nothing else.

    Attributes:
        num_images: images per epoch of all ranks; None where unknown.
        skipped: unreadable images left out so far.

    A loader may have `num_classes`, C: a run whose settings do not give the number of classes takes it from there.
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


def build_dataloader(
    config: Config, topology: Topology, *, classes_trained: int | None = None, follows_data: bool = False
) -> TrainLoader | ReaderLoader:
    """A loader of the user's `train_reader`, else of `train_dataset`, else of `dataset_dir`.

    Its `num_classes` is that of the settings if given there; else that of the checkpoint to resume from, unless the
    data has more; else that of the data; else the default of the settings.

    Args:
        config: the settings.
        topology: this rank.
        classes_trained: number of classes in the checkpoint to resume from.
        follows_data: the number of classes of the data counts, where it is known, also where the checkpoint has more.

    Raises:
        ConfigError: `train_reader` is no function.
        DataError: the source cannot be opened, or has labels of `num_classes` or more.
    """
    if config.train_reader is not None:
        num_classes = _choose_num_classes(config, None, classes_trained, is_main=topology.is_main)
        return _reader_loader(config, topology, num_classes)
    records = open_training_records(config)
    found = _count_known_classes(records)
    if follows_data and found is not None:
        classes_trained = None
    return TrainLoader(
        records,
        Transform(config.image_shape, config.flip, augment=_augment(config)),
        num_classes=_choose_num_classes(config, found, classes_trained, is_main=topology.is_main),
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


def num_classes_of(loader: Loader, config: Config, *, classes_trained: int | None) -> int:
    """C of a run: that of the settings if given there, else of the loader, else of the checkpoint to resume from."""
    if config.is_given("num_classes"):
        return config.num_classes
    return int(getattr(loader, "num_classes", None) or classes_trained or config.num_classes)


def _choose_num_classes(config: Config, found: int | None, trained: int | None, *, is_main: bool) -> int:
    """C by the settings, the number of classes `found` in the data, and that of the checkpoint; and say which."""
    level = logging.WARNING if is_main else logging.DEBUG
    chosen = config.num_classes
    if not config.is_given("num_classes"):
        if trained is not None and trained >= (found or 0):
            chosen = trained
        elif found is not None:
            chosen = found
            log.info("num_classes is not set: %d, as in the training data", found)
        else:
            log.log(
                level,
                "num_classes is not set, and the training data does not say how many classes it has: training %d, the "
                "default; give the number with %s",
                chosen,
                setter("num_classes"),
            )
    if found is not None and chosen > found:
        log.log(
            level,
            "num_classes is %d, the training data has %s: no image for %s",
            chosen,
            counted(found, "class"),
            counted(chosen - found, "class center"),
        )
        if found == 1:
            log.log(
                level,
                "all training images are of one class: the network learns to tell no two images apart; training needs "
                "images of two classes or more",
            )
    return chosen


def _count_known_classes(records: Records) -> int | None:
    """The number of classes of a source; None where only reading every record would tell."""
    labels = records.known_labels()
    if records.num_classes is None and labels is not None:
        return records.count_classes()
    return records.num_classes


def warn_of_large_batch(loader: Loader, config: Config, *, global_batch: int) -> None:
    """Warn of a global batch of more images than an epoch has: it holds images several times."""
    if loader.num_images is None or global_batch <= loader.num_images:
        return
    log.warning(
        "the global batch of %s is larger than the training data of %s: a step takes images several "
        "times%s; %s or less",
        counted(global_batch, "image"),
        counted(loader.num_images, "image"),
        ""
        if callable(config.lr_schedule)
        else f", and the peak of the learning rate, lr * global batch / 1024, is {config.lr * global_batch / 1024:.3g}",
        setter("train_batch_size", max(1, loader.num_images * config.train_batch_size // global_batch)),
    )


def count_images(records: Records | None, num_classes: int) -> npt.NDArray[np.int64] | None:
    """[C]: training images of each class; None where the training data has no records.

    A source that does not know its labels reads every record for it.
    """
    return None if records is None else np.bincount(records.labels, minlength=num_classes)


def count_steps_per_epoch(loader: Loader, global_batch: int) -> int | None:
    """Steps per epoch; None where the number of training images is unknown."""
    if isinstance(loader, TrainLoader):
        return loader.steps_per_epoch
    return None if loader.num_images is None else max(1, -(-loader.num_images // global_batch))


def agree_on_images(loader: Loader, collectives: Collectives) -> None:
    """Where each rank counted the images of its own `train_reader`, take the smallest count: an epoch ends with the
    shortest reader, see `agreed_batches`. Every rank must call this, with the same kind of loader."""
    if isinstance(loader, ReaderLoader):
        counts = [count for count in collectives.gather_objects(loader.num_images) if count is not None]
        loader.num_images = min(counts, default=None)


def data_folder(config: Config) -> str:
    """The folder that the training data lies in, where `dataset_dir` names it or a file or pattern in it."""
    folder = Path(config.dataset_dir)
    return str(folder if folder.is_dir() else folder.parent)


def _reader_loader(config: Config, topology: Topology, num_classes: int) -> ReaderLoader:
    reader = check_callable(
        "train_reader", config.train_reader, expected="a function that returns an iterable of batches"
    )
    loader = ReaderLoader(
        reader,
        config.image_shape,
        num_classes=num_classes,
        num_images=config.train_image_num,
        world_size=topology.world_size,
    )
    if loader.num_images is None and (config.warmup_epochs or config.lr_epochs):
        log.info(
            "a learning rate by epochs needs the number of images: reading train_reader once to count them (%s saves "
            "this)",
            setter("train_image_num"),
        )
        loader.num_images = loader.count()
    return loader


def open_training_records(config: Config) -> Records:
    """The training data; a `TrainingPart` where `val_split` holds a part out.

    Raises:
        DataError: it cannot be opened, has labels of `num_classes` or more, or no class has an image to hold out.
    """
    own = config.train_dataset
    records = open_records(config.dataset_dir) if own is None else as_records(own)
    if config.min_images_per_class:
        records = with_min_images(records, config.min_images_per_class)
    _check_labels(records, config)
    if config.train_image_num not in (None, len(records)):
        log.warning(
            "train_image_num is %d, the data set has %s; training uses the data set's number",
            config.train_image_num,
            counted(len(records), "image"),
        )
    if config.val_split:
        records = hold_out(records, config.val_split, seed=config.seed)
        _check_labels(records, config)
    return records


def _check_labels(records: Records, config: Config) -> None:
    labels = records.known_labels() if len(records) else None
    smallest = 0 if labels is None else int(labels.min())
    found, given = records.num_classes, config.num_classes if config.is_given("num_classes") else None
    if found is not None and given is not None and found > given:
        begin = ""
        if smallest == 1 and found == given + 1:
            begin = f"the labels begin at 1: subtract 1 from each, so that they run from 0 to {given - 1}; or "
        raise DataError(
            f"{_first_beyond(records, given)} is out of range, expected 0 to "
            f"{given - 1}; {begin}{setter('num_classes', found)}, or correct the label"
        )
    if labels is None:
        return
    largest = int(labels.max())
    if given is None and largest >= _SPARSE * max(len(records), 100):
        raise DataError(
            f"{records.describe(int(labels.argmax()))}: label {largest} of {counted(len(records), 'image')} means "
            f"{largest + 1} classes, most of them without an image; number the classes from 0 without gaps: "
            f"{setter('min_images_per_class', 1)} does so; or {setter('num_classes', largest + 1)}"
        )
    if smallest > 0:
        log.warning(
            "the labels begin at %d, expected 0: no image for %s; subtract %d from each label",
            smallest,
            counted(smallest, "class center"),
            smallest,
        )


def _augment(config: Config) -> Augment:
    return Augment(**{field.name: getattr(config, f"augment_{field.name}") for field in dataclasses.fields(Augment)})


def agreed_batches(batches: Iterator[Batch], collectives: Collectives, transfers: Transfers) -> Iterator[Batch]:
    """The batches of a loader that may have more on one rank than on another.

    Each batch is cut to the shortest over ranks, and the batches end when the first rank has none left. Otherwise ranks
    would wait for each other without end. On a GPU, ranks agree on a batch so many steps before it is used that no rank
    waits for the answer.

    Raises:
        PLSCError: the loader of a rank failed; the same on every rank.
    """
    if collectives.topology.world_size == 1:
        yield from batches
        return
    dropped, ahead = 0, transfers.lag + 1 if transfers.lag else 0
    offers: collections.deque[_Offer] = collections.deque()
    while True:
        while len(offers) <= ahead:
            offers.append(_offer(batches, collectives, transfers))
        own, batch, reason, shortest = offers.popleft()
        shared = int(shortest()[0])
        if shared < 0:
            text = "the training data cannot be read: "
            agree(functools.partial(_raise, reason), collectives, error=DataError, prefix=text)
        dropped += own - shared
        if batch is None or shared == 0:
            break
        yield Batch(batch.images[:shared], batch.labels[:shared])
    if dropped:
        log.warning(
            "train_reader of rank %d had at least %s more than another rank's; this epoch left them out",
            collectives.topology.rank,
            counted(dropped, "image"),
        )


class _Offer(NamedTuple):
    """What this rank has for a step.

    Attributes:
        own: the number of its samples; 0 where there are none left, -1 where reading them failed.
        batch: the samples.
        reason: why reading them failed.
        shortest: the least `own` of all ranks.
    """

    own: int
    batch: Batch | None
    reason: Exception | None
    shortest: Read


def _offer(batches: Iterator[Batch], collectives: Collectives, transfers: Transfers) -> _Offer:
    reason: Exception | None = None
    batch: Batch | None = None
    try:
        batch = next(batches, None)
    except Exception as raised:  # whatever it is, the other ranks must learn of it
        reason = raised
    if batch is not None and transfers.lag:  # a loader may use its arrays again
        batch = Batch(np.array(batch.images), np.array(batch.labels))
    own = -1 if reason is not None else 0 if batch is None else len(batch.labels)
    return _Offer(own, batch, reason, transfers.to_host(collectives.all_reduce_min(paddle.full([1], own, "int64"))))


def _raise(reason: Exception | None) -> None:
    if reason is not None:
        raise reason


def open_verification_sets(config: Config, collectives: Collectives) -> list[VerificationSet]:
    """The verification sets of a configuration, the same on all ranks. Every rank must call this.

    These are the user's `test_dataset` or `test_reader`, else the files that `val_targets` names (see `find_bin`).
    Rank 0 logs how many pairs each set has, and warns of metrics that these do not give.

    Raises:
        DataError: a set that was asked for by name is missing or damaged, `test_reader` fails, or ranks have different
            sets; the same on every rank.
        ConfigError: two sets have the same name.
    """
    sets = agree(lambda: _open_sets(config), collectives, error=DataError)
    facts = [f"{pairs.name} ({counted(len(pairs), 'pair')})" for pairs in sets]
    require_equal(facts, collectives, what="verification sets, which they verify together")
    return sets


def _open_sets(config: Config) -> list[VerificationSet]:
    if config.test_dataset is not None:
        sets = _as_sets(config.test_dataset, "test_dataset")
    elif config.test_reader is not None:
        try:
            sets = _as_sets(config.test_reader(), "test_reader")
        except PLSCError:
            raise
        except Exception as error:  # a user's function may raise any
            raise DataError(f"test_reader: calling it failed: {explain(error)}; correct the function") from error
    else:
        sets = _named_sets(config)
    names = [item.name for item in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{names.count(name)} verification sets are named '{name}', expected a name of its own for each, by "
                f"which its metrics are reported; rename one"
            )
    for item in sets:
        log.info("verification set %s: %s", item.name, item.summary())
        for shortcoming in item.shortcomings():
            log.warning("verification set %s: %s", item.name, shortcoming)
    return sets


def missing_default_set(config: Config) -> Path | None:
    """The path of the verification set that is taken where none is given, if it is taken and does not exist."""
    is_given = any(value is not None for value in (config.val_targets, config.test_dataset, config.test_reader))
    path = Path(data_folder(config), f"{DEFAULT_VAL_TARGETS}.bin")
    return None if is_given or path.exists() else path


def _named_sets(config: Config) -> list[VerificationSet]:
    if missing_default_set(config) is not None:
        return []
    folder = Path(data_folder(config))
    try:
        return [VerificationSet.load(*find_bin(name, folder)) for name in config.val_names]
    except DataError as error:
        raise DataError(f"{error}; name others with {setter('val_targets')}, or {setter('with_test', False)}") from None


def _as_sets(value: Any, setting: str) -> list[VerificationSet]:
    sets = list(value) if isinstance(value, Iterable) else [value]  # a set has no iterator
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
