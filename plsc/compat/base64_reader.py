"""The readers of PLSC 0.2: base64 part files, and verification sets. Old scripts import them from `plsc.utils`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plsc.compat import jpeg_reader
from plsc.data.verification_set import VerificationSet


def train(
    data_dir: str, file_list: str, num_classes: int
) -> Callable[[], Iterator[tuple[npt.NDArray[np.float32], int]]]:
    """A reader of this rank's share of base64 part files, in another order at each call.

    The parts need not be distributed to ranks beforehand, nor shuffled.

    Args:
        data_dir: folder of the list and the parts.
        file_list: name of the list, one part file per line.
        num_classes: C; a label outside 0 ... C - 1 is a `plsc.DataError`.

    Returns:
        A callable that yields (image [3, 112, 112] float32, label); `paddle.batch` makes batches of them.
    """
    return jpeg_reader.arc_train(str(Path(data_dir) / file_list), num_classes)


def test(data_dir: str, datasets: str) -> Callable[[], list[VerificationSet]]:
    """A reader of verification sets for `entry.test_reader`; see `plsc.compat.jpeg_reader.test`."""
    return jpeg_reader.test(data_dir, datasets)
