"""The readers of PLSC 0.1: label.txt with images/, and verification sets. Old scripts import them from `plsc.utils`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plsc.data.loader import TrainLoader
from plsc.data.sources import open_records
from plsc.data.transforms import Transform, normalize
from plsc.data.verification_set import VerificationSet, find_bin
from plsc.distributed.topology import place_from_environment

_IMAGE_SHAPE = (3, 112, 112)


def arc_train(data_dir: str, class_dim: int) -> Callable[[], Iterator[tuple[npt.NDArray[np.float32], int]]]:
    """A reader of this rank's share of the training images, in another order at each call.

    Args:
        data_dir: training data of any kind that `plsc.open_records` opens.
        class_dim: C; a label outside 0 ... C - 1 is a `plsc.DataError`.

    Returns:
        A callable that yields (image [3, 112, 112] float32, label); `paddle.batch` makes batches of them.
    """
    rank, world_size = place_from_environment()
    loader = TrainLoader(
        open_records(data_dir),
        Transform(_IMAGE_SHAPE, flip=True),
        num_classes=class_dim,
        batch_size=1,
        rank=rank,
        world_size=world_size,
    )
    calls = iter(range(2**31))

    def reader() -> Iterator[tuple[npt.NDArray[np.float32], int]]:
        for batch in loader.epoch(next(calls)):
            yield normalize(batch.images[0]), int(batch.labels[0])

    return reader


def test(data_dir: str, datasets: str) -> Callable[[], list[VerificationSet]]:
    """A reader of verification sets for `entry.test_reader`.

    Args:
        data_dir: folder with <name>.bin.
        datasets: names, as 'lfw,cfp_fp'.
    """
    names = [name.strip() for name in datasets.split(",") if name.strip()]
    return lambda: [VerificationSet.load(*find_bin(name, Path(data_dir), setting="datasets")) for name in names]
