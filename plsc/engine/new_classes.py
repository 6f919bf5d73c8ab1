"""Centers of classes that the checkpoint to start from does not have: the mean feature of their images, or random.

G images, D embedding, C classes, S classes of this rank.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.config import Config
from plsc.data.records import Records
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.engine.class_change import ClassMove, rows_of_classes
from plsc.engine.class_features import ClassFeatures, class_blocks
from plsc.errors import DataError
from plsc.losses import Head
from plsc.losses.storage import set_rows
from plsc.utils.plural import counted
from plsc.utils.ranges import Range
from plsc.utils.row_types import decoded

log = logging.getLogger("plsc")

_CENTERS = "weight"  # the parameter of a head whose rows are class centers
_BLOCK_NUMBERS = 1 << 23  # float64 numbers of the sums of a block of classes
_BLOCK_ROWS = 16384


def initial_rows(head: Head, move: ClassMove) -> dict[str, NDArray[Any]]:
    """The rows of new classes in the parameters of a head that was just made, by parameter; for `restore_rows`."""
    new = _own(head.classes, move)
    if not new.size:
        return {}
    return {
        name: paddle.index_select(parameter.detach(), paddle.to_tensor(new, place=parameter.place)).numpy()
        for name, parameter in head.parameters.items()
    }


def restore_rows(head: Head, move: ClassMove, rows: dict[str, NDArray[Any]]) -> None:
    """Set the rows of new classes to what `initial_rows` returned: loading a head may have set them to 0."""
    for name, values in rows.items():
        _put(head.parameters[name], _own(head.classes, move), values)


def _own(classes: Range, move: ClassMove) -> NDArray[np.int64]:
    """The rows of new classes among those of this rank."""
    return np.flatnonzero(rows_of_classes(move.rows[classes.start : classes.stop]) < 0)


def _put(parameter: paddle.Tensor, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
    if rows.size:
        set_rows(parameter.detach(), rows, values)


def begin_new_classes(
    head: Head,
    backbone: paddle.nn.Layer,
    move: ClassMove,
    *,
    records: Records | None,
    config: Config,
    collectives: Collectives,
) -> str:
    """Set the centers of new classes as `config.new_classes` says, after the head was loaded. Every rank must call it.

    A center becomes the mean of the unit features of the class, as long as the centers that are kept are on average, or
    as those of a new head where none is kept. Classes without an image keep their random center.

    Returns:
        Where they begin, in words.

    Raises:
        DataError: an image of a new class cannot be read, unless `bad_images` is 'skip'; the same on all ranks.
    """
    if config.new_classes == "random" or not move.new.size:
        return "random centers"
    centers = head.parameters.get(_CENTERS)
    if records is None:
        return "random centers: the mean feature needs training data that is a source of records"
    if centers is None or len(centers.shape) != 2:  # several centers of a class must differ
        return "random centers: the head has not one center for each class"
    length = _mean_length(centers, head.classes, move, collectives)
    found = images = 0
    features = ClassFeatures(backbone, records, config)
    labels = agree(lambda: records.labels, collectives, error=DataError)
    for classes, sums, counts in _sums_of_classes(features, labels, move.new, config.emb_dim, collectives):
        lengths = np.linalg.norm(sums, axis=1)
        has_mean = lengths > 0
        found, images = found + int(has_mean.sum()), images + int(counts.sum())
        own = has_mean & (classes >= head.classes.start) & (classes < head.classes.stop)
        values = sums[own] / lengths[own, None] * length
        _put(centers, classes[own] - head.classes.start, values)
    rest = len(move.new) - found
    begin = f"mean feature of {counted(images, 'image')}"
    return begin if not rest else f"{begin}; {rest} without an image: random centers"


def _mean_length(centers: paddle.Tensor, classes: Range, move: ClassMove, collectives: Collectives) -> float:
    """Of the centers that are kept, on all ranks; of all where none is."""
    rows = rows_of_classes(move.rows[classes.start : classes.stop])
    counted_rows, total = (rows >= 0 if move.num_kept else np.ones(len(rows), np.bool_)), 0.0
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        kept = centers.detach()[start : start + _BLOCK_ROWS].clone().numpy()  # without the clone all would be copied
        values = decoded(kept, kept.shape[-1]).astype(np.float64)
        total += float(np.linalg.norm(values, axis=1)[counted_rows[block]].sum())
    sums = zip(*collectives.gather_objects((total, int(counted_rows.sum()))))
    length, count = (sum(values) for values in sums)
    return float(length / max(count, 1))


def _sums_of_classes(
    features: ClassFeatures,
    labels: NDArray[np.int64],
    new: NDArray[np.int64],
    emb_dim: int,
    collectives: Collectives,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]]:
    """(classes [b], the sums of their unit features [b, D], their numbers of images [b]) for all new classes."""
    topology = collectives.topology
    for block in class_blocks(labels, new, most_classes=max(1, _BLOCK_NUMBERS // emb_dim)):
        own = slice(topology.rank, None, topology.world_size)
        # One more column counts the images.
        sums = np.zeros([len(block.classes), emb_dim + 1])

        def add(
            images: NDArray[np.int64] = block.images[own],
            places: NDArray[np.int64] = block.places[own],
            sums: NDArray[np.float64] = sums,
        ) -> None:
            for read, units in features(images):
                columns = np.concatenate([units, np.ones([len(read), 1])], axis=1, dtype=np.float64)
                np.add.at(sums, places[read], columns)

        agree(add, collectives, error=DataError, prefix="the images of new classes: ")
        if topology.world_size > 1:
            sums = collectives.all_reduce_sum(paddle.to_tensor(sums)).numpy()
        yield block.classes, sums[:, :-1], np.rint(sums[:, -1]).astype(np.int64)
