"""A reader of pickles that hold dictionaries of tensors. It calls nothing that a file names.

Python's own reader is not used: the instructions are carried out here, on plain values. A class or function that a
pickle names becomes a value by one of the given constructors, all of which are of this package, or an inert `Named`. So
nothing is imported, nothing is called and no attribute is set. Each instruction takes constant time and at most the
memory of the bytes that it has in the file, so time and memory are bounded by the size of the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from plsc.data.guarded_pickle import PickledArray, PickledDtype, numpy_stand_ins
from plsc.errors import CheckpointError

Constructors = Mapping[tuple[str, str], Callable[..., Any]]

# Packages whose classes training scripts put beside the weights: options, states of schedules, types. What a file makes
# of them stays inert. Anything else that a file names has no place beside weights.
_HARMLESS = frozenset(
    {
        *("argparse", "collections", "copy_reg", "copyreg", "datetime", "easydict", "enum", "functools", "lightning"),
        *("lightning_fabric", "ml_collections", "numpy", "omegaconf", "paddle", "pathlib", "plsc", "pytorch_lightning"),
        *("torch", "torchvision", "typing", "yacs"),
    }
)
_HARMLESS_BUILTINS = frozenset(
    {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "set"),
        *("slice", "str", "tuple", "type", "range"),
    }
)
# Bytes that are kept as a view of the file, as the numbers of an array are, and not copied.
_LARGE = 1 << 12
_KEYS = (str, int, float, bytes, type(None))
_MARK = object()


class Named:
    """A class or function that a pickle names, or an object made of one. It is never looked up."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def read_pickle(data: memoryview, *, constructors: Constructors, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The content of a pickle: dicts, lists, tuples, texts, numbers, `PickledArray`, what constructors return, `Named`.

    Args:
        data: begins with the pickle; large runs of bytes in the result are views of it.
        constructors: (module, name) -> what is called in the place of that function or class, in addition to those of
            arrays. They must be inert, and take constant time and memory.
        persistent: called with each reference to an object outside the pickle; by default such a reference is refused.

    Raises:
        CheckpointError: the pickle is damaged, or names something that does not belong beside weights. The message has
            no path: the caller adds it.
    """
    machine = _Machine({**_array_constructors(len(data)), **constructors}, persistent, limit=len(data))
    at: int | None = 0
    try:
        # What it takes of a file are `read` and `readline`; its annotation asks for more.
        for instruction, argument, position in pickletools.genops(_Bytes(data)):  # type: ignore[arg-type]
            at = position
            machine.run(instruction.name, argument)
        return machine.result()
    except CheckpointError:
        raise
    except Exception as error:  # damaged data may raise anything
        raise CheckpointError(
            f"cut off or damaged after byte {at} of its pickle ({type(error).__name__}: {str(error)[:120]})"
        ) from None


def _array_constructors(limit: int) -> dict[tuple[str, str], Callable[..., Any]]:
    """Stand-ins for NumPy's functions. Texts that stand for bytes are converted up to twice `limit` characters in all.

    A pickle can ask for the conversion of one text as often as it likes.
    """
    left = [2 * limit]

    def bounded(convert: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            left[0] -= len(arguments[0]) if arguments and isinstance(arguments[0], str) else 0
            if left[0] < 0:
                raise CheckpointError("converts more text than the file has")
            return convert(*arguments)

        return call

    found = numpy_stand_ins()
    for key in [key for key in found if key[1] in ("encode", "bytearray")]:
        found[key] = bounded(found[key])
    # What keeps its content as it is: a copy of one list could be asked for again and again.
    found.update({(module, "tuple"): lambda content=(): content for module in ("builtins", "__builtin__")})
    found.update({("collections", "OrderedDict"): _empty_dict, ("collections", "defaultdict"): _empty_dict})
    return found


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


class _Bytes:
    """A file over bytes that are not copied where many are read together."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes | memoryview:
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece if size >= _LARGE else bytes(piece)

    def readline(self) -> bytes:
        line = bytearray()
        while self._at < len(self._data):
            piece = bytes(self._data[self._at : self._at + 256])
            end = piece.find(b"\n") + 1
            line += piece[:end] if end else piece
            self._at += end or len(piece)
            if end:
                break
        return bytes(line)


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, constructors: Constructors, persistent: Callable[[Any], Any] | None, *, limit: int) -> None:
        self._constructors, self._persistent, self._limit = constructors, persistent, limit
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        """What the pickle holds."""
        (content,) = self._stack
        return content

    def run(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            self._stack.append(argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[self._bounded(int(argument))] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(argument)])
        elif name == "GLOBAL":
            self._stack.append(self._named(*argument.split(" ", 1)))
        elif name not in ("PROTO", "FRAME", "STOP"):
            step = getattr(self, f"_{name.lower()}", None) if name in _STEPS else None
            if step is None:
                raise CheckpointError(f"has the pickle instruction {name}, which no file of weights needs")
            step()

    def _bounded(self, index: int) -> int:
        if index > self._limit:
            raise CheckpointError(f"has the memo index {index}, more than the file has bytes")
        return index

    def _named(self, module: Any, name: Any) -> Any:
        """What a pair of names becomes."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError("names a class by something else than a text")
        found = self._constructors.get((module, name))
        if found is not None:
            return found
        is_builtin = module in ("builtins", "__builtin__")
        if name in _HARMLESS_BUILTINS if is_builtin else module.split(".")[0] in _HARMLESS:
            return Named(module, name)
        raise CheckpointError(
            f"asks for {module[:80]}.{name[:80]}, which does not belong beside weights and may be an attack; nothing "
            f"of it was run. Where that is a mistake, save the tensors alone: torch.save(network.state_dict(), FILE)"
        )

    def _above_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                found = self._stack[place + 1 :]
                del self._stack[place:]
                return found
        raise ValueError("no mark on the stack")

    def _mark(self) -> None:
        self._stack.append(_MARK)

    def _pop(self) -> None:
        self._stack.pop()

    def _pop_mark(self) -> None:
        self._above_mark()

    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._named(module, name))

    def _tuple(self) -> None:
        self._stack.append(tuple(self._above_mark()))

    def _tuple1(self) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _tuple2(self) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _tuple3(self) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _list(self) -> None:
        self._stack.append(self._above_mark())

    def _dict(self) -> None:
        items, target = self._above_mark(), dict[Any, Any]()
        _set_items(target, items)
        self._stack.append(target)

    def _append(self) -> None:
        item = self._stack.pop()
        _extend(self._stack[-1], [item])

    def _appends(self) -> None:
        items = self._above_mark()
        _extend(self._stack[-1], items)

    def _additems(self) -> None:
        self._appends()  # a set is read as a list

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _set_items(self._stack[-1], [key, value])

    def _setitems(self) -> None:
        items = self._above_mark()
        _set_items(self._stack[-1], items)

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_make(function, arguments))

    _newobj = _reduce

    def _build(self) -> None:
        state = self._stack.pop()
        if isinstance(self._stack[-1], (PickledArray, PickledDtype)):
            self._stack[-1].__setstate__(state)  # the state of others, as the notes of an OrderedDict, is dropped

    def _binpersid(self) -> None:
        if self._persistent is None:
            raise CheckpointError("refers to an object outside its pickle")
        self._stack.append(self._persistent(self._stack.pop()))


def _make(function: Any, arguments: Any) -> Any:
    if isinstance(function, Named):
        return Named(function.module, function.name)
    if not callable(function) or not isinstance(arguments, tuple):
        raise ValueError(f"a {type(function).__name__} is called")
    return function(*arguments)


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Named):
        raise ValueError(f"items are added to a {type(target).__name__}")


def _set_items(target: Any, items: list[Any]) -> None:
    if isinstance(target, Named):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError(f"keys are set in a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2]):
        if isinstance(key, _KEYS):  # hashing nested tuples may take forever
            target[key] = value


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_STEPS = frozenset(
    {
        *("MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "STACK_GLOBAL", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST"),
        *("DICT", "APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
    }
)
