"""The embedded server's application: images and tensors in, embeddings out."""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from plsc.inference.gallery import Gallery
from plsc.inference.model_card import read_model_card
from plsc.serving import protocols
from plsc.serving.http_error import Refused
from plsc.serving.images import decode_images
from plsc.serving.metrics import Metrics
from plsc.serving.middleware import Gate
from plsc.serving.openapi import openapi, page
from plsc.serving.pool import PredictorPool
from plsc.serving.settings import ServeSettings, available_cores
from plsc.serving.worker import IMAGES, TENSORS

PROTO, JSON, NPY = "application/proto", "application/json", "application/x-npy"
_SMALL = 1 << 18  # bytes of a body for which a lone request does without a thread


class Service:
    """The handlers of one server and what they share.

    Args:
        settings: of the server.

    Attributes:
        app: the ASGI application.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.description = settings, read_model_card(settings.model)
        self.gallery: Gallery | None = None
        if settings.gallery is not None:
            self.gallery = Gallery.open(settings.gallery)
            self.gallery.check_model(self.description)
        self.metrics = Metrics()
        self.pool = PredictorPool(
            settings, self.description.fingerprint, self.metrics.on_batch, self.metrics.restarts.inc
        )
        self._threads = ThreadPoolExecutor(min(8, available_cores() + 2), "decode")
        routes = [
            Route("/embed", self.embed, methods=["POST"]),
            Route("/verify", self.verify, methods=["POST"]),
            Route("/identify", self.identify, methods=["POST"]),
            Route("/FaceClassifyService/inference", self.face, methods=["POST"]),
            Route("/GeneralModelService/inference", self.general, methods=["POST"]),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.openapi),
            Route("/", self.page),
        ]
        # A bare router, because the errors of its handlers are the gate's to answer.
        self.app = Gate(Router(routes), settings, self.metrics, tuple(route.path for route in routes))

    async def stop(self) -> None:
        """End the predictor processes and the threads."""
        await self.pool.stop()
        self._threads.shutdown()

    # What embeds

    async def embed(self, request: Request) -> Response:
        """Images to embeddings."""
        embeddings = await self._embed(request, await self._reader(request))
        if NPY in request.headers.get("accept", ""):
            return Response(_npy(embeddings), media_type=NPY)
        return _reply(request, {"embeddings": embeddings})

    async def verify(self, request: Request) -> Response:
        """Two images to their cosine."""
        read = await self._reader(request)

        def two() -> list[bytes]:
            images = read()
            if len(images) != 2:
                raise Refused(400, f"got {len(images)} images, expected two to compare")
            return images

        one, other = await self._embed(request, two)
        cosine = float(one @ other)
        threshold = self.settings.threshold
        same = None if threshold is None else cosine >= threshold
        return _reply(request, {"cosine": cosine, "same": same, "threshold": threshold})

    async def identify(self, request: Request) -> Response:
        """Images to the most similar of the gallery."""
        if self.gallery is None:
            raise Refused(404, "this server has no gallery; start it with --gallery FOLDER")
        count = protocols.parse_options(request.query_params.multi_items())
        embeddings = await self._embed(request, await self._reader(request))
        found = await self._in_thread(
            functools.partial(self.gallery.search, threshold=self.settings.threshold), embeddings, count
        )
        return _reply(
            request,
            {"results": [[match.as_dict() for match in row] for row in found], "threshold": self.settings.threshold},
        )

    async def face(self, request: Request) -> Response:
        """PLSC's own service of old: base64 images to embeddings."""
        embeddings = await self._embed(request, self._base64_reader(request, "base64_string"))
        return _reply(request, {"instance": [{"embedding": row} for row in embeddings]})

    async def general(self, request: Request) -> Response:
        """Paddle Serving's general model service: a tensor to what the model gives for it."""
        is_json = request.headers.get("content-type", "").lower().startswith(JSON)
        parse = protocols.parse_general_json if is_json else protocols.parse_general_proto
        asked = await self._work_on(request, parse, _body(request), self.description, self.pool.names)
        if len(asked.tensor) > self.settings.max_images:
            raise Refused(413, f"got {len(asked.tensor)} images, expected {self.settings.max_images} at most")
        request.scope["plsc.images"] = len(asked.tensor)
        found = await self.pool.run(TENSORS, asked.tensor)
        if is_json:
            return _compressed(request, protocols.general_reply_json(found, asked.log_id), JSON)
        return _compressed(request, protocols.general_reply_proto(found, asked.log_id), PROTO)

    # What tells

    async def healthz(self, request: Request) -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """It can answer: a predictor is ready, and it is not shutting down."""
        ready = self.pool.ready > 0 and not self.app.draining
        state = {"ready": ready, "workers": self.pool.ready, "draining": self.app.draining}
        return JSONResponse(state, 200 if ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        self.metrics.waiting.set(self.pool.waiting)
        self.metrics.ready.set(self.pool.ready)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi(self.settings, self.description))

    async def page(self, request: Request) -> Response:
        return HTMLResponse(page(openapi(self.settings, self.description)))

    # What they share

    async def _embed(self, request: Request, read: Callable[[], list[bytes]]) -> np.ndarray:
        """What `read` gives, to embeddings. Reading and decoding share one trip to a thread."""

        def decode() -> np.ndarray:
            images = read()
            request.scope["plsc.images"] = len(images)
            return decode_images(images, self.description, self.settings.max_pixels)

        return await self.pool.run(IMAGES, await self._work_on(request, decode))

    async def _reader(self, request: Request) -> Callable[[], list[bytes]]:
        """Reads the encoded images of a body: one as it is, JSON with base64, or a form with files."""
        body, kind = _body(request), request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == JSON:
            return self._base64_reader(request, "images")
        if kind == "multipart/form-data":
            files = await self._form_images(request, body)
            return lambda: files
        if kind.startswith("image/") or kind in ("", "application/octet-stream"):
            if not body:
                raise Refused(400, "the body is empty, expected an image")
            return lambda: [body]
        raise Refused(
            415,
            f"Content-Type {kind[:60]!r}: expected image/*, application/octet-stream, "
            f"multipart/form-data or application/json",
        )

    def _base64_reader(self, request: Request, key: str) -> Callable[[], list[bytes]]:
        return functools.partial(protocols.base64_images, _body(request), key, self.settings.max_images)

    async def _form_images(self, request: Request, body: bytes) -> list[bytes]:
        async def stream() -> AsyncIterator[bytes]:
            yield body
            yield b""

        # Held in memory already, so that a file on disk would save nothing.
        parser = MultiPartParser(request.headers, stream(), max_files=self.settings.max_images, max_fields=16)
        parser.spool_max_size = self.settings.max_body
        try:
            form = await parser.parse()
        except MultiPartException as error:
            status = 413 if error.message.startswith("Too many") else 400
            raise Refused(status, f"the form cannot be read: {error.message}") from None
        except Exception as error:
            # A damaged form makes the parsers below it stumble in many ways.
            raise Refused(400, f"the form cannot be read: {error!r:.200}") from None
        boundary = parse_options_header(request.headers["content-type"])[1][b"boundary"]
        if b"--" + boundary + b"--" not in body:
            # The parser takes what came before the cut for all there is.
            raise Refused(400, "the form is truncated: its closing boundary is missing; send it whole")
        files = [await value.read() for _, value in form.multi_items() if not isinstance(value, str)]
        await form.close()
        if not files:
            raise Refused(400, "the form has no file, expected an image or more")
        return files

    async def _work_on(self, request: Request, function: Callable, *arguments: Any) -> Any:
        """Read a body in a thread, so that other requests go on; at once where there are no others and the body is
        small, because going to a thread and back costs a lone client two wake-ups."""
        if self.app.under_way == 1 and len(_body(request)) <= _SMALL:
            return function(*arguments)
        return await self._in_thread(function, *arguments)

    async def _in_thread(self, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _body(request: Request) -> bytes:
    return request.scope["plsc.body"]


def _reply(request: Request, value: dict[str, Any]) -> Response:
    return _compressed(request, protocols.write_json(value), JSON)


def _compressed(request: Request, body: bytes, media_type: str) -> Response:
    """gzip where the client asks for nothing else: floats hardly shrink, and most clients name it without a need."""
    headers = {"Vary": "Accept-Encoding"}
    if request.headers.get("accept-encoding", "").strip().lower() == "gzip":
        body, headers["Content-Encoding"] = gzip.compress(body, compresslevel=1), "gzip"
    # As bytes of its own, because Paddle Serving's client compares the type to the letter.
    return Response(body, headers={**headers, "Content-Type": media_type})


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()
