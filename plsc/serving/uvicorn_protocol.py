"""Limits on a connection's request heads and idle time, which no server package offers by its options.

This is the one file that uses parts of uvicorn without a documented interface, and the reason why pyproject.toml pins
uvicorn to one minor version. uvicorn (0.54) has no limit on the time in which a head or the rest of a refused body
must arrive, no limit on a head's size with httptools, answers a malformed head in plain text, loses the body of a
request that offers HTTP/2 in an Upgrade header, and does not answer a client that closes its sending side first.

The parts used: the class `HttpToolsProtocol`, its constructor, its callbacks for httptools (`on_message_begin`,
`on_headers_complete`, `on_message_complete`), `on_response_complete`, `send_400_response`, the attributes `config`,
`loop`, `transport`, `pipeline` and `cycle` (with `cycle.response_complete` and `cycle.more_body`), and `connections` of
`Server.server_state`.

Tried and not chosen: hypercorn 0.18 and granian 2.8. Both limit heads, but answer malformed ones without a body, and a
small request of a lone client takes 0.15 and 0.11 ms instead of 0.05 ms. granian has one limit for heads and idle
connections, and calls its embedded server experimental. When uvicorn has options for these limits, delete this file.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024  # bytes of a request's line and headers
HEAD_TIMEOUT = 10.0  # seconds in which a head must arrive

_UPGRADE = re.compile(rb"(?i)(?<=\n)upgrade(?=[ \t]*:)")


def protocol_factory(server: uvicorn.Server) -> Callable[[], asyncio.Protocol]:
    """A factory for `loop.create_server`. `server.serve()` ends the connections that it makes when it shuts down."""
    loop = asyncio.get_running_loop()
    return lambda: LimitedProtocol(config=server.config, server_state=server.server_state, app_state={}, _loop=loop)


def awaits_first_request(server: uvicorn.Server) -> bool:
    """Whether a connection has not sent the head of a request yet."""
    connections = server.server_state.connections
    return any(isinstance(each, LimitedProtocol) and each.cycle is None for each in connections)


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit on the size of a request's head and on the time of head, refused body and idleness.

    The middleware limits the time of a body that the application reads. Errors are JSON, as all others of the server.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        # Bytes of the head that is arriving; None while a body is.
        self._head_size: int | None = 0
        self._unparsed, self._is_half_closed = b"", False
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self._on_timeout)

    def data_received(self, data: bytes) -> None:
        in_head = self._head_size is not None
        if self._head_size is not None:
            self._head_size += len(data)
            data = self._without_upgrade(data)
        super().data_received(data)
        if in_head and self._head_size is not None and self._head_size > MAX_HEAD:
            self._refuse(b"431 Request Header Fields Too Large", f"the head has more than {MAX_HEAD} bytes")
        elif self._timer.cancelled() and self._is_answered:
            # uvicorn ends its own wait at any byte, a blank line or the rest of a refused request's body among them.
            self._allow(self.config.timeout_keep_alive)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._allow(HEAD_TIMEOUT)

    def on_headers_complete(self) -> None:
        self._head_size = None
        # Longer than the middleware's limit: this one ends the body of a request that was refused by its head.
        self._allow((self.config.timeout_graceful_shutdown or 0) + HEAD_TIMEOUT)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_size = 0
        self._timer.cancel()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's closes the connection
        """The client sends no more, as `nc -N` does after its request. What has arrived whole is answered."""
        self._is_half_closed = True
        if not self._is_answered and self.cycle.more_body:
            if not self.pipeline:
                return False
            self.pipeline.popleft()  # the last request
            return True
        return not self._is_answered

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if self._is_half_closed and is_last:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", msg)

    def _without_upgrade(self, data: bytes) -> bytes:
        """Rename the head's Upgrade header, which no handler reads: httptools would take the body for another protocol.

        An unfinished line is kept until its end arrives, so that a header's name is seen as a whole.
        """
        data, self._unparsed = self._unparsed + data, b""
        end = data.find(b"\n\r\n")
        if end < 0:
            end = data.rfind(b"\n")
            if end < 0:
                return data
            data, self._unparsed = data[:end], data[end:]
        head = data[:end]
        return _UPGRADE.sub(b"ignored", head) + data[end:] if _UPGRADE.search(head) else data

    def _allow(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _on_timeout(self) -> None:
        if self._is_answered:
            self.transport.close()
        else:
            # The middleware limits the request in progress; a pipelined one may wait for it.
            self._allow(HEAD_TIMEOUT)

    @property
    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, status: bytes, reason: str) -> None:
        body = json.dumps({"error": reason}).encode()
        self.transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%b" % (status, len(body), body)
        )
        self.transport.close()
