"""Connections to the key-value store of the ranks, which Paddle runs in the process of rank 0 (`core.TCPStore`).

Paddle's client writes a request in several parts. By default the system holds the second part back until the first is
acknowledged, for 40 ms; with `TCP_NODELAY` a request takes 0.1 ms. Paddle has no option for this, nor one for the time
that an answer may take, so both are set on the socket of the connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from typing import Any

from paddle.base import core


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

    def wait_at_most(self, seconds: float) -> None:
        """Limit the time that an answer may take; 0 sets no limit."""
        whole = int(seconds)
        for shared in self._sockets:
            limit = struct.pack("ll", whole, int((seconds - whole) * 1e6))
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def add(self, key: str, number: int) -> int:
        """Add to a counter, which begins at 0, and return its new value."""
        return int(self._store.add(f"plsc/{key}", number))

    def count(self, key: str) -> int:
        """The value of a counter."""
        return self.add(key, 0)

    def set(self, key: str, text: str) -> None:
        """Set a key that is no counter."""
        self._store.set(f"plsc/{key}", text)

    def get(self, key: str) -> str:
        """The text of a key; waits until it is set."""
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
        shared = socket.socket(fileno=os.dup(descriptor))
        with contextlib.suppress(OSError):
            if shared.getpeername()[1] == port:
                return shared
        shared.close()
    return None
