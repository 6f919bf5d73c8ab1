"""Files of single tensors as Paddle 1.x writes them, and the folder of a training of PLSC 0.x."""

from __future__ import annotations

import struct

import numpy as np

_TYPES = {"bool": 0, "int16": 1, "int32": 2, "int64": 3, "float16": 4, "float32": 5, "float64": 6, "uint8": 20}


def save_variable(path, value):
    """Write one tensor; returns the path."""
    description = b"\x08" + _varint(_TYPES[value.dtype.name])
    description += b"".join(b"\x10" + _varint(size) for size in value.shape)
    header = struct.pack("<IQIi", 0, 0, 0, len(description)) + description
    path.write_bytes(header + np.ascontiguousarray(value).tobytes())
    return path


def _varint(value):
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
