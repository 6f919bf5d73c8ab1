"""Files as `torch.save` writes them, without PyTorch: a zip file of a pickle and of the bytes of tensors."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_KINDS = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long", "uint8": "Byte", "bool": "Bool"}


@dataclass
class Raw:
    """Instructions of a pickle, as they are."""

    code: bytes


@dataclass
class Tensor:
    """A tensor that lies in a storage of its own choice.

    Attributes:
        storage: key, and elements [n].
        size, stride, offset: how it lies there.
        kind: of the storage; by default that of the elements.
    """

    storage: tuple[str, np.ndarray]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    kind: str = ""


def torch_save(path: Path, content: Any, *, order: str = "little", root: str = "archive", **changes: bytes) -> Path:
    """Write a file.

    Args:
        path: of the file.
        content: dicts, lists, tuples, texts, numbers, arrays, `Tensor` and `Raw`.
        order: of the bytes of numbers.
        root: name of the folder in the archive.
        changes: name of a member, with _ for the dot -> other bytes for it.
    """
    storages: dict[str, bytes] = {}
    members = {"data.pkl": b"\x80\x02" + _pickle(content, storages, order) + b".", "byteorder": order.encode()}
    members["version"] = b"3\n"
    members.update({f"data/{key}": data for key, data in storages.items()})
    members.update({name.replace("_", "."): data for name, data in changes.items()})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def _pickle(value: Any, storages: dict[str, bytes], order: str) -> bytes:
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, np.ndarray):
        strides = tuple(step // value.itemsize for step in np.array(value, order="C").strides)
        value = Tensor((str(len(storages)), value.ravel()), value.shape, strides)
    if isinstance(value, Tensor):
        return _tensor(value, storages, order)
    if isinstance(value, Mapping):
        items = b"".join(_pickle(part, storages, order) for item in value.items() for part in item)
        return b"}(" + items + b"u"
    if isinstance(value, (list, tuple)):
        items = b"".join(_pickle(item, storages, order) for item in value)
        return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    text = value.encode()
    return b"X" + struct.pack("<I", len(text)) + text


def _tensor(tensor: Tensor, storages: dict[str, bytes], order: str) -> bytes:
    key, elements = tensor.storage
    storages[key] = elements.astype(elements.dtype.newbyteorder("<" if order == "little" else ">")).tobytes()
    kind = tensor.kind or _KINDS[elements.dtype.name]

    def inner(value):
        return _pickle(value, storages, order)

    reference = inner("storage") + b"ctorch\n" + f"{kind}Storage\n".encode() + inner(key) + inner("cuda:0")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + b"("
        + (b"(" + reference + inner(elements.size) + b"tQ")
        + inner(tensor.offset)
        + inner(tensor.size)
        + inner(tensor.stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
