"""The features of the images of classes, a block of classes at a time, so that they never are in memory together.

b classes of a block, m images of a block, D embedding.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.config import Config
from plsc.data.records import Labels, Records
from plsc.engine.evaluator import Embedder
from plsc.errors import DataError, StorageError
from plsc.inference.embedding import EmbeddingPath, Embeddings, to_unit_length
from plsc.utils.seeding import derive_seed, kept_global_generators, seed_global_generators

log = logging.getLogger("plsc")

_CHUNK_IMAGES = 4096  # images whose features are in memory together


class ClassBlock(NamedTuple):
    """Some classes and all of their images.

    Attributes:
        classes: [b], ascending.
        images: [m], the numbers of the records of these classes, ascending.
        places: [m], the place in `classes` of the class of each image.
    """

    classes: NDArray[np.int64]
    images: NDArray[np.int64]
    places: NDArray[np.int64]


def class_blocks(
    labels: Labels, classes: NDArray[np.int64], *, most_classes: int, most_images: int | None = None
) -> Iterator[ClassBlock]:
    """Classes in blocks, in order, each class in one block with all of its images.

    Args:
        labels: [n], the class of each record.
        classes: the classes that are wanted, ascending.
        most_classes: of a block, 1 or more.
        most_images: of a block of several classes; None for any number.
    """
    start = 0
    counts = np.bincount(labels, minlength=int(classes[-1]) + 1)[classes] if len(classes) else classes
    while start < len(classes):
        stop = min(start + most_classes, len(classes))
        if most_images is not None:
            fitting = int(np.searchsorted(np.cumsum(counts[start:stop]), most_images, side="right"))
            stop = start + max(1, fitting)
        block = classes[start:stop]
        places = np.searchsorted(block, labels)
        images = np.flatnonzero(block[np.minimum(places, len(block) - 1)] == labels)
        yield ClassBlock(block, images, places[images])
        start = stop


class ClassFeatures:
    """Embeds records by their numbers, as verification does: with mirror images where `flip` is set.

    Args:
        backbone: the network.
        records: the images.
        config: the settings of the network, `test_batch_size`, `bad_images` and `seed` are used.
    """

    def __init__(self, backbone: paddle.nn.Layer, records: Records, config: Config) -> None:
        self._records, self._config = records, config
        self._path = EmbeddingPath(
            image_shape=config.image_shape, flip=config.flip, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
        )
        self._embed = Embedder(backbone, self._path, emb_dim=config.emb_dim, batch_size=config.test_batch_size)

    def __call__(self, images: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Embeddings]]:
        """(places in `images` [n], unit features [n, D]), a few thousand images at a time.

        Raises:
            DataError: an image cannot be read, unless `bad_images` is 'skip': it is left out then, with a warning.
        """
        for first in range(0, len(images), _CHUNK_IMAGES):
            numbers: list[int] = images[first : first + _CHUNK_IMAGES].tolist()
            read: list[int] = []
            with kept_global_generators():
                features = self._embed(
                    self._read(numbers, read), describe=functools.partial(self._describe, numbers, read)
                )
            yield first + np.array(read, np.int64), to_unit_length(features)

    def _describe(self, numbers: list[int], read: list[int], row: int) -> str:
        return self._records.describe(numbers[read[row]])

    def _read(self, numbers: list[int], read: list[int]) -> Iterator[NDArray[Any]]:
        """Normalized images [3, H, W]; the place in `numbers` of each is added to `read`."""
        for place, number in enumerate(numbers):
            if self._records.uses_global_random:  # the same image each time
                seed_global_generators(derive_seed(self._config.seed, number))
            try:
                image = self._path.normalize(self._path.prepare(self._records[number].image))
            except StorageError:
                raise
            except DataError as error:
                text = f"{self._records.describe(number)}: {error}"
                if self._config.bad_images == "stop":
                    raise DataError(text) from None
                log.warning("skipped an unreadable image: %s", text)
                continue
            read.append(place)
            yield image
