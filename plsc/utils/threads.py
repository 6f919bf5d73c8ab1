"""`map` on threads, in order and with a bounded number of items in work; and a lock for many readers or one writer."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def thread_map(
    function: Callable[[_In], _Out], items: Iterable[_In], *, threads: int | None = None, ahead: int | None = None
) -> Iterator[_Out]:
    """Yield `function(item)` for each item, in the order of the items.

    Threads gain where `function` releases the interpreter lock, as OpenCV and file reading do. `items` is read in
    the caller's thread, no further than `ahead` items past the last result, so that an endless iterator works and
    memory stays bounded. An exception of `function` is raised in its item's turn; items not begun are then dropped.

    Args:
        function: called in several threads at once.
        items: what to call it with.
        threads: 1 or more; by default the number of cores, 8 at most.
        ahead: items in work or finished before their turn, 1 or more; by default 4 per thread.

    Example:
        >>> list(thread_map(str.upper, ["a", "b"], threads=2))
        ['A', 'B']
    """
    threads = threads or min(8, os.cpu_count() or 1)
    ahead = ahead or 4 * threads
    waiting: deque[Future[_Out]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class SharedLock:
    """A lock that many readers hold at once, or one writer alone. Neither waits for ever for the other kind: a waiting
    writer comes before readers that arrive later, and readers that wait for a writer come before the next one.

    It is not reentrant, and a thread that holds it takes no other lock of this class. A fork waits until no thread
    writes, before writers that arrive later, so that what the lock guards is whole in the new process, where no thread
    holds the lock.

    Example:
        >>> lock = SharedLock()
        >>> with lock.reading():
        ...     found = search(probe)
        >>> with lock.writing():
        ...     entries.append(entry)
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._is_writing = False
        self._writers_waiting = 0
        self._readers = 0
        self._readers_waiting = 0
        self._readers_admitted = 0  # of those waiting, may go before the next writer
        self._is_forking = False  # a fork waits for the writer, or goes on
        with _FORKING:
            _LOCKS.add(self)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock beside other readers."""
        with self._changed:
            self._readers_waiting += 1
            try:
                self._changed.wait_for(
                    lambda: not self._is_writing and (self._readers_admitted > 0 or not self._writers_waiting)
                )
                self._readers += 1
                self._readers_admitted = max(0, self._readers_admitted - 1)
            finally:
                self._readers_waiting -= 1
                self._readers_admitted = min(self._readers_admitted, self._readers_waiting)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._changed:
            self._writers_waiting += 1
            try:
                self._changed.wait_for(
                    lambda: not (self._is_writing or self._readers or self._readers_admitted or self._is_forking)
                )
                self._is_writing = True
            finally:
                self._writers_waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._is_writing = False
                self._readers_admitted = self._readers_waiting
                self._changed.notify_all()

    def _stop_for_fork(self) -> None:
        self._changed.acquire()
        self._is_forking = True
        self._changed.wait_for(lambda: not self._is_writing)

    def _go_on_after_fork(self) -> None:
        self._is_forking = False
        self._changed.notify_all()
        self._changed.release()

    def _forget_threads(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._writers_waiting = self._readers = self._readers_waiting = self._readers_admitted = 0
        self._is_forking = False


_LOCKS: weakref.WeakSet[SharedLock] = weakref.WeakSet()
_FORKING = threading.Lock()  # held from before a fork until after it
_STOPPED: list[SharedLock] = []


def _before_fork() -> None:
    _FORKING.acquire()
    _STOPPED.extend(_LOCKS)
    for lock in _STOPPED:
        lock._stop_for_fork()


def _after_fork_in_parent() -> None:
    for lock in _STOPPED:
        lock._go_on_after_fork()
    _STOPPED.clear()
    _FORKING.release()


def _after_fork_in_child() -> None:
    for lock in _STOPPED:
        lock._forget_threads()
    _STOPPED.clear()
    _FORKING.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
