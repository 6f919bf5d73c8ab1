"""What a record is, and the sources that yield records.

A source is anything with `len(source)` and `source[i] -> Record`: it hands out *encoded* bytes or
decoded pixels and never transforms them. Sources open files lazily and can be pickled or forked,
because worker processes index them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Union

import numpy as np


class Record(NamedTuple):
    """One labelled image.

    Attributes:
        image: encoded file bytes (JPEG, PNG, ...), or decoded pixels [H, W, 3] uint8 RGB.
        label: the class, 0 to C - 1.
    """

    image: Union[bytes, np.ndarray]
    label: int


class Records(Protocol):
    """A random-access source of records."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def describe(self, index: int) -> str:
        """Where record `index` comes from, for messages: a path, or file and offset."""
        ...
