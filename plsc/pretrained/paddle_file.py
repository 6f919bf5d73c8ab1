"""Paddle's files: pickles of arrays (.pdparams), and its binary form of single tensors (PLSC 0.x, inference models)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.guarded_pickle import PickledArray
from plsc.errors import CheckpointError
from plsc.pretrained.inert_pickle import read_pickle
from plsc.pretrained.tensors import StoredTensor, map_file, view_of
from plsc.utils.plural import counted

# The numbers of types in Paddle's binary form. 22 is bfloat16.
_TYPES = {0: "?", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "<u1", 21: "<i1", 22: "<u2"}
_LONGEST_DESCRIPTION = 1 << 10
_DEEPEST = 5  # dicts within dicts that are looked through
# Arrays of more than 2^30 elements are saved in pieces under protocols 2 and 3; this key says how.
_PIECES = "UnpackBigParamInfor@@"


def read_paddle(path: Path) -> Any:
    """What a file that `paddle.save` wrote holds, with a `StoredTensor` for each array.

    Raises:
        CheckpointError: the file is damaged, or names what does not belong beside weights.
    """
    return with_tensors(read_pickle(map_file(path), constructors={}))


def with_tensors(content: Any) -> Any:
    """The same content with a `StoredTensor` for each array, in dicts within dicts."""
    return _with_tensors(content, {}, depth=0)


def _with_tensors(content: Any, seen: dict[int, Any], *, depth: int) -> Any:
    """`seen` has what dicts have become, by their identity: a file may refer to one from very many places."""
    if isinstance(content, tuple) and len(content) == 2 and isinstance(content[1], PickledArray):
        content = content[1]  # a tensor outside of a state dict is saved as its name and its array
    if isinstance(content, PickledArray) and not isinstance(content.array, list):
        return StoredTensor(content.array)
    if not isinstance(content, dict) or depth > _DEEPEST:
        return content
    if id(content) not in seen:
        seen[id(content)] = {}  # for a dict that holds itself
        found = {key: _with_tensors(value, seen, depth=depth + 1) for key, value in content.items()}
        seen[id(content)] = _joined(found)
    return seen[id(content)]


def _joined(content: dict[Any, Any]) -> dict[Any, Any]:
    """Join arrays that were saved in pieces."""
    pieces = content.pop(_PIECES, None)
    for name, about in pieces.items() if isinstance(pieces, dict) else ():
        try:
            parts = [content.pop(piece).numpy() for piece in about["slices"]]
            content[name] = StoredTensor(np.concatenate(parts).reshape(about["OriginShape"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"is damaged: the pieces of {str(name)[:80]!r} do not fit together: {error}"
            ) from None
    return content


def read_variable(path: Path) -> StoredTensor:
    """The one tensor of a file that PLSC 0.x wrote with `fluid.io.save_vars`.

    Raises:
        CheckpointError: the file is damaged or of another kind.
    """
    data = map_file(path)
    tensor, end = _read_variable(data)
    if end != len(data):
        raise CheckpointError(f"has {counted(len(data), 'byte')}, expected one tensor of {end}")
    return tensor


def _read_variable(data: memoryview) -> tuple[StoredTensor, int]:
    """A tensor in Paddle's binary form, and where it ends.

    uint32 0, uint64 0 (levels of detail), uint32 0, int32 length of the description, the description, the numbers.
    """
    try:
        version, levels, tensor_version, size = struct.unpack_from("<IQIi", data)
    except struct.error:
        version = levels = tensor_version = size = -1
    if (version, levels, tensor_version) != (0, 0, 0) or not 0 < size <= _LONGEST_DESCRIPTION:
        raise CheckpointError(f"begins with {bytes(data[:20]).hex()}, expected a tensor of Paddle")
    start = struct.calcsize("<IQIi")
    kind, shape = _parse_description(bytes(data[start : start + size]))
    if kind not in _TYPES:
        raise CheckpointError(f"holds a tensor of the type {kind}, expected one of {sorted(_TYPES)}")
    dtype = np.dtype(_TYPES[kind])
    start += size
    count = dtype.itemsize
    for axis in shape:
        count *= axis
    array = view_of(data[start : start + count], dtype, shape, what="its tensor")
    return StoredTensor(array, is_bfloat16=kind == 22), start + count


def _parse_description(text: bytes) -> tuple[int, list[int]]:
    """(type, shape) of a message of protobuf: field 1 is the type, field 2 a size of the shape, once per axis."""
    kind, shape, at = -1, list[int](), 0
    while at < len(text):
        tag, at = _varint(text, at)
        if tag == 0x12:  # sizes in one field
            length, at = _varint(text, at)
            end = at + length
            while at < min(end, len(text)):
                size, at = _varint(text, at)
                shape.append(size)
            continue
        value, at = _varint(text, at)
        if tag == 0x08:
            kind = value
        elif tag == 0x10:
            shape.append(value)
    return kind, shape


def _varint(text: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(text) and shift < 64:
        byte = text[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise CheckpointError("is damaged: the description of its tensor is cut off")
