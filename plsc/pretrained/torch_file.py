"""PyTorch's files in zip format, which `torch.save` writes since 1.6. PyTorch is not needed.

archive/data.pkl    a pickle of what was saved, in which each tensor refers to a storage by its key
archive/data/0      the bytes of storage 0, not compressed
archive/byteorder   'little' or 'big'
"""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import CheckpointError
from plsc.pretrained.inert_pickle import Named, read_pickle
from plsc.pretrained.tensors import StoredTensor, map_file

# Kinds of storages and types of tensors -> NumPy's type; bfloat16 is read as its bits.
_TYPES = {
    **{"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1"},
    **{"BoolStorage": "?", "UntypedStorage": "u1"},
    **{"float32": "f4", "float64": "f8", "float16": "f2", "bfloat16": "bfloat16", "bool": "?"},
    **{f"{kind}int{8 * size}": f"{kind or 'i'}{size}" for kind in ("", "u") for size in (1, 2, 4, 8)},
}
_OLD_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # a number that files of before 1.6 begin with
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_CHECKED_BYTES = 1 << 24
_MOST_AXES = 16


def is_old_torch_file(data: memoryview) -> bool:
    """Whether a file is one of the format before zip files."""
    return _OLD_MAGIC in bytes(data[:16])


def read_torch(path: Path) -> Any:
    """What a file of PyTorch holds, with a `StoredTensor` for each tensor.

    Raises:
        CheckpointError: the file is damaged, or of another kind, or names what does not belong beside weights.
    """
    archive = _Archive(path)
    archive.refuse_scripts()
    constructors: dict[tuple[str, str], Callable[..., Any]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch._utils", "_rebuild_parameter_with_state"): _first,
        ("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_class,
    }
    constructors.update({("torch", name): functools.partial(str, name) for name in _TYPES if name[0].islower()})
    return read_pickle(
        archive.bytes_of("data.pkl"),
        constructors={**constructors, ("torch", "Size"): lambda size=(): size},
        persistent=archive.storage,
    )


class _Storage:
    """The bytes of one storage, and the type of its elements."""

    def __init__(self, data: memoryview, dtype: str, *, order: str, check: Callable[[], None]) -> None:
        self.data, self.dtype, self.order, self.check = data, dtype, order, check

    def view(self, dtype: str, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> StoredTensor:
        """The tensor that lies so in the storage. It has no more elements than the storage."""
        if len(size) != len(stride) or len(size) > _MOST_AXES or min((0, offset, *size, *stride)) < 0:
            raise CheckpointError(f"has a tensor of size {size} and stride {stride}")
        is_bfloat16 = dtype == "bfloat16"
        kind = np.dtype(self.order + ("u2" if is_bfloat16 else dtype))
        flat: NDArray[Any] = np.frombuffer(self.data[: len(self.data) // kind.itemsize * kind.itemsize], kind)
        count = 1
        for axis in size:
            count *= axis
        reached = offset + sum((axis - 1) * step for axis, step in zip(size, stride)) + 1 if count else 0
        if max(count, reached) > flat.size:
            raise CheckpointError(
                f"has a tensor of size {size}, stride {stride} at {offset} in a storage of {flat.size} elements"
            )
        steps = [step * kind.itemsize for step in stride]
        array = np.lib.stride_tricks.as_strided(flat[offset if count else 0 :], size, steps, writeable=False)
        return StoredTensor(array, is_bfloat16=is_bfloat16, check=self.check)


class _Archive:
    """The members of a zip file, as views of it. Names in it are looked up there, and nothing is extracted."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, map_file(path)
        try:
            # The list of members is at the end of the file; `zipfile` reads it and refuses what contradicts itself.
            members = zipfile.ZipFile(_SeekableView(self._file)).infolist()
        except (zipfile.BadZipFile, OSError, ValueError, struct.error, OverflowError, NotImplementedError) as error:
            raise CheckpointError(f"cut off or damaged: {error}") from None
        self._members = {member.filename: member for member in members}
        found = [name for name in self._members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(found) != 1 or len(self._members) != len(members):
            raise CheckpointError("is a zip file, expected one of torch.save, which has one data.pkl")
        self._root = found[0].removesuffix("data.pkl")
        order = bytes(self.bytes_of("byteorder")) if f"{self._root}byteorder" in self._members else b"little"
        self._order = ">" if order == b"big" else "<"
        self._storages: dict[str, tuple[memoryview, Callable[[], None]]] = {}

    def refuse_scripts(self) -> None:
        """Refuse a TorchScript program.

        Raises:
            CheckpointError: it is one.
        """
        if any(name.startswith(f"{self._root}code/") for name in self._members):
            raise CheckpointError(
                "is a TorchScript program, expected a state_dict: torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
            )

    def bytes_of(self, name: str) -> memoryview:
        """The bytes of a member.

        Raises:
            CheckpointError: there is none, or it is compressed or lies outside of the file.
        """
        member = self._members.get(self._root + name)
        if member is None:
            raise CheckpointError(f"holds no {name}")
        start = member.header_offset + _LOCAL_HEADER.size
        header = self._file[member.header_offset : start]
        if len(header) < _LOCAL_HEADER.size:
            raise CheckpointError(f"is cut off: {name} lies outside of it")
        signature, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start += name_size + extra_size
        data = self._file[start : start + member.file_size]
        if signature != b"PK\x03\x04" or len(data) != member.file_size:
            raise CheckpointError(f"is cut off or damaged: {name} does not lie where its list of members says")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CheckpointError(
                f"has {name} compressed, expected it as torch.save writes it: torch.save(torch.load(FILE), OTHER)"
            )
        return data

    def storage(self, reference: Any) -> _Storage:
        """What a tensor refers to: ('storage', kind, key, device, number of elements)."""
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise CheckpointError("refers to something else than a storage")
        kind, key = reference[1], reference[2]
        if not isinstance(kind, Named) or kind.name not in _TYPES or not isinstance(key, str):
            raise CheckpointError(f"has a storage of the kind {str(kind)[:80]}, which is not known")
        if key not in self._storages:
            data = self.bytes_of(f"data/{key}")
            self._storages[key] = (
                data,
                _check_once(
                    data, self._members[f"{self._root}data/{key}"].CRC, where=f"{self._path}: its storage {key}"
                ),
            )
        data, check = self._storages[key]
        return _Storage(data, _TYPES[kind.name], order=self._order, check=check)


def _check_once(data: memoryview, expected: int, *, where: str) -> Callable[[], None]:
    """A function that compares bytes with their checksum when it is first called."""

    @functools.cache
    def check() -> None:
        found = 0
        for start in range(0, len(data), _CHECKED_BYTES):
            found = zlib.crc32(data[start : start + _CHECKED_BYTES], found)
        if found != expected:
            raise CheckpointError(
                f"{where} is damaged: its checksum is {found:08x}, expected {expected:08x}; copy the file again, or "
                f"save it again where it was written without checksums"
            )

    return check


class _SeekableView(io.RawIOBase):
    """A file of the bytes of a view, for `zipfile`."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, len(self._data))[whence]
        if at < 0:
            raise OSError("a negative position")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        stop = len(self._data) if size is None or size < 0 else self._at + size
        piece = bytes(self._data[self._at : stop])
        self._at += len(piece)
        return piece


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    return _view(storage, storage.dtype if isinstance(storage, _Storage) else "", offset, size, stride)


def _typed_tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    # `dtype` is the stand-in of torch.float32 or its like: called, it says its name.
    name = dtype() if isinstance(dtype, functools.partial) else None
    if name not in _TYPES:
        return Named("torch", "Tensor")  # of a type that NumPy does not have
    return _view(storage, _TYPES[name], offset, size, stride)


def _view(storage: Any, dtype: str, offset: Any, size: Any, stride: Any) -> StoredTensor:
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or any(type(number) is not int for number in numbers):
        raise CheckpointError("has a tensor without a storage, a size and a stride")
    return storage.view(dtype, offset, tuple(size), tuple(stride))


def _first(tensor: Any, *_: Any) -> Any:
    """A parameter is read as the tensor that it holds."""
    return tensor


def _tensor_of_class(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    return function(*arguments) if function in (_tensor, _typed_tensor) else Named("torch", "Tensor")
