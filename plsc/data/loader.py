"""Batches for one rank: seeded by epoch, disjoint over ranks, the same whatever the worker count.

Every epoch is one permutation of all records, drawn from (seed, epoch). Step k takes the k-th slice
of one *global* batch from it, and each rank its share of that slice. The last slice is completed from
the epoch's beginning, so that every image is seen every epoch and all ranks take equal steps.
Since nothing else is remembered, (epoch, step) is the whole position of a loader.
"""

from __future__ import annotations

import collections
import itertools
import logging
import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Iterator, NamedTuple, Optional, Sequence

import cv2
import numpy as np

from plsc.data.records import Records
from plsc.data.transforms import Transform
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
    """

    def __init__(self, records: Records, transform: Transform, num_classes: int, batch_size: int, rank: int = 0,
                 world_size: int = 1, seed: int = 0, num_workers: int = 0, skip_bad_images: bool = False) -> None:
        if len(records) == 0:
            raise DataError("the training set is empty, expected at least one image")
        self._maker = _BatchMaker(records, transform, num_classes, seed, skip_bad_images)
        self.num_images = len(records)
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.steps_per_epoch: int = -(-self.num_images // (batch_size * world_size))
        self.skipped = 0
        self._num_workers = num_workers
        self._pool: Optional[ProcessPoolExecutor] = None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_step` on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
        global_batch = self.batch_size * self.world_size
        starts = (step * global_batch + self.rank * self.batch_size for step in range(first_step, self.steps_per_epoch))
        tasks = (order.take(range(start, start + self.batch_size), mode="wrap") for start in starts)
        for batch, skipped in self._in_order(epoch, tasks):
            for message in skipped:
                log.warning("skipped an unreadable image: %s", message)
            self.skipped += len(skipped)
            yield batch

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _in_order(self, epoch: int, tasks: Iterator[np.ndarray]) -> Iterator[tuple[Batch, list[str]]]:
        if self._num_workers == 0:
            yield from (self._maker(epoch, indices) for indices in tasks)
            return
        if self._pool is None:
            # Fork: a user's script need not guard its main part, and sources need not be pickled. The
            # children only read files and call OpenCV, never Paddle.
            self._pool = ProcessPoolExecutor(self._num_workers, multiprocessing.get_context("fork"),
                                             initializer=_start_worker, initargs=(self._maker,))
        ahead: collections.deque[Future] = collections.deque()
        try:
            for indices in tasks:
                ahead.append(self._pool.submit(_work, epoch, indices))
                if len(ahead) > 2 * self._num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except DataError as error:
            raise DataError(str(error)) from None  # without the worker's own traceback
        except BrokenProcessPool:
            raise DataError("a process that reads training images died (out of memory?); lower set_num_workers, "
                            "or set it to 0 to read in the training process and see the fault") from None
        finally:
            for future in ahead:
                future.cancel()


class _BatchMaker:
    """Indices to a batch; what worker processes run."""

    def __init__(self, records: Records, transform: Transform, num_classes: int, seed: int, skip: bool) -> None:
        self.records, self.transform, self.num_classes, self.seed, self.skip = (
            records, transform, num_classes, seed, skip)

    def __call__(self, epoch: int, indices: Sequence[int]) -> tuple[Batch, list[str]]:
        skipped: list[str] = []
        images, labels = zip(*(self._sample(epoch, int(index), skipped) for index in indices))
        return Batch(np.stack(images), np.asarray(labels, np.int64)), skipped

    def _sample(self, epoch: int, index: int, skipped: list[str]) -> tuple[np.ndarray, int]:
        count = len(self.records)
        for candidate in ((index + offset) % count for offset in range(count)):
            try:
                image, label = self.records[candidate]
                pixels = self.transform(image, np.random.default_rng((self.seed, epoch, candidate)))
            except DataError as error:
                message = f"{self.records.describe(candidate)}: {error}"
                if not self.skip:
                    raise DataError(message + "; to pass over such images: set_bad_images('skip')") from None
                skipped.append(message)
                continue
            if not 0 <= label < self.num_classes:
                raise DataError(f"{self.records.describe(candidate)}: label {label} is out of range, expected 0 to "
                                f"{self.num_classes - 1}; set_class_num({label + 1}) or more, or mend the list")
            return pixels, label
        raise DataError(f"none of the {count} training images can be read; the last: {skipped[-1]}")


_maker: Optional[_BatchMaker] = None


def _start_worker(maker: _BatchMaker) -> None:
    global _maker
    _maker = maker
    cv2.setNumThreads(0)


def _work(epoch: int, indices: np.ndarray) -> tuple[Batch, list[str]]:
    return _maker(epoch, indices)


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

    def __init__(self, reader: Callable[[], Any], image_shape: Sequence[int], num_classes: int,
                 num_images: Optional[int] = None, world_size: int = 1) -> None:
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
            images = np.stack([np.asarray(sample[0]).reshape(self._image_shape) for sample in samples])
            labels = np.asarray([int(np.asarray(sample[1]).reshape(-1)[0]) for sample in samples], np.int64)
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(f"train_reader, batch {step}: expected a list of (image {list(self._image_shape)} float32, "
                            f"label); {error}. A reader of single samples becomes one of batches by "
                            f"paddle.batch(reader, batch_size)") from None
        if labels.min() < 0 or labels.max() >= self._num_classes:
            raise DataError(f"train_reader, batch {step}: labels run from {labels.min()} to {labels.max()}, expected "
                            f"0 to {self._num_classes - 1}; see set_class_num")
        return Batch(images if images.dtype == np.uint8 else images.astype(np.float32), labels)
