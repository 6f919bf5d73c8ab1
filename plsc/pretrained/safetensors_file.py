"""Safetensors files of any library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plsc.errors import CheckpointError
from plsc.pretrained.tensors import StoredTensor, map_file, view_of
from plsc.utils.safetensors_file import DTYPES, parse_header, read_header

_TYPES = {**{name: dtype for dtype, name in DTYPES.items()}, "BF16": "uint16"}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointError: the file is damaged.
    """
    data, tensors = map_file(path), {}
    try:
        with open(path, "rb") as file:
            header = read_header(file)
        places = parse_header(header)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"is no safetensors file, or damaged: {error}") from None
    for name, place in places.items():
        if place.dtype not in _TYPES:
            continue  # of a type that NumPy does not have
        if not len(header) <= place.start <= place.stop <= len(data):
            raise CheckpointError(f"is cut off: '{name}' lies at bytes {place.start} to {place.stop} of {len(data)}")
        piece = data[place.start : place.stop]
        dtype = np.dtype(_TYPES[place.dtype]).newbyteorder("<")
        array = view_of(piece, dtype, place.shape, what=f"'{name[:80]}'")
        tensors[name] = StoredTensor(array, is_bfloat16=place.dtype == "BF16")
    return tensors


def is_safetensors(data: memoryview) -> bool:
    """Whether a file begins as one: the length of a header, and a brace."""
    head = bytes(data[:9])
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= len(data)
