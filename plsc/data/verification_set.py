"""Verification sets: pairs of images, each pair of the same identity or not.

Public sets ship as `<name>.bin`, a pickle of (2P images, P flags), and a pickle may run anything when it
is read. Here it runs nothing: of all classes only those few names are answered that such a file needs, and
they are answered by stand-ins that merely hold what was said.
"""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from plsc.data.records import read_image
from plsc.errors import DataError
from plsc.utils.atomic import write_file

log = logging.getLogger("plsc")

Image = bytes | np.ndarray

_EXPECTED = "expected a pickle of (list of 2P images, list of P flags)"


class VerificationSet:
    """Pairs of images, with whether each is of one identity. P pairs.

    Args:
        name: what reports and messages call the set.
        images: 2P images; 2i and 2i + 1 are pair i. Each is encoded bytes (or the same as a 1-D uint8
            array), or pixels [H, W, 3] uint8 RGB.
        is_same: [P] bool.

    Raises:
        DataError: no pairs, not two images per flag, or an image or a flag of another kind.
    """

    def __init__(self, name: str, images: Sequence[Image], is_same: Sequence[bool]) -> None:
        self.name = name
        self.is_same = _flags(is_same, name)
        if len(images) != 2 * len(self.is_same) or not len(images):
            raise DataError(
                f"{name}: found {len(images)} images and {len(self.is_same)} flags, expected two images "
                f"per flag and at least one pair"
            )
        self.images: list[Image] = [_image(image, name, index) for index, image in enumerate(images)]

    def __len__(self) -> int:
        """The number of pairs, P."""
        return len(self.is_same)

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> VerificationSet:
        """Read an LFW-style `.bin`, pickled by Python 2 or 3, its images as bytes or as uint8 arrays.

        Args:
            path: the file.
            name: the file's name without `.bin` when not given.

        Raises:
            DataError: the file cannot be read, is cut off, is no such pickle, or asks for a class that no
                verification set needs. Nothing that the file asks for is run.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"verification set {path} cannot be read: {error.strerror}; {_EXPECTED}") from None
        if not data:
            raise DataError(f"verification set {path} is empty (0 bytes); {_EXPECTED}")
        content = _unpickle(data, path)
        if not (isinstance(content, (tuple, list)) and len(content) == 2):
            count = f" of {len(content)}" if hasattr(content, "__len__") else ""
            raise DataError(f"verification set {path}: found a {type(content).__name__}{count}; {_EXPECTED}")
        images, flags = (part.elements() if isinstance(part, _Array) else part for part in content)
        if not (isinstance(images, (tuple, list)) and isinstance(flags, (tuple, list))):
            raise DataError(
                f"verification set {path}: found ({type(images).__name__}, {type(flags).__name__}); {_EXPECTED}"
            )
        images = [image.array if isinstance(image, _Array) else image for image in images]
        try:
            return cls(path.stem if name is None else name, images, flags)
        except DataError as error:
            raise DataError(f"verification set {path}: {error}") from None

    @classmethod
    def from_pair_list(cls, list_path: str | Path, root: str | Path, name: str | None = None) -> VerificationSet:
        """Read pairs from lines `imageA imageB 1` (same) or `0` (different), apart by white space, or by tabs.

        Args:
            list_path: the list, UTF-8. Blank lines are passed over.
            root: the folder that image paths are relative to.
            name: the list's name without its suffix when not given.

        Raises:
            DataError: the list or an image cannot be read, or a line is something else; named by file and line.
        """
        list_path, images, flags = Path(list_path), [], []
        for number, line in enumerate(_lines(list_path), start=1):
            if not line.strip():
                continue
            fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
            if len(fields) != 3 or fields[2] not in ("0", "1"):
                raise DataError(
                    f"{list_path}, line {number}: got {line.strip()[:120]!r}, expected two image paths and "
                    f"1 or 0, as 'a/1.jpg a/2.jpg 1'"
                )
            try:
                images += [read_image(Path(root) / field) for field in fields[:2]]
            except DataError as error:
                raise DataError(f"{list_path}, line {number}: {error}") from None
            flags.append(fields[2] == "1")
        return cls(list_path.stem if name is None else name, images, flags)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a `.bin` that this and other libraries read: (encoded images, flags), pickled by Python 3.

        Pixels are encoded as PNG, which loses nothing. The file appears whole or not at all.

        Raises:
            DataError: the file exists and `overwrite` is False, or cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise DataError(
                f"verification set {path} exists and is not overwritten; choose another path, or pass overwrite=True"
            )
        content = ([_encode(image) for image in self.images], self.is_same.tolist())
        try:
            with write_file(path) as file:
                # Read by every Python 3 there is; 5 would not be.
                pickle.dump(content, file, protocol=4)
        except OSError as error:
            raise DataError(f"verification set {path} cannot be written: {error.strerror}") from None


def _flags(is_same: Sequence[bool], name: str) -> np.ndarray:
    for index, flag in enumerate(is_same):
        if not isinstance(flag, (bool, int, np.bool_, np.integer)):
            raise DataError(f"{name}: flag {index} is of type {type(flag).__name__}, expected True or False")
        if flag not in (0, 1):
            raise DataError(f"{name}: flag {index} is a number other than 0 and 1, expected True or False")
    return np.array([bool(flag) for flag in is_same], np.bool_)


def _image(image: Any, name: str, index: int) -> Image:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
        if image.ndim == 1:
            image = image.tobytes()
    if isinstance(image, (bytes, bytearray)):
        if not image:
            raise DataError(f"{name}: image {index} is empty (0 bytes), expected an encoded image")
        return bytes(image)
    found = f"array {list(image.shape)} of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    raise DataError(
        f"{name}: image {index} is of type {found}, expected encoded bytes, a 1-D uint8 array of them, or "
        f"pixels [H, W, 3] uint8 RGB"
    )


def _encode(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: the pair list cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the pair list is not UTF-8 text (byte {error.start})") from None


# The guarded unpickler.


def _unpickle(data: bytes, path: Path) -> Any:
    """What the pickle holds, arrays as `_Array`; `DataError` for all else."""
    end, obstacle = _readable(data)
    # Up to an obstacle it is still read, since `_Unpickler` names a class that was asked for before.
    bounded = data[:end] + pickle.STOP + data[end + 1 :] if obstacle else data
    try:
        content = _Unpickler(bounded).load()
    except DataError as error:
        raise DataError(f"verification set {path}: {error}; {_EXPECTED}") from None
    except Exception as error:  # the pickle module documents that damaged data may raise anything
        obstacle = obstacle or f"damaged ({type(error).__name__}: {str(error)[:120]})"
    if obstacle:
        raise DataError(f"verification set {path}: {obstacle}; the file has {len(data)} bytes; {_EXPECTED}")
    if end < len(data):
        log.warning("verification set %s: passed over %d bytes after the pickle's end", path, len(data) - end)
    return content


def _readable(data: bytes) -> tuple[int, str]:
    """How many bytes can be unpickled within memory and time bounded by the file's size, and what ends them.

    Classes are not judged here but by `_Unpickler`.
    """
    hashing = {"SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET"}  # nested shared tuples hash for ever
    memo = {"PUT", "BINPUT", "LONG_BINPUT"}  # the memo is as long as its largest index
    stream, end = io.BytesIO(data), 0
    try:
        for instruction, argument, position in pickletools.genops(stream):
            name = instruction.name
            if name in hashing or name.startswith("EXT"):
                return position, f"pickle instruction {name} at byte {position}, which no verification set needs"
            if name in memo and argument > len(data):
                return position, f"memo index {argument} at byte {position}, more than the file has bytes"
            end = stream.tell()
    except Exception as error:  # as above: damaged data may raise anything
        if end == 0:
            return end, f"not a pickle (it begins with {data[:8]!r})"
        return end, f"cut off or damaged after byte {end} ({str(error)[:120]})"
    return end, ""


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        # Python 2's str is then bytes: what its images are.
        super().__init__(io.BytesIO(data), encoding="bytes")

    def find_class(self, module: str, name: str) -> Callable:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise DataError(
                f"asks for {module}.{name}, which no verification set needs and which may be an attack; "
                f"nothing of it was run"
            )
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refers to an object outside the file")


class _Dtype:
    """A numpy dtype as pickled: a code such as u1 or b1, then a state that holds the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = _text(state[1])

    def numpy(self) -> np.dtype:
        if not re.fullmatch(r"[biu][1248]|\?", self.code) or self.order not in ("|", "<", ">", "="):
            raise DataError(f"holds an array of dtype {self.code[:20]!r}")
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """A numpy array as pickled: shape, dtype and bytes, which become numpy's once they are known to agree."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _to_array(data, dtype, shape, "F" if fortran else "C")

    def elements(self) -> list:
        """The images of an array of images, or the flags of an array of flags."""
        return list(np.atleast_1d(self.array))


def _to_array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or len(shape) > 4:
        raise DataError("holds an array of something else than plain numbers")
    return np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if _text(order) == "F" else "C")


def _text(value: Any) -> str:
    if not isinstance(value, (bytes, str)):
        raise DataError(f"holds a {type(value).__name__} where a text was due")
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _ndarray(*arguments: Any) -> None:
    raise DataError("calls numpy.ndarray itself")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array(np.zeros([0], np.uint8))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(_to_array(data, dtype, shape, order))


def _scalar(dtype: Any, data: Any) -> Any:
    return _to_array(data, dtype, (1,), "C")[0]


def _latin1(text: str, encoding: Any = "latin1") -> bytes:
    if _text(encoding) not in ("latin1", "latin-1"):
        raise DataError("holds bytes in another encoding than latin1")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _bytearray(content: Any = b"", encoding: Any = "latin1") -> bytes:
    return content if isinstance(content, bytes) else _latin1(content, encoding)


def _stand_ins() -> dict[tuple[str, str], Callable]:
    names: dict[tuple[str, str], Callable] = {
        ("_codecs", "encode"): _latin1,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _ndarray,
    }
    for builtins in ("builtins", "__builtin__"):
        names.update({(builtins, "bytes"): _no_bytes, (builtins, "bytearray"): _bytearray})
    for core in ("numpy.core", "numpy._core"):
        names.update(
            {
                (f"{core}.multiarray", "_reconstruct"): _reconstruct,
                (f"{core}.multiarray", "scalar"): _scalar,
                (f"{core}.numeric", "_frombuffer"): _from_buffer,
            }
        )
    return names


_STAND_INS = _stand_ins()
