"""What every request passes: the API key, the limits, the metrics and the access log. Plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from plsc.serving.http_error import Refused
from plsc.serving.metrics import Metrics
from plsc.serving.protocols import gunzip
from plsc.serving.settings import ServeSettings

access_log = logging.getLogger("plsc.access")
log = logging.getLogger("plsc")

OPEN_PATHS = ("/healthz", "/readyz")


class Gate:
    """Wraps the application.

    A request's body is read here, within its limits, and handed on as `scope["plsc.body"]`. While the server drains,
    every reply asks its connection to close, so that clients turn elsewhere before nothing is taken any more.

    Args:
        app: the application.
        settings: the limits and the key.
        metrics: what is counted.
        paths: the known paths; all others count as one.

    Attributes:
        draining: set at shutdown.
        under_way: requests that are not answered yet.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], settings: ServeSettings, metrics: Metrics, paths: tuple
    ) -> None:
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths
        self._held = 0
        self.draining, self.under_way = False, 0

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, sent, body = time.perf_counter(), 500, 0, _Body()
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")[:64] or uuid.uuid4().hex[:16]

        async def watched_send(message: dict[str, Any]) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
                extra += [(b"connection", b"close")] if self.draining else []
                message["headers"] = [*message["headers"], *extra]
            sent += len(message.get("body", b""))
            await send(message)

        self.under_way += 1
        try:
            scope["app"] = self  # has the router raise what it does not find
            self._check_key(scope["path"], headers)
            if scope["method"] == "POST":
                scope["plsc.body"] = await self._read(headers, receive, body)
            await self._app(scope, receive, watched_send)
        except Refused as refused:
            await _refuse(refused, scope, receive, watched_send)
        except HTTPException as error:
            reason = f"{scope['method']} {scope['path'][:80]}: {error.detail}; GET / shows what there is"
            await _refuse(Refused(error.status_code, reason, error.headers), scope, receive, watched_send)
        except _Gone:
            status = 499
        except Exception:
            log.exception("%s %s (request %s) failed", scope["method"], scope["path"], request_id)
            reply = Refused(500, f"the server failed; its log has the reason under request {request_id}")
            await _refuse(reply, scope, receive, watched_send)
        finally:
            self.under_way -= 1
            self._held -= body.held
            self._tell(scope, status, sent, body.received, time.perf_counter() - begin, request_id)

    def _check_key(self, path: str, headers: Headers) -> None:
        key = self._settings.api_key
        if key is None or path in OPEN_PATHS:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()):
            raise Refused(
                401,
                "no valid API key; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, headers: Headers, receive: Callable, body: _Body) -> bytes:
        """The body, unpacked where it is gzip.

        Raises:
            Refused: 408 too slow, 413 too large, 415 another encoding, 503 too much is held already.
        """
        limit, encoding = self._settings.max_body, headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise Refused(415, f"Content-Encoding {encoding[:40]!r}: expected gzip or none")
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > limit:
            raise Refused(413, f"the body has {length[:20]} bytes, {limit} at most are taken")
        pieces = []

        async def read() -> None:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                piece, more = message.get("body", b""), message.get("more_body", False)
                self._hold(body, len(piece))
                body.received += len(piece)
                pieces.append(piece)
                if body.received > limit:
                    raise Refused(413, f"the body has more than {limit} bytes, the most that is taken")

        try:
            await asyncio.wait_for(read(), self._settings.timeout)
        except asyncio.TimeoutError:
            raise Refused(
                408, f"the body did not come within {self._settings.timeout:g} s", {"Connection": "close"}
            ) from None
        whole = b"".join(pieces)
        if encoding == "gzip":
            whole = await asyncio.get_running_loop().run_in_executor(None, gunzip, whole, limit)
            self._hold(body, len(whole))
        return whole

    def _hold(self, body: _Body, size: int) -> None:
        if self._held and self._held + size > self._settings.max_held:
            raise Refused(503, f"{self._held} bytes of requests are held already; try again", {"Retry-After": "1"})
        self._held += size
        body.held += size
        self._metrics.held.set(self._held)

    def _tell(
        self, scope: dict[str, Any], status: int, sent: int, received: int, seconds: float, request_id: str
    ) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        self._metrics.held.set(self._held)
        if self._settings.access_log:
            client = scope.get("client") or ("", 0)
            access_log.info(
                json.dumps(
                    {
                        "time": round(time.time(), 3),
                        "id": request_id,
                        "client": client[0],
                        "method": scope["method"],
                        "path": scope["path"][:200],
                        "status": status,
                        "ms": round(1000 * seconds, 2),
                        "received": received,
                        "sent": sent,
                        "images": scope.get("plsc.images", 0),
                    }
                )
            )


class _Body:
    """What one request holds, to be given back when it ends."""

    def __init__(self) -> None:
        self.held, self.received = 0, 0


class _Gone(Exception):
    """The client has left."""


async def _refuse(refused: Refused, scope: Any, receive: Callable, send: Callable) -> None:
    await JSONResponse({"error": refused.reason}, refused.status, refused.headers)(scope, receive, send)
