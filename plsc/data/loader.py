"""Batches for one rank: seeded by epoch, disjoint over ranks, independent of the number of workers.

Every epoch is one order of all records, drawn from (seed, epoch). Step k takes the k-th slice of one *global* batch
from this order, and each rank takes its share of the slice. The last slice is completed from the beginning of the
epoch, so that every image is seen in every epoch and all ranks take the same number of steps. A loader has no other
state: (epoch, step) is its whole position.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc.data.damage import DamageLog, refuse
from plsc.data.records import Labels, Records, to_class
from plsc.data.transforms import Transform, random_keys
from plsc.data.workers import WorkerPool
from plsc.errors import DataError, PLSCError
from plsc.utils.hints import setter
from plsc.utils.plural import counted
from plsc.utils.seeding import kept_global_generators, seed_global_generators

log = logging.getLogger("plsc")

# Advice where a label equals C, the usual sign of labels 1 to C.
_FROM_ONE = "if your labels begin at 1, subtract 1 from each; otherwise "


class Batch(NamedTuple):
    """One rank's share of a step.

    Attributes:
        images: [N, 3, H, W], uint8 pixels or finished float32.
        labels: [N] int64.
    """

    images: npt.NDArray[Any]
    labels: Labels


class TrainLoader:
    """Epochs of batches from a random-access source.

    Args:
        records: the source.
        transform: image -> [3, H, W].
        num_classes: C; a label outside 0 ... C - 1 is a `DataError`.
        batch_size: N, per rank.
        rank, world_size: this rank, and R.
        seed: 0 or more.
        num_workers: processes that read and transform; 0 reads and transforms in this process.
        skip_bad_images: replace an image that cannot be decoded by the next readable one and count it in `skipped`,
            instead of raising `DataError`.
        strict_images: an image that is damaged but can be decoded in part counts as one that cannot be decoded. By
            default it is used, with a warning.
        class_balanced: every class comes equally often, see `balanced_order`, instead of every image.
        worker_timeout: seconds that one image may take before its process counts as hanging; 0 waits forever.

    Attributes:
        records: the source.
        num_classes: C.
        num_images: of the source.
        steps_per_epoch: the same on every rank.
        skipped: images replaced so far on this rank.
        damaged: different images used so far on this rank that are damaged but can be decoded in part.

    Raises:
        DataError: the source is empty. In `epoch`: an image cannot be decoded, a label is out of range, or a worker
            process died or hangs; names the record.
        StorageError: in `epoch`, the system cannot read an image; also with `skip_bad_images`.

    Example:
        >>> records = open_records("synthetic:10:200")
        >>> loader = TrainLoader(records, Transform((3, 32, 32)), num_classes=10, batch_size=16)
        >>> next(loader.epoch(0)).images.shape
        (16, 3, 32, 32)
    """

    def __init__(
        self,
        records: Records,
        transform: Transform,
        *,
        num_classes: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        skip_bad_images: bool = False,
        strict_images: bool = False,
        class_balanced: bool = False,
        worker_timeout: float = 300.0,
    ) -> None:
        if len(records) == 0:
            raise DataError("the training set is empty, expected at least one image")
        self._maker = _BatchMaker(
            records, transform, num_classes=num_classes, seed=seed, skip=skip_bad_images, strict=strict_images
        )
        self.records, self.num_classes = records, num_classes
        self.num_images = len(records)
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.steps_per_epoch: int = -(-self.num_images // (batch_size * world_size))
        self.skipped = 0
        self._damaged = DamageLog(records.describe)
        self._labels = records.labels if class_balanced else None
        if self._labels is not None and len(self._labels) != self.num_images:
            raise DataError(
                f"{records.format}: has {counted(self.num_images, 'image')} and "
                f"{counted(len(self._labels), 'label')}, expected one each"
            )
        self._num_workers, self._timeout = num_workers, worker_timeout
        self._pool: WorkerPool | None = None

    @property
    def worker_pids(self) -> list[int]:
        """The ids of the worker processes; empty before the first batch and after `close`."""
        return [] if self._pool is None else self._pool.pids

    @property
    def damaged(self) -> int:
        return self._damaged.count

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from step `first_step` on."""
        order = self._order(epoch)
        tasks = ((epoch, self._indices(order, step)) for step in range(first_step, self.steps_per_epoch))
        try:
            for filled, pixels in self._filled(tasks):
                for message in filled.skipped:
                    log.warning("skipped an unreadable image: %s", message)
                self.skipped += len(filled.skipped)
                for index, damage in filled.damaged:
                    self._damaged.warn(index, damage)
                images = pixels if filled.finished is None else filled.finished
                yield Batch(images, np.array(filled.labels, np.int64))
        finally:
            self._damaged.summarize()

    def describe(self, epoch: int, step: int, *, row: int) -> str:
        """Where an image of this rank comes from, for messages: the source's description of its record.

        Args:
            epoch: of the batch.
            step: of the batch, from 0 in each epoch.
            row: of the image in the batch.
        """
        index = self._indices(self._order(epoch), step)[row]
        return self._maker.records.describe(self._maker.read_index(epoch, index))

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The order of all records in an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        return rng.permutation(self.num_images) if self._labels is None else balanced_order(self._labels, rng)

    def _indices(self, order: npt.NDArray[np.int64], step: int) -> list[int]:
        """This rank's records in a step of an epoch of that order."""
        start = (step * self.world_size + self.rank) * self.batch_size
        indices: list[int] = order[np.arange(start, start + self.batch_size) % len(order)].tolist()
        return indices

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _filled(self, tasks: Iterator[_Task]) -> Iterator[tuple[_Filled, npt.NDArray[np.uint8]]]:
        shape = (self.batch_size, *self._maker.transform.image_shape)
        if self._num_workers == 0:
            for task in tasks:
                pixels = np.empty(shape, np.uint8)
                yield self._fill_here(task, pixels), pixels
            return
        if self._pool is None:
            self._pool = WorkerPool(
                self._maker,
                self._num_workers,
                batch_shape=shape,
                describe=self._maker.records.describe,
                timeout=self._timeout,
            )
        try:
            yield from self._pool.run(tasks)
        except PLSCError:
            self.close()
            raise

    def _fill_here(self, task: _Task, pixels: npt.NDArray[np.uint8]) -> _Filled:
        held = -1

        def hold(index: int) -> None:
            nonlocal held
            held = index

        is_seeded = self._maker.records.uses_global_random
        try:
            with kept_global_generators() if is_seeded else contextlib.nullcontext():
                return self._maker(task, pixels, hold)
        except PLSCError:
            raise
        except Exception as error:  # a user's own data set may raise any
            raise DataError(f"{self._maker.records.describe(held)}: reading it failed: {error!r}") from error


def balanced_order(labels: Labels, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """An order of n records in which any two classes come equally often, up to a difference of one.

    The order is a sequence of rounds. Each round holds every class once, in random order. A class takes its images one
    after the other, in random order, and starts again when all are used. So images of small classes come several times,
    and some images of large classes do not come.

    Args:
        labels: [n].
        rng: the source of randomness.

    Returns:
        [n] int64, indices of records.
    """
    present, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rounds = -(-len(labels) // len(present))
    classes = rng.permuted(np.tile(np.arange(len(present)), (rounds, 1)), axis=1).reshape(-1)[: len(labels)]
    mixed = rng.permutation(len(labels))
    by_class = mixed[np.argsort(places.reshape(-1)[mixed], kind="stable")]
    turn = np.arange(len(labels)) // len(present)
    order: npt.NDArray[np.int64] = by_class[(np.cumsum(counts) - counts)[classes] + turn % counts[classes]]
    return order


# (epoch, indices). Pickling a list takes a tenth of the time of an array.
_Task = tuple[int, list[int]]


class _Filled(NamedTuple):
    """A batch without its uint8 pixels, which are in shared memory.

    Attributes:
        labels: [N].
        skipped: a message for each image that was replaced.
        damaged: (index, what is wrong) of each image that is damaged but was used.
        finished: [N, 3, H, W] float32 where the source has finished images, else None.
    """

    labels: list[int]
    skipped: list[str]
    damaged: list[tuple[int, str]]
    finished: npt.NDArray[np.float32] | None


class _BatchMaker:
    """Makes a batch from indices; the function that worker processes run."""

    def __init__(
        self, records: Records, transform: Transform, *, num_classes: int, seed: int, skip: bool, strict: bool
    ) -> None:
        self.records, self.transform = records, transform
        self.num_classes, self.seed, self.skip = num_classes, seed, skip
        self._faults: list[str] = []  # of the image in work
        self._on_damage = refuse if strict else self._faults.append

    def __call__(self, task: _Task, pixels: npt.NDArray[np.uint8], hold: Callable[[int], None]) -> _Filled:
        """Write to `pixels` [N, 3, H, W], unless the source has finished images; `hold(index)` before each record."""
        epoch, indices = task
        skipped: list[str] = []
        damaged: list[tuple[int, str]] = []
        finished: list[npt.NDArray[Any]] = []
        labels = []
        records, transform, faults, on_damage = self.records, self.transform, self._faults, self._on_damage
        seeds, keys = records.uses_global_random, random_keys(self.seed, epoch, indices=indices).tolist()
        for index, key, out in zip(indices, keys, pixels):
            hold(index)
            if seeds:
                seed_global_generators(key)
            try:
                encoded, label = records[index]
                image = transform(encoded, key, out=out, on_damage=on_damage)
            except DataError as error:
                skipped.append(self._unreadable(index, error))
                index, image, label = self._next_readable(epoch, index, out, skipped, hold)
            if faults:
                damaged += [(index, fault) for fault in faults]
                faults.clear()
            if not 0 <= label < self.num_classes:
                more = f"{setter('num_classes', label + 1)} or more, or " if label > 0 else ""
                begin = _FROM_ONE if label == self.num_classes else ""
                raise DataError(
                    f"{records.describe(index)}: label {label} is out of range, expected 0 to "
                    f"{self.num_classes - 1}; {begin}{more}correct the list"
                )
            labels.append(label)
            if image is not out:
                finished.append(image)
        if finished and len(finished) < len(indices):
            raise DataError(
                f"a batch has {counted(len(finished), 'finished float32 image')} and "
                f"{len(indices) - len(finished)} of another kind; expected a data set of one kind"
            )
        return _Filled(labels, skipped, damaged, np.stack(finished) if finished else None)

    def read_index(self, epoch: int, index: int) -> int:
        """The record that a batch has in place of `index`: the same, but where unreadable images are skipped."""
        out = np.empty(self.transform.image_shape, np.uint8)
        try:
            self.transform(self.records[index][0], out=out, on_damage=self._on_damage)
            return index
        except DataError:
            return self._next_readable(epoch, index, out, [], lambda held: None)[0] if self.skip else index
        finally:
            self._faults.clear()

    def _next_readable(
        self, epoch: int, index: int, out: npt.NDArray[np.uint8], skipped: list[str], hold: Callable[[int], None]
    ) -> tuple[int, npt.NDArray[Any], int]:
        """(index, image, label) of the first readable record after `index`; after the last record comes the first."""
        count = len(self.records)
        for candidate in (other % count for other in range(index + 1, index + count)):
            hold(candidate)
            key = int(random_keys(self.seed, epoch, indices=[candidate])[0])
            if self.records.uses_global_random:
                seed_global_generators(key)
            try:
                image, label = self.records[candidate]
                return candidate, self.transform(image, key, out=out, on_damage=self._on_damage), label
            except DataError as error:
                skipped.append(self._unreadable(candidate, error))
        raise DataError(f"of {counted(count, 'training image')} none can be read; the last: {skipped[-1]}")

    def _unreadable(self, index: int, error: DataError) -> str:
        message = f"{self.records.describe(index)}: {error}"
        if not self.skip:
            raise DataError(f"{message}; to pass over such images: {setter('bad_images', 'skip')}") from None
        return message


class ReaderLoader:
    """Epochs of batches from a user's `train_reader`, which each rank calls once per epoch.

    Args:
        reader: a callable that returns an iterable of batches, each a list of (image [3, H, W], label), as
            `paddle.batch(reader, batch_size)` makes. Images may also be flat, [3 H W].
        image_shape: (3, H, W), expected of every image.
        num_classes: C; a label outside 0 ... C - 1 is a `DataError`.
        num_images: images of all ranks in an epoch, or None where that is unknown.
        world_size: R.

    Example:
        >>> reader = lambda: iter([[(np.zeros((3, 32, 32), np.float32), 1)] * 16] * 10)
        >>> len(list(ReaderLoader(reader, (3, 32, 32), num_classes=10).epoch(0)))
        10
    """

    def __init__(
        self,
        reader: Callable[[], Any],
        image_shape: Sequence[int],
        *,
        num_classes: int,
        num_images: int | None = None,
        world_size: int = 1,
    ) -> None:
        self._reader, self._image_shape = reader, tuple(image_shape)
        self.num_classes, self.num_images, self.world_size = num_classes, num_images, world_size
        self.skipped = 0

    def count(self) -> int:
        """The number of images of all ranks, where their shares are equal: reads the whole reader once."""
        return self.world_size * sum(len(batch) for batch in self._reader())

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one call of the reader, from `first_step` on."""
        batches = itertools.islice(enumerate(self._reader()), first_step, None)
        return (self._to_batch(step, samples) for step, samples in batches)

    def describe(self, epoch: int, step: int, *, row: int) -> str:
        """Where an image of this rank comes from, for messages."""
        return f"sample {row} of batch {step} of train_reader"

    def close(self) -> None:
        """Does nothing: the reader runs in this process."""

    def _to_batch(self, step: int, samples: Any) -> Batch:
        try:
            images = np.stack([self._image(sample[0]) for sample in samples])
            labels = np.asarray([to_class(sample[1]) for sample in samples], np.int64)
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"train_reader, batch {step}: expected a list of (image {list(self._image_shape)} float32, "
                f"label); {error}. A reader of single samples becomes one of batches by "
                f"paddle.batch(reader, batch_size)"
            ) from None
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise DataError(
                f"train_reader, batch {step}: labels run from {labels.min()} to {labels.max()}, expected "
                f"0 to {self.num_classes - 1}; {_FROM_ONE if labels.max() == self.num_classes else ''}see "
                f"{setter('num_classes')}"
            )
        return Batch(images if images.dtype == np.uint8 else images.astype(np.float32), labels)

    def _image(self, image: Any) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.asarray(image)
        if array.shape != self._image_shape and array.ndim > 1:
            # Reshaping [H, W, 3] to [3, H, W] would scramble the pixels.
            raise ValueError(f"got an image {list(array.shape)}")
        return array.reshape(self._image_shape)
