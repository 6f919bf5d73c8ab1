"""Batches for one rank: seeded by epoch, disjoint over ranks, the same whatever the worker count.

Every epoch is one order of all records, drawn from (seed, epoch). Step k takes the k-th slice
of one *global* batch from it, and each rank its share of that slice. The last slice is completed from
the epoch's beginning, so that every image is seen every epoch and all ranks take equal steps.
Since nothing else is remembered, (epoch, step) is the whole position of a loader.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from plsc.data.records import Records, to_class
from plsc.data.subset import labels_of
from plsc.data.transforms import Transform, random_keys
from plsc.data.workers import WorkerPool
from plsc.errors import DataError

log = logging.getLogger("plsc")


class Batch(NamedTuple):
    """One rank's share of a step.

    Attributes:
        images: [N, 3, H, W], uint8 pixels or finished float32.
        labels: [N] int64.
    """

    images: np.ndarray
    labels: np.ndarray


class TrainLoader:
    """Epochs of batches from a random-access source.

    Args:
        records: the source.
        transform: image -> [3, H, W].
        num_classes: C; a label outside 0 ... C - 1 stops with `DataError`.
        batch_size: N, per rank.
        rank, world_size: this rank's place.
        seed: 0 or more.
        num_workers: processes that read and transform; 0 does it in this one.
        skip_bad_images: put the next readable image in the place of one that cannot be decoded, and count it
            in `skipped`, instead of stopping with `DataError`.
        class_balanced: every class comes equally often, see `balanced_order`, instead of every image.
        worker_timeout: seconds that one image may take before its process counts as hanging; 0 waits for ever.
    """

    def __init__(
        self,
        records: Records,
        transform: Transform,
        num_classes: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        skip_bad_images: bool = False,
        class_balanced: bool = False,
        worker_timeout: float = 300.0,
    ) -> None:
        if len(records) == 0:
            raise DataError("the training set is empty, expected at least one image")
        self._maker = _BatchMaker(records, transform, num_classes, seed, skip_bad_images)
        self.num_images = len(records)
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.steps_per_epoch: int = -(-self.num_images // (batch_size * world_size))
        self.skipped = 0
        self._labels = labels_of(records) if class_balanced else None
        self._num_workers, self._timeout = num_workers, worker_timeout
        self._pool: WorkerPool | None = None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_step` on."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.num_images) if self._labels is None else balanced_order(self._labels, rng)
        global_batch = self.batch_size * self.world_size
        starts = (step * global_batch + self.rank * self.batch_size for step in range(first_step, self.steps_per_epoch))
        tasks = ((epoch, order[np.arange(start, start + self.batch_size) % len(order)].tolist()) for start in starts)
        for batch, skipped in self._batches(tasks):
            for message in skipped:
                log.warning("skipped an unreadable image: %s", message)
            self.skipped += len(skipped)
            yield batch

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _batches(self, tasks: Iterator[_Task]) -> Iterator[tuple[Batch, list[str]]]:
        for filled, pixels in self._filled(tasks):
            images = pixels if filled.finished is None else filled.finished
            yield Batch(images, np.array(filled.labels, np.int64)), filled.skipped

    def _filled(self, tasks: Iterator[_Task]) -> Iterator[tuple[_Filled, np.ndarray]]:
        shape = (self.batch_size, *self._maker.transform.image_shape)
        if self._num_workers == 0:
            for task in tasks:
                pixels = np.empty(shape, np.uint8)
                yield self._fill_here(task, pixels), pixels
            return
        if self._pool is None:
            self._pool = WorkerPool(self._maker, self._num_workers, shape, self._maker.records.describe, self._timeout)
        try:
            yield from self._pool.run(tasks)
        except DataError:
            self.close()
            raise

    def _fill_here(self, task: _Task, pixels: np.ndarray) -> _Filled:
        held = -1

        def hold(index: int) -> None:
            nonlocal held
            held = index

        try:
            return self._maker(task, pixels, hold)
        except DataError:
            raise
        except Exception as error:  # of a user's own data set
            raise DataError(f"{self._maker.records.describe(held)}: reading it failed: {error!r}") from error


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many records as there are, every class equally often, give or take one.

    Rounds of all classes, each in its own order; a class takes its images in turn, in an order of its own, and begins
    again when they are used up. So images of small classes come several times, and not all of large ones come.

    Args:
        labels: [n].
        rng: decides.

    Returns:
        [n] int64, indices of records.
    """
    present, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rounds = -(-len(labels) // len(present))
    classes = rng.permuted(np.tile(np.arange(len(present)), (rounds, 1)), axis=1).reshape(-1)[: len(labels)]
    mixed = rng.permutation(len(labels))
    by_class = mixed[np.argsort(places.reshape(-1)[mixed], kind="stable")]
    turn = np.arange(len(labels)) // len(present)
    return by_class[(np.cumsum(counts) - counts)[classes] + turn % counts[classes]]


# Plain lists: pickled with a tenth of the work that arrays take.
_Task = tuple[int, list[int]]


class _Filled(NamedTuple):
    """What making a batch gave beside the pixels: labels, and the images where they are finished float32."""

    labels: list[int]
    skipped: list[str]
    finished: np.ndarray | None


class _BatchMaker:
    """Indices to a batch; what worker processes run."""

    def __init__(self, records: Records, transform: Transform, num_classes: int, seed: int, skip: bool) -> None:
        self.records, self.transform, self.num_classes, self.seed, self.skip = (
            records,
            transform,
            num_classes,
            seed,
            skip,
        )

    def __call__(self, task: _Task, pixels: np.ndarray, hold: Callable[[int], None] = lambda index: None) -> _Filled:
        """Fill `pixels` [N, 3, H, W], unless the source has finished images."""
        epoch, indices = task
        skipped: list[str] = []
        finished: list[np.ndarray] = []
        labels = []
        records, transform = self.records, self.transform
        keys = random_keys(self.seed, epoch, indices).tolist()
        for index, key, out in zip(indices, keys, pixels):
            hold(index)
            try:
                encoded, label = records[index]
                image = transform(encoded, key, out)
            except DataError as error:
                skipped.append(self._unreadable(index, error))
                index, image, label = self._next_readable(epoch, index, out, skipped, hold)
            if not 0 <= label < self.num_classes:
                more = f"set_class_num({label + 1}) (--num-classes) or more, or " if label > 0 else ""
                raise DataError(
                    f"{records.describe(index)}: label {label} is out of range, expected 0 to "
                    f"{self.num_classes - 1}; {more}mend the list"
                )
            labels.append(label)
            if image is not out:
                finished.append(image)
        if finished and len(finished) < len(indices):
            raise DataError(
                f"a batch has {len(finished)} images that are finished float32 and "
                f"{len(indices) - len(finished)} that are not; expected a data set of one kind"
            )
        return _Filled(labels, skipped, np.stack(finished) if finished else None)

    def _next_readable(
        self, epoch: int, index: int, out: np.ndarray, skipped: list[str], hold: Callable[[int], None]
    ) -> tuple[int, np.ndarray, int]:
        """The first record after `index` that can be read, around the end: its index, image and label."""
        count = len(self.records)
        for candidate in (other % count for other in range(index + 1, index + count)):
            hold(candidate)
            try:
                image, label = self.records[candidate]
                return candidate, self.transform(image, int(random_keys(self.seed, epoch, [candidate])[0]), out), label
            except DataError as error:
                skipped.append(self._unreadable(candidate, error))
        raise DataError(f"none of the {count} training images can be read; the last: {skipped[-1]}")

    def _unreadable(self, index: int, error: DataError) -> str:
        message = f"{self.records.describe(index)}: {error}"
        if not self.skip:
            raise DataError(
                f"{message}; to pass over such images: set_bad_images('skip') (--bad-images skip)"
            ) from None
        return message


class ReaderLoader:
    """Epochs of batches from a user's `train_reader`, which each rank calls once per epoch.

    Args:
        reader: a callable that returns an iterable of batches, each a list of (image [3, H, W], label), as
            `paddle.batch(reader, batch_size)` makes.
        image_shape: (3, H, W), expected of every image.
        num_classes: C.
        num_images: of all ranks, where known.
        world_size: R.
    """

    def __init__(
        self,
        reader: Callable[[], Any],
        image_shape: Sequence[int],
        num_classes: int,
        num_images: int | None = None,
        world_size: int = 1,
    ) -> None:
        self._reader, self._image_shape, self._num_classes = reader, tuple(image_shape), num_classes
        self.num_images, self.world_size = num_images, world_size
        self.skipped = 0

    def count(self) -> int:
        """Read the whole reader once and return the images of all ranks, taking them to have equal shares."""
        return self.world_size * sum(len(batch) for batch in self._reader())

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one call of the reader, from `first_step` on."""
        batches = itertools.islice(enumerate(self._reader()), first_step, None)
        return (self._to_batch(step, samples) for step, samples in batches)

    def close(self) -> None:
        """Nothing to end: the reader runs in this process."""

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
        if labels.min() < 0 or labels.max() >= self._num_classes:
            raise DataError(
                f"train_reader, batch {step}: labels run from {labels.min()} to {labels.max()}, expected "
                f"0 to {self._num_classes - 1}; see set_class_num"
            )
        return Batch(images if images.dtype == np.uint8 else images.astype(np.float32), labels)

    def _image(self, image: Any) -> np.ndarray:
        image = np.asarray(image)
        if image.shape != self._image_shape and image.ndim > 1:
            # Reshaping would scramble the pixels of channels that come last.
            raise ValueError(f"got an image {list(image.shape)}")
        return image.reshape(self._image_shape)
