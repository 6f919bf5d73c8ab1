"""The readers of PLSC 0.1 under their old path: label.txt with images/, and verification sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.loader import TrainLoader
from plsc.data.records import open_records
from plsc.data.transforms import Transform, normalize
from plsc.data.verification_set import VerificationSet
from plsc.distributed.topology import place_from_environment

_IMAGE_SHAPE = (3, 112, 112)


def arc_train(data_dir: str, class_dim: int) -> Callable[[], Iterator[tuple[np.ndarray, int]]]:
    """A reader of this rank's share of the training images, in another order at each call.

    Args:
        data_dir: training data of any kind that `plsc.data.records.open_records` knows.
        class_dim: number of classes; a label beyond is a `plsc.DataError`.

    Returns:
        A callable that yields (image [3, 112, 112] float32, label); batches come of `paddle.batch`.
    """
    rank, world_size = place_from_environment()
    loader = TrainLoader(open_records(data_dir), Transform(_IMAGE_SHAPE, flip=True), class_dim, 1, rank, world_size)
    calls = iter(range(2**31))

    def reader() -> Iterator[tuple[np.ndarray, int]]:
        for batch in loader.epoch(next(calls)):
            yield normalize(batch.images[0]), int(batch.labels[0])

    return reader


def test(data_dir: str, datasets: str) -> Callable[[], list[Any]]:
    """A reader of verification sets, for `entry.test_reader`.

    Args:
        data_dir: folder with <name>.bin.
        datasets: names, as 'lfw,cfp_fp'.
    """
    names = [name.strip() for name in datasets.split(",") if name.strip()]
    return lambda: [VerificationSet.load(Path(data_dir) / f"{name}.bin", name) for name in names]
