"""The layout of a safetensors file: 8 bytes with the length of the header, the header in JSON, the tensors.

The package `safetensors` writes and reads whole tensors. These functions give the positions, so that a tensor is
written and read in blocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from plsc.utils.plural import counted

# Names of types: NumPy's -> that of safetensors.
DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
_ALIGNMENT = 8
# safetensors refuses longer headers.
_LONGEST_HEADER = 100_000_000


class Place(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: name of the type, as safetensors has it.
        shape: of the tensor.
        start: position in the file of its first byte.
        stop: position after its last byte.
    """

    dtype: str
    shape: list[int]
    start: int
    stop: int


def tensor_order(key: str, dtype: str) -> tuple[int, str]:
    """Sorts tensors as safetensors does: by size of an element, the largest first, so that each begins aligned."""
    return -np.dtype(dtype).itemsize, key


def make_header(tensors: Iterable[tuple[str, str, list[int]]]) -> bytes:
    """The bytes before the data of tensors that follow each other.

    Args:
        tensors: key, NumPy's name of the type and shape of each, in the order of `tensor_order`.
    """
    header: dict[str, Any] = {}
    reached = 0
    for key, dtype, shape in tensors:
        start, reached = reached, reached + math.prod(shape) * np.dtype(dtype).itemsize
        header[key] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, reached]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_header(file: BinaryIO) -> bytes:
    """The bytes before the data of an open file.

    Raises:
        ValueError: it does not begin as a safetensors file.
    """
    file.seek(0)
    length = file.read(8)
    size = int.from_bytes(length, "little")
    if len(length) < 8 or size > _LONGEST_HEADER:
        raise ValueError(f"it begins with {length.hex()}, expected the length of a header")
    text = file.read(size)
    if len(text) < size:
        raise ValueError(f"its header has {counted(len(text), 'byte')}, expected {size}")
    return length + text


def parse_header(data: bytes) -> dict[str, Place]:
    """Where the tensors of a file lie, by key, in the order of their positions.

    Args:
        data: what `read_header` returned.

    Raises:
        ValueError, TypeError, KeyError: the header is damaged.
    """
    header = json.loads(data[8:].decode())
    places = {}
    for key, entry in header.items():
        if key != "__metadata__":
            try:
                shape, (start, stop) = [int(size) for size in entry["shape"]], map(int, entry["data_offsets"])
            except OverflowError:  # JSON of Python has Infinity
                raise ValueError(f"{key[:80]!r} has a size or position that is infinite") from None
            places[key] = Place(str(entry["dtype"]), shape, len(data) + start, len(data) + stop)
    return dict(sorted(places.items(), key=lambda item: item[1].start))
