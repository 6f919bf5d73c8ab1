"""The base64 readers of PLSC 0.2 under their old path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plsc.utils import jpeg_reader


def train(data_dir: str, file_list: str, num_classes: int) -> Callable[[], Iterator[tuple[np.ndarray, int]]]:
    """A reader of this rank's share of base64 part files, in another order at each call.

    The parts need not be dealt to ranks beforehand, nor shuffled.

    Args:
        data_dir: folder of the list and the parts.
        file_list: name of the list, one part file per line.
        num_classes: a label beyond is a `plsc.DataError`.

    Returns:
        A callable that yields (image [3, 112, 112] float32, label); batches come of `paddle.batch`.
    """
    return jpeg_reader.arc_train(str(Path(data_dir) / file_list), num_classes)


def test(data_dir: str, datasets: str) -> Callable[[], list[Any]]:
    """A reader of verification sets, for `entry.test_reader`; see `plsc.utils.jpeg_reader.test`."""
    return jpeg_reader.test(data_dir, datasets)
