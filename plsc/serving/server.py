"""Run the embedded server: one event loop, uvicorn under it, predictor processes beside it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import sys
from typing import Any

from plsc.errors import ServingError
from plsc.serving.settings import ServeSettings
from plsc.utils.lazy import SERVER_PACKAGES, require

uvicorn = require("uvicorn", SERVER_PACKAGES, "plsc serve")
require("starlette", SERVER_PACKAGES, "plsc serve")
require("httptools", SERVER_PACKAGES, "plsc serve")

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: E402

from plsc.serving.app import Service  # noqa: E402
from plsc.serving.middleware import Gate, access_log  # noqa: E402

try:
    import uvloop
except ModuleNotFoundError:  # there is none for Windows
    uvloop = None

log = logging.getLogger("plsc")

MAX_HEAD = 64 * 1024  # bytes of a request's line and headers
HEAD_TIMEOUT = 10.0  # seconds in which they must have come
# How long what is under way on an accepted connection may take to arrive, once no connection is taken any more.
_LATECOMERS = 0.2


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with bounds on the size of a request's head and on the time of head and body, which uvicorn does not
    set. Errors are JSON, as everywhere."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._head_size: int | None = 0
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self._end)

    def data_received(self, data: bytes) -> None:
        if self._head_size is not None:
            data = _without_upgrade(data)
            self._head_size += len(data)
        before = self._head_size
        super().data_received(data)
        if before is not None and self._head_size is not None and self._head_size > MAX_HEAD:
            self._refuse(b"431 Request Header Fields Too Large", f"the head has more than {MAX_HEAD} bytes")
        elif self._timer.cancelled() and self._is_answered:
            # uvicorn waits no more once bytes have come, if only a blank line or the body of a refused request.
            self._allow(self.config.timeout_keep_alive)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._allow(HEAD_TIMEOUT)

    def on_headers_complete(self) -> None:
        self._head_size = None
        # The gate answers a slow body before; this is for the one of a request that was refused by its head.
        self._allow(self.config.timeout_graceful_shutdown + HEAD_TIMEOUT)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_size = 0
        self._timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", msg)

    def _allow(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        if self._is_answered:
            self.transport.close()
        else:  # the gate bounds what is under way; a later request may wait for that
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


_UPGRADE = re.compile(rb"(?i)(?<=\n)upgrade(?=[ \t]*:)")


def _without_upgrade(data: bytes) -> bytes:
    """A head that asks for no other protocol: there is none, and the parser would take the body for one."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return _UPGRADE.sub(b"ignored", head) + data[len(head) :] if _UPGRADE.search(head) else data


class _DrainingServer(uvicorn.Server):
    """Shuts down without losing a request: first asks clients to leave, then takes no connection, then ends."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, gate: Gate, drain: float) -> None:
        super().__init__(config)
        self._listener, self._gate, self._drain = listener, gate, drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        host, port = self._listener.getsockname()[:2]
        log.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._gate.draining:
            # Asked for a second time.
            self.should_exit = True
            return
        log.info("signal %d: draining for %g s, then shutting down", sig, self._drain)
        self._gate.draining = True
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain, setattr, self, "should_exit", True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._take_last_connections()
        await asyncio.sleep(_LATECOMERS)
        end = self._loop.time() + self.config.timeout_graceful_shutdown
        while self.server_state.connections and self._loop.time() < end:
            for connection in list(self.server_state.connections):
                connection.shutdown()  # at once where idle, else after its reply
            await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _take_last_connections(self) -> None:
        """Connections that the kernel took before the socket closed are answered, not reset."""
        self._listener.setblocking(False)
        taken = []
        try:
            while True:
                taken.append(self._listener.accept()[0])
        except OSError:
            self._listener.close()
        for connection in taken:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(
                lambda: LimitedProtocol(
                    config=self.config, server_state=self.server_state, app_state={}, _loop=self._loop
                ),
                connection,
            )


def serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ServingError: the model or the gallery cannot be loaded, or the address cannot be listened on.
    """
    service = Service(settings)
    if settings.access_log:
        _show_access_log()
    with _listen(settings) as listener:
        host = listener.getsockname()[0]
        if not host.startswith("127.") and host != "::1" and settings.api_key is None:
            log.warning("listening on %s without an API key: whoever reaches this port may use it", host)
        log.info(
            "loading %s in %d predictor process(es) of %d thread(s)",
            settings.model,
            settings.workers,
            settings.threads_per_worker,
        )
        run = uvloop.run if uvloop is not None else asyncio.run
        run(_run(service, listener))


async def _run(service: Service, listener: socket.socket) -> None:
    settings = service.settings
    config = uvicorn.Config(
        service.app,
        http=LimitedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        backlog=2048,
        # A body may take its time, and then its answer.
        timeout_graceful_shutdown=2 * int(settings.timeout) + 1,
    )
    try:
        await service.pool.start()
        # Its own descriptor of the socket, since the event loop closes the one it is given.
        await _DrainingServer(config, listener, service.app, settings.drain).serve(sockets=[listener.dup()])
    finally:
        await service.stop()
    log.info("shut down")


def _listen(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ServingError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}; choose "
            f"another --port, or end what uses it"
        ) from None


def _show_access_log() -> None:
    if not access_log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        access_log.addHandler(handler)
        access_log.propagate = False
    access_log.setLevel(logging.INFO)
