"""What C libraries print to standard error: a decoder's message names no file, so it is kept from the terminal.

libjpeg and libpng print by `fprintf(stderr, ...)`. The GNU C library documents its `stderr` as a variable that a
program may set. So nothing is done to the file descriptor, which Python and all other threads use as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator

# What the lines of image libraries begin with. Whatever else comes meanwhile is passed on.
_KEPT = (
    "libpng",
    "Corrupt JPEG data",
    "Premature end of JPEG file",
    "Inconsistent progression sequence",
    "Invalid SOS parameters",
    "Warning: unknown JFIF revision",
    "Unknown Adobe color transform",
)


class _Memory:
    """A C stream in memory that takes the place of `stderr` while at least one thread is in the `with` block."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._flush, self._seek = libc.fflush, libc.fseek
        self._variable = ctypes.c_void_p.in_dll(libc, "stderr")
        self._text, self._size, self._start = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_long(0)
        libc.open_memstream.restype = ctypes.c_void_p
        self._stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(self._text), ctypes.byref(self._size)))
        self._terminal, self._users = self._variable.value, 0
        self._lock, self.one_reader = threading.Lock(), threading.Lock()
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._reset)

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._terminal, self._variable.value = self._variable.value, self._stream.value

    def __exit__(self, *_: object) -> None:
        others: list[str] = []
        with self._lock:
            self._users -= 1
            if not self._users:
                self._variable.value = self._terminal
                if lines := self.lines():
                    others = [f"{line}\n" for line in lines if line and not line.startswith(_KEPT)]
                    self._seek(self._stream, self._start, 0)
        if others:
            with contextlib.suppress(OSError):
                os.write(2, "".join(others).encode())

    def lines(self) -> list[str]:
        """What was printed since the first thread entered."""
        self._flush(self._stream)
        size = self._size.value
        return ctypes.string_at(self._text, size).decode(errors="replace").splitlines() if size else []

    def _reset(self) -> None:
        """In a forked process, where no other thread exists."""
        self._lock, self.one_reader = threading.Lock(), threading.Lock()
        if self._users:
            self._users, self._variable.value = 0, self._terminal
            self._flush(self._stream)
            self._seek(self._stream, self._start, 0)


@functools.cache
def _memory() -> _Memory | None:
    libc = ctypes.CDLL(None)
    # In other C libraries `stderr` is no variable.
    return _Memory(libc) if hasattr(libc, "gnu_get_libc_version") else None


def quiet_c_stderr() -> contextlib.AbstractContextManager[None]:
    """Keep what libjpeg and libpng print from standard error while the `with` block runs, in any thread.

    Example:
        >>> with quiet_c_stderr():
        ...     cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR)
    """
    return _memory() or contextlib.nullcontext()


@contextlib.contextmanager
def captured_c_stderr() -> Iterator[list[str]]:
    """As `quiet_c_stderr`; the list holds the lines after the `with` block. One block at a time runs.

    In the list are also lines of threads that run `quiet_c_stderr` meanwhile.

    Example:
        >>> with captured_c_stderr() as lines:
        ...     cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR)
        >>> lines
        ['Corrupt JPEG data: premature end of data segment']
    """
    memory, lines = _memory(), list[str]()
    if memory is None:
        yield lines
        return
    with memory.one_reader, memory:
        before = len(memory.lines())
        yield lines
        lines += memory.lines()[before:]
