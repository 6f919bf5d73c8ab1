"""Run the HTTP server: an event loop under uvicorn, and predictor processes beside it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from plsc.errors import ServingError
from plsc.serving.settings import ServeSettings
from plsc.utils.lazy import SERVER_PACKAGES, require

for _package in ("uvicorn", "starlette", "httptools", "uvloop"):
    require(_package, SERVER_PACKAGES, purpose="plsc serve")

import uvicorn  # noqa: E402
import uvloop  # noqa: E402

from plsc.serving.app import Service  # noqa: E402
from plsc.serving.middleware import access_log  # noqa: E402
from plsc.serving.uvicorn_protocol import awaits_first_request, protocol_factory  # noqa: E402
from plsc.utils.hints import argument  # noqa: E402
from plsc.utils.logging import guard_standard_error, lossy  # noqa: E402
from plsc.utils.plural import counted  # noqa: E402

log = logging.getLogger("plsc")

_BACKLOG = 2048  # connections that the kernel holds until they are accepted
_KEEP_ALIVE = 75  # seconds for which an idle connection is kept
# Seconds that a client's first request may take on a connection that was accepted just before the socket closed. A
# client on a busy machine needs more than its network.
_FIRST_REQUEST_TIMEOUT = 2.0


def serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP.

    Raises:
        ServingError: the model or the gallery cannot be loaded, or the address cannot be listened on.
    """
    guard_standard_error()
    service = Service(settings)
    if settings.access_log:
        _show_access_log()
    with _listen(settings) as listener:
        host = listener.getsockname()[0]
        if not host.startswith("127.") and host != "::1" and settings.api_key is None:
            log.warning("listening on %s without an API key: whoever reaches this port may use it", host)
        log.info(
            "listening on port %d, loading %s in %s of %s",
            listener.getsockname()[1],
            settings.model,
            counted(settings.workers, "predictor process"),
            counted(settings.threads_per_worker, "thread"),
        )
        uvloop.run(_run(service, listener))


async def _run(service: Service, listener: socket.socket) -> None:
    try:
        await _serve_until_drained(service, listener)
    finally:
        await service.stop()
    log.info("shut down")


async def _serve_until_drained(service: Service, listener: socket.socket) -> None:
    """Answer requests until a signal arrives, then shut down without losing one.

    While the model is loaded, health checks are answered. At a signal, first every reply asks its connection to close.
    After the drain no connection is accepted, and the requests in progress are answered.
    """
    settings, loop = service.settings, asyncio.get_running_loop()
    server = uvicorn.Server(
        uvicorn.Config(
            service.app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            # The time for a body to arrive, and the time for its answer.
            timeout_graceful_shutdown=2 * int(settings.timeout) + 1,
        )
    )
    # Without sockets of its own: uvicorn would close them together with the connections.
    running = asyncio.create_task(server.serve(sockets=[]))
    await asyncio.sleep(0)  # uvicorn sets its signal handlers, which _signals then replaces
    connect = protocol_factory(server)
    with _signals() as signals:
        # A descriptor of its own, because the event loop closes the one it is given.
        accepting = await loop.create_server(connect, sock=listener.dup(), backlog=_BACKLOG)
        try:
            number = await _load(service, signals)
            if number is None:
                host, port = listener.getsockname()[:2]
                log.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)
                number = await signals.get()
                log.info("signal %d: draining for %g s, then shutting down", number, settings.drain)
                service.app.draining = True
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(signals.get(), settings.drain)  # a second signal ends the drain
            accepting.close()
            for connection in _accepted(listener):
                await loop.connect_accepted_socket(connect, connection)
            deadline = loop.time() + _FIRST_REQUEST_TIMEOUT
            await asyncio.sleep(0.2)  # a request that is on its way on a kept connection
            while awaits_first_request(server) and loop.time() < deadline:
                await asyncio.sleep(0.02)
        finally:
            accepting.close()
            server.should_exit = True
            await running


async def _load(service: Service, signals: asyncio.Queue[int]) -> int | None:
    """Start the predictors; returns the signal that arrived before they were ready, else None.

    Raises:
        ServingError: the model cannot be loaded.
    """
    service.app.loading = True
    loading, signal_arrived = asyncio.create_task(service.start()), asyncio.create_task(signals.get())
    await asyncio.wait({loading, signal_arrived}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        loading.cancel()
        await asyncio.wait({loading})
        number = signal_arrived.result()
        log.info("signal %d: shutting down before the model is loaded", number)
        return number
    signal_arrived.cancel()
    loading.result()
    service.app.loading = False
    return None


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Queue[int]]:
    """A queue of the SIGTERM, SIGINT and SIGHUP that arrive. Outside of the main thread none arrives.

    SIGHUP comes when a terminal is closed. Where it is ignored, as under `nohup`, it stays so.
    """
    loop, arrived = asyncio.get_running_loop(), asyncio.Queue[int]()
    handled = [signal.SIGTERM, signal.SIGINT] if threading.current_thread() is threading.main_thread() else []
    if handled and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handled.append(signal.SIGHUP)
    for number in handled:
        loop.add_signal_handler(number, arrived.put_nowait, number)
    try:
        yield arrived
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that the kernel accepted and nobody has taken yet; closing the socket would reset them."""
    listener.setblocking(False)
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            yield connection
    listener.close()


def _listen(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # Python adds the address to the text of the system, and gives the codes of an unknown host as negative numbers.
        reason, number = str(error.strerror or error).partition(" (while attempting")[0], error.errno or 0
        if number < 0 or number == errno.EADDRNOTAVAIL:
            remedy = f"give an address of this machine with {argument('host', of='plsc serve')}; 0.0.0.0 stands for all"
        elif number == errno.EADDRINUSE:
            remedy = f"choose another port with {argument('port', of='plsc serve')}, or end what uses it"
        else:
            remedy = f"choose another port with {argument('port', of='plsc serve')}"
        raise ServingError(f"cannot listen on {settings.host}, port {settings.port}: {reason}; {remedy}") from None


def _show_access_log() -> None:
    if not access_log.handlers:
        handler = logging.StreamHandler(lossy(sys.stdout))
        handler.setFormatter(logging.Formatter("%(message)s"))
        access_log.addHandler(handler)
        access_log.propagate = False
    access_log.setLevel(logging.INFO)
