"""A reader of pickles that calls no function that a file names.

A pickle may call any function when it is read. This reader resolves only the few NumPy and builtin names that a pickle
of arrays, bytes, lists and numbers needs, and resolves them to inert stand-ins, never to the real callables. Time and
memory are bounded by the size of the file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plsc.errors import DataError
from plsc.utils.plural import counted


def guarded_loads(data: bytes) -> tuple[Any, bytes]:
    """(the content of a pickle, with each array as a `PickledArray`; the bytes that follow the pickle).

    Args:
        data: the pickle, and what follows it.

    Raises:
        DataError: the pickle is damaged or asks for anything but numbers, bytes, lists and arrays. Nothing that it asks
            for is run.
    """
    end, obstacle = _readable(data)
    # The part before an obstacle is read all the same: `_Unpickler` names a forbidden class that comes before it.
    bounded = data[:end] + pickle.STOP + data[end + 1 :] if obstacle else data
    content: Any = None
    try:
        content = _Unpickler(bounded).load()
    except DataError:
        raise
    except Exception as error:  # the pickle module documents that damaged data may raise any exception
        obstacle = obstacle or f"damaged ({type(error).__name__}: {str(error)[:120]})"
    if obstacle:
        raise DataError(f"{obstacle}; the file has {counted(len(data), 'byte')}")
    return content, data[end:]


def _readable(data: bytes) -> tuple[int, str]:
    """(number of bytes that can be unpickled in bounded time and memory, what is wrong behind them or "").

    `_Unpickler` checks the classes.
    """
    hashing = {"SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET"}  # hashing nested shared tuples takes forever
    memo = {"PUT", "BINPUT", "LONG_BINPUT"}  # the memo is as long as its largest index
    stream, end = io.BytesIO(data), 0
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            name, position = instruction.name, end
            if name in hashing or name.startswith("EXT"):
                return position, f"pickle instruction {name} at byte {position}, which no verification set needs"
            if name in memo and isinstance(argument, int) and argument > len(data):
                return position, f"memo index {argument} at byte {position}, more than the file has bytes"
            end = stream.tell()
    except Exception as error:  # damaged data may raise any exception here as well
        if end == 0:
            return end, f"not a pickle (it begins with {data[:8]!r})"
        return end, f"cut off or damaged after byte {end} ({str(error)[:120]})"
    return end, ""


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        # The str of Python 2, which its images are, is read as bytes.
        super().__init__(io.BytesIO(data), encoding="bytes")

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise DataError(
                f"asks for {module}.{name}, which no verification set needs and which may be an attack; "
                f"nothing of it was run"
            )
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refers to an object outside the file")


class PickledDtype:
    """A NumPy dtype as pickled: a code such as u1 or b1, then a state that holds the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])

    def numpy(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[biu][1248]|f[248]|\?", self.code) or self.order not in ("|", "<", ">", "="):
            raise DataError(f"holds an array of dtype {self.code[:20]!r}")
        # The annotation of newbyteorder knows the codes as literals only.
        dtype: np.dtype[Any] = np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]
        return dtype


class PickledArray:
    """A NumPy array as pickled. `array` is made once shape, dtype and bytes are known to agree.

    The elements of a one-dimensional array of objects are a list: a copy of it for each array that refers to it could
    take more memory than the file.
    """

    __slots__ = ("array",)

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array: npt.NDArray[Any] | list[Any] = array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(dtype, PickledDtype) and dtype.code in ("O", "O4", "O8") and isinstance(data, list):
            if shape != (len(data),):
                raise DataError(f"holds an array of {counted(len(data), 'object')} that states another shape")
            self.array = data
        else:
            self.array = _to_array(data, dtype, shape, "F" if fortran else "C")

    def elements(self) -> list[Any]:
        """The rows of the array, or its one number."""
        return list(self.array if isinstance(self.array, list) else np.atleast_1d(self.array))


def _to_array(data: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    if not isinstance(dtype, PickledDtype) or not isinstance(data, (bytes, bytearray, memoryview)) or len(shape) > 4:
        raise DataError("holds an array of something else than plain numbers")
    layout: Literal["F", "C"] = "F" if _text(order) == "F" else "C"
    array: npt.NDArray[Any] = np.frombuffer(data, dtype.numpy()).reshape(shape, order=layout)
    return array


def _text(value: Any) -> str:
    if not isinstance(value, (bytes, str)):
        raise DataError(f"holds a {type(value).__name__} where a text was expected")
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _ndarray(*arguments: Any) -> None:
    raise DataError("calls numpy.ndarray itself")


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    return PickledArray(np.zeros([0], np.uint8))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    return PickledArray(_to_array(data, dtype, shape, order))


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


def numpy_stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    """What NumPy's functions and classes in pickles of arrays are replaced by: (module, name) -> inert stand-in."""
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("_codecs", "encode"): _latin1,
        ("numpy", "dtype"): PickledDtype,
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


_STAND_INS = numpy_stand_ins()
