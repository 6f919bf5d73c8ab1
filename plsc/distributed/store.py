"""Connections to the key-value store of the ranks, which Paddle runs in the process of rank 0 (`core.TCPStore`).

Paddle's client writes a request in several parts. By default the system holds the second part back until the first is
acknowledged, for 40 ms; with `TCP_NODELAY` a request takes 0.1 ms. Paddle has no option for this, so it is set on the
socket of the connection. Nor has Paddle one for the time that an answer may take. A limit of the socket (`SO_RCVTIMEO`)
would not do: with it, signal(7) says, a call fails when a signal handler has run or the process was stopped for a
while, and Paddle then takes the connection for lost. So another thread shuts the connection down.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
from collections.abc import Iterator
from typing import Any

from paddle.base import core

# Signals that a call of the store may hold back; the others are faults of the process itself.
_HELD_BACK = signal.valid_signals() - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}


class Store:
    """One connection, for one thread at a time.

    Args:
        host: of rank 0.
        port: of the store.

    Raises:
        ValueError: of every method: rank 0 is gone, or did not answer in time. The connection is of no use then.
    """

    def __init__(self, host: str, port: int) -> None:
        before = _sockets()
        self._store: Any = core.TCPStore(host, port, False, 0, 900)
        self._sockets = [shared for number in _sockets() - before if (shared := _connected(number, port)) is not None]
        for shared in self._sockets:
            shared.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._calls, self._is_calling = 0, False
        self._looked_at, self._taken = 0, 0.0

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """A call that no signal interrupts, whatever handlers a script has installed."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)  # runs handlers, which may raise, when it has blocked
            self._calls, self._is_calling = self._calls + 1, True
            yield
        finally:
            self._is_calling = False
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end_late_call(self, limit: float, *, period: float) -> None:
        """End a call of another thread that takes longer than the limit, and all later ones.

        Args:
            limit: seconds; 0 sets no limit.
            period: seconds from one call of this method to the next. They are added up, so that a time in which the
                process was stopped does not count.
        """
        is_same = self._is_calling and self._looked_at == self._calls
        self._looked_at, self._taken = self._calls, self._taken + period if is_same else 0.0
        if limit and self._taken >= limit:
            for shared in self._sockets:
                with contextlib.suppress(OSError):  # the other end has closed it
                    shared.shutdown(socket.SHUT_RDWR)

    def add(self, key: str, number: int) -> int:
        """Add to a counter, which begins at 0, and return its new value."""
        with self._call():
            return int(self._store.add(f"plsc/{key}", number))

    def count(self, key: str) -> int:
        """The value of a counter."""
        return self.add(key, 0)

    def set(self, key: str, text: str) -> None:
        """Set a key that is no counter."""
        with self._call():
            self._store.set(f"plsc/{key}", text)

    def get(self, key: str) -> str:
        """The text of a key; waits until it is set."""
        with self._call():
            return bytes(self._store.get(f"plsc/{key}")).decode()


def _sockets() -> set[int]:
    """The descriptors of this process that are sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this listing is closed by now
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


def _connected(descriptor: int, port: int) -> socket.socket | None:
    """The socket of a descriptor, if it is connected to `port`: another thread may have opened one meanwhile."""
    with contextlib.suppress(OSError):
        waits = os.get_blocking(descriptor)
        shared = socket.socket(fileno=os.dup(descriptor))
        os.set_blocking(descriptor, waits)  # Python has changed it where a script calls `socket.setdefaulttimeout`
        with contextlib.suppress(OSError):
            if shared.getpeername()[1] == port:
                return shared
        shared.close()
    return None
