"""What C libraries print to standard error: a decoder's message names no file, so it is kept from the terminal.

libjpeg and libpng print by `fprintf(stderr, ...)`. The GNU C library documents its `stderr` as a variable that a
program may set. So nothing is done to the file descriptor, which Python and all other threads use as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
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
# What Paddle's static graphs print of every sum, behind the time.
_KEPT_BEHIND_TIME = "static graph(PIR) not support input out tensor"


class _Memory:
    """A C stream to a file in memory. It is `stderr` while at least one thread is in the `with` block."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._libc, self._variable = libc, ctypes.c_void_p.in_dll(libc, "stderr")
        libc.fdopen.restype = ctypes.c_void_p
        self._begin()
        os.register_at_fork(before=self._acquire, after_in_parent=self._release, after_in_child=self._begin_again)

    def _begin(self) -> None:
        self._terminal, self._users = self._variable.value, 0
        self._lock, self.one_reader = threading.Lock(), threading.Lock()
        # Not one of the first three descriptors: where these were closed, C libraries write to whatever has taken them.
        file = os.memfd_create("stderr")
        self._file = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(file)
        self._stream = ctypes.c_void_p(self._libc.fdopen(self._file, b"a"))
        self._libc.setbuf(self._stream, None)

    def _begin_again(self) -> None:
        """In a forked process: its parent shares the file, and another thread there may have held the locks."""
        if self._users:
            self._variable.value = self._terminal
        os.close(self._file)
        self._begin()

    def _acquire(self) -> None:
        self._lock.acquire()

    def _release(self) -> None:
        self._lock.release()

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
                    others = [f"{line}\n" for line in lines if line and not _is_kept(line)]
                    os.ftruncate(self._file, 0)
        if others:
            with contextlib.suppress(OSError):
                os.write(2, "".join(others).encode())

    def lines(self) -> list[str]:
        """What was printed since the first thread entered."""
        size = os.lseek(self._file, 0, os.SEEK_END)
        return os.pread(self._file, size, 0).decode(errors="replace").splitlines() if size else []


def _is_kept(line: str) -> bool:
    return line.startswith(_KEPT) or _KEPT_BEHIND_TIME in line


@functools.cache
def _memory() -> _Memory | None:
    libc = ctypes.CDLL(None)
    with contextlib.suppress(OSError):  # no file descriptor is left
        # In other C libraries `stderr` is no variable.
        return _Memory(libc) if hasattr(libc, "gnu_get_libc_version") else None
    return None


def quiet_c_stderr() -> contextlib.AbstractContextManager[None]:
    """Keep what libjpeg, libpng and Paddle's graphs print from standard error in the `with` block, in any thread.

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
