"""What happens to every request before and after its handler: key, limits, errors, metrics and access log.

Plain ASGI.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plsc.serving.http_error import HTTPError
from plsc.serving.metrics import Metrics
from plsc.serving.protocols import gunzip
from plsc.serving.settings import ServeSettings
from plsc.utils.plural import counted

access_log = logging.getLogger("plsc.access")
log = logging.getLogger("plsc")

# Paths that need no API key, since health checks send none.
OPEN_PATHS = ("/healthz", "/readyz")


class RequestMiddleware:
    """Wraps the application.

    The middleware reads a request's body within the limits and passes it on as `scope["plsc.body"]`. An exception of
    the application becomes a JSON reply. While the server drains, every reply asks the client to close its connection.

    Args:
        app: the application.
        settings: limits and API key.
        metrics: counts requests.
        paths: paths of the application; in metrics all other paths count as 'other'.
        is_public: called with method, path and Accept header; whether this request needs no API key either.

    Attributes:
        loading: whether the predictors are not there yet. The server sets it; embeddings are refused with 503.
        draining: whether the server is shutting down. The server sets it.
        active_requests: number of requests that are not answered yet.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        *,
        metrics: Metrics,
        paths: Collection[str],
        is_public: Callable[[str, str, str], bool],
    ) -> None:
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths
        self._is_public = is_public
        self._inflight_bytes = 0
        self.loading, self.draining, self.active_requests = False, False, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, is_last=lambda: self.draining)
        self.active_requests += 1
        try:
            await self._answer(exchange)
        finally:
            self.active_requests -= 1
            self._inflight_bytes -= exchange.reserved
            self._record(exchange)

    async def _answer(self, exchange: _Exchange) -> None:
        scope = exchange.scope
        try:
            scope["app"] = self  # with this key the router raises HTTPException instead of replying in plain text
            self._check_key(scope["method"], scope["path"], exchange.headers)
            if scope["method"] == "POST":
                if self.loading:
                    raise HTTPError(503, "the model is being loaded; try again in 1 s", headers={"Retry-After": "1"})
                scope["plsc.body"] = await self._read_body(exchange)
            await self._app(scope, exchange.receive, exchange.send)
        except HTTPError as error:
            await exchange.refuse(error)
        except HTTPException as error:
            reason = f"{scope['method']} {scope['path'][:80]}: {error.detail}; GET / lists the paths and methods"
            await exchange.refuse(HTTPError(error.status_code, reason, headers=error.headers))
        except _ClientDisconnected:
            exchange.status = 499
        except Exception:
            log.exception("%s %s (request %s) failed", scope["method"], scope["path"], exchange.request_id)
            reason = f"the server failed; its log has the reason under request {exchange.request_id}"
            await exchange.refuse(HTTPError(500, reason))

    def _check_key(self, method: str, path: str, headers: Headers) -> None:
        key = self._settings.api_key
        if key is None or path in OPEN_PATHS or self._is_public(method, path, headers.get("accept", "")):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()):
            raise HTTPError(
                401,
                "no valid API key; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read_body(self, exchange: _Exchange) -> bytes:
        """The request's body, decompressed.

        Raises:
            HTTPError: 408 too slow, 413 too large, 415 unknown encoding, 503 too many bytes in flight.
        """
        limit, timeout = self._settings.max_body, self._settings.timeout
        encoding = exchange.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise HTTPError(415, f"Content-Encoding {encoding[:40]!r}: expected gzip or none")
        length = exchange.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > limit:
            raise HTTPError(413, f"the body has {length[:20]} bytes, expected {limit} at most")
        try:
            body = await asyncio.wait_for(self._receive_body(exchange, limit), timeout)
        except asyncio.TimeoutError:
            raise HTTPError(
                408, f"the body did not arrive within {timeout:g} s", headers={"Connection": "close"}
            ) from None
        if encoding == "gzip":
            body = await asyncio.get_running_loop().run_in_executor(None, gunzip, body, limit)
            self._reserve(exchange, len(body))
        return body

    async def _receive_body(self, exchange: _Exchange, limit: int) -> bytes:
        pieces, more = [], True
        while more:
            message = await exchange.receive()
            if message["type"] == "http.disconnect":
                raise _ClientDisconnected
            piece, more = message.get("body", b""), message.get("more_body", False)
            self._reserve(exchange, len(piece))
            exchange.received += len(piece)
            pieces.append(piece)
            if exchange.received > limit:
                raise HTTPError(413, f"the body has more than {limit} bytes, the limit")
        return b"".join(pieces)

    def _reserve(self, exchange: _Exchange, size: int) -> None:
        """Count bytes of a request as in flight until it is answered. A request that is alone is always accepted."""
        if self._inflight_bytes and self._inflight_bytes + size > self._settings.max_inflight_bytes:
            raise HTTPError(
                503,
                f"{counted(self._inflight_bytes, 'byte')} of requests are in flight, expected "
                f"{self._settings.max_inflight_bytes} at most; try again",
                headers={"Retry-After": "1"},
            )
        self._inflight_bytes += size
        exchange.reserved += size
        self._metrics.inflight_bytes.set(self._inflight_bytes)

    def _record(self, exchange: _Exchange) -> None:
        scope, seconds = exchange.scope, time.perf_counter() - exchange.begin
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(exchange.status)).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        self._metrics.inflight_bytes.set(self._inflight_bytes)
        if not self._settings.access_log:
            return
        client, _ = scope.get("client") or ("", 0)
        line = {
            "time": round(time.time(), 3),
            "id": exchange.request_id,
            "client": client,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": exchange.status,
            "ms": round(1000 * seconds, 2),
            "received": exchange.received,
            "sent": exchange.sent,
            "images": scope.get("plsc.images", 0),
        }
        access_log.info(json.dumps(line))


class _Exchange:
    """One request and its reply.

    Attributes:
        status: of the reply; 500 until it begins.
        received: bytes of the body as sent by the client.
        sent: bytes of the reply's body.
        reserved: bytes that the request has in flight.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, is_last: Callable[[], bool]) -> None:
        self.scope, self.receive, self._send, self._is_last = scope, receive, send, is_last
        self.headers = Headers(scope=scope)
        self.request_id = self.headers.get("x-request-id", "")[:64] or uuid.uuid4().hex[:16]
        self.begin, self.status, self.received, self.sent, self.reserved = time.perf_counter(), 500, 0, 0, 0

    async def send(self, message: Message) -> None:
        """Send a part of the reply, with the headers that every reply has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode("latin-1", "replace"))]
            message["headers"] = headers + [(b"connection", b"close")] if self._is_last() else headers
        self.sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, error: HTTPError) -> None:
        """Reply with an error."""
        await JSONResponse({"error": error.reason}, error.status, error.headers)(self.scope, self.receive, self.send)


class _ClientDisconnected(Exception):
    """The client closed its connection before the body was complete."""
