"""The HTTP server's endpoints: images and tensors in, embeddings out."""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router

from plsc.errors import DataError
from plsc.inference.classifier import open_classifier
from plsc.inference.embedding import Embeddings, Pixels, check_finite, cosines, reaches
from plsc.inference.model_card import read_model_card
from plsc.serving import protocols
from plsc.serving.http_error import HTTPError
from plsc.serving.images import decode_images
from plsc.serving.live_gallery import LiveGallery
from plsc.serving.metrics import Metrics
from plsc.serving.middleware import RequestMiddleware
from plsc.serving.openapi import openapi, page
from plsc.serving.pool import PredictorPool
from plsc.serving.settings import ServeSettings, available_cores
from plsc.serving.trial_page import TrialPage, prefers_html
from plsc.serving.worker import FEATURES, IMAGES, TENSORS
from plsc.utils.hints import argument
from plsc.utils.plural import counted

PROTO, JSON, NPY = "application/proto", "application/json", "application/x-npy"
_CURL_DEFAULT = "application/x-www-form-urlencoded"
_SMALL_BODY = 1 << 18  # bytes; a smaller body of a lone request is parsed without a thread
_Result = TypeVar("_Result")


class Service:
    """The endpoints of one server, and the model card, gallery, predictors and metrics that they share.

    Args:
        settings: the server's.

    Attributes:
        card: the model's.
        pool: the predictor processes; the server starts them.
        routes: path and methods of each endpoint.
        app: the ASGI application.

    Raises:
        ServingError: the folder holds no exported model or no gallery, the gallery is of another model, or the
            classifier is damaged.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.card = settings, read_model_card(settings.model)
        self.classifier = None if self.card.classifier is None else open_classifier(self.card)
        self.gallery = None if settings.gallery is None else LiveGallery(settings.gallery, self.card)
        self._following: asyncio.Task[None] | None = None
        self.metrics = Metrics()
        self.pool = PredictorPool(
            settings,
            self.card.fingerprint,
            on_batch=self.metrics.on_batch,
            on_restart=self.metrics.worker_restarts.inc,
        )
        self._threads = ThreadPoolExecutor(min(8, available_cores() + 2), "decode")
        self.routes = [
            Route("/embed", self.embed, methods=["POST"]),
            Route("/verify", self.verify, methods=["POST"]),
            Route("/identify", self.identify, methods=["POST"]),
            Route("/classify", self.classify, methods=["POST"]),
            Route("/FaceClassifyService/inference", self.face, methods=["POST"]),
            Route("/GeneralModelService/inference", self.general, methods=["POST"]),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.openapi),
            Route("/", self.page),
        ]
        self._trial_page = TrialPage() if settings.page else None
        if self._trial_page is not None:
            self.routes += self._trial_page.routes
        # A bare router, because the middleware answers the errors of all endpoints.
        self.app = RequestMiddleware(
            Router(self.routes, redirect_slashes=False),
            settings,
            metrics=self.metrics,
            paths={route.path for route in self.routes},
            is_public=self._trial_page.is_asked_for if self._trial_page is not None else lambda *_: False,
        )

    async def start(self) -> None:
        """Start the predictor processes; returns when each has loaded the model. From then on the gallery is followed.

        Raises:
            ServingError: the model cannot be loaded.
        """
        await self.pool.start()
        if self.gallery is not None:
            self._following = asyncio.create_task(self.gallery.follow())

    async def stop(self) -> None:
        """End the predictor processes and the threads."""
        if self._following is not None:
            self._following.cancel()
        await self.pool.stop()
        self._threads.shutdown()

    # Embedding endpoints

    async def embed(self, request: Request) -> Response:
        """Images to embeddings."""
        embeddings = await self._embed(request, await self._image_reader(request))
        if NPY in request.headers.get("accept", ""):
            return Response(_npy(embeddings), media_type=NPY)
        return _reply(request, {"embeddings": embeddings})

    async def verify(self, request: Request) -> Response:
        """Two images to the cosine of their embeddings."""
        read = await self._image_reader(request)

        def read_two() -> list[bytes]:
            images = read()
            if len(images) != 2:
                raise HTTPError(400, f"got {counted(len(images), 'image')}, expected two to compare")
            return images

        one, other = await self._embed(request, read_two)
        cosine, threshold = float(cosines(one[None], other)[0]), self.settings.threshold
        same = None if threshold is None else reaches(cosine, threshold)
        return _reply(request, {"cosine": cosine, "same": same, "threshold": threshold})

    async def identify(self, request: Request) -> Response:
        """Each image to the most similar entries of the gallery."""
        if self.gallery is None:
            raise HTTPError(404, f"this server has no gallery; start it with {argument('gallery', of='plsc serve')}")
        count, threshold = protocols.parse_count(request.query_params.multi_items()), self.settings.threshold
        embeddings = await self._embed(request, await self._image_reader(request))
        search = functools.partial(self.gallery.current.search, embeddings, count, threshold=threshold)
        found = await self._in_thread(search)
        results = [[match.as_dict() for match in matches] for matches in found]
        return _reply(request, {"results": results, "threshold": threshold})

    async def classify(self, request: Request) -> Response:
        """Each image to the most probable classes of training."""
        if self.classifier is None:
            raise HTTPError(
                404, f"this model has no classifier; export it with {argument('classifier', True, of='plsc export')}"
            )
        count = protocols.parse_count(request.query_params.multi_items())
        kind = IMAGES if self.classifier.card.is_cosine else FEATURES
        features = await self._embed(request, await self._image_reader(request), kind)
        found = await self._in_thread(functools.partial(self.classifier.classify, features, count))
        results = [[each.as_dict() for each in row] for row in found]
        return _reply(request, {"results": results, "normalized_over": self.classifier.normalized_over})

    async def face(self, request: Request) -> Response:
        """The face service of PLSC 0.1: base64 images to embeddings."""
        embeddings = await self._embed(request, self._base64_reader(request, "base64_string"))
        return _reply(request, {"instance": [{"embedding": row} for row in embeddings]})

    async def general(self, request: Request) -> Response:
        """Paddle Serving's general model service: a tensor to the model's outputs."""
        is_json = request.headers.get("content-type", "").lower().startswith(JSON)
        parse = protocols.parse_general_json if is_json else protocols.parse_general_proto
        asked = await self._parse(request, functools.partial(parse, _body(request), self.card, names=self.pool.names))
        if len(asked.tensor) > self.settings.max_images:
            raise HTTPError(
                413, f"got {counted(len(asked.tensor), 'image')}, expected {self.settings.max_images} at most"
            )
        request.scope["plsc.images"] = len(asked.tensor)
        outputs = await self.pool.run(TENSORS, asked.tensor)
        if is_json:
            return _compressed(request, protocols.general_reply_json(outputs, asked.log_id), JSON)
        return _compressed(request, protocols.general_reply_proto(outputs, asked.log_id), PROTO)

    # State and documentation

    async def healthz(self, request: Request) -> Response:
        """Whether the process is running."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether the server can answer: a predictor is ready, and the server is not shutting down."""
        ready = self.pool.ready > 0 and not self.app.draining
        state = {"ready": ready, "workers": self.pool.ready, "draining": self.app.draining}
        return JSONResponse(state, 200 if ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        self.metrics.queue_rows.set(self.pool.queue_rows)
        self.metrics.workers_ready.set(self.pool.ready)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document."""
        return JSONResponse(openapi(self.settings, self.card))

    async def page(self, request: Request) -> Response:
        """A browser gets the page to try the model on, all others the OpenAPI document as a page."""
        if self._trial_page is not None and prefers_html(request.headers.get("accept", "")):
            reply = self._trial_page.entry()
        else:
            reply = HTMLResponse(page(openapi(self.settings, self.card)))
        reply.headers["Vary"] = "Accept"
        return reply

    # Bodies of requests

    async def _embed(self, request: Request, read: Callable[[], list[bytes]], kind: int = IMAGES) -> Embeddings:
        """Embed the images that `read` returns. Reading and decoding share one trip to a thread.

        Args:
            request: the request.
            read: returns encoded images.
            kind: IMAGES for embeddings of unit length, FEATURES for the network's outputs.
        """

        def decode() -> Pixels:
            images = read()
            request.scope["plsc.images"] = len(images)
            return decode_images(
                images,
                self.card,
                max_pixels=self.settings.max_pixels,
                on_damage=lambda _: self.metrics.damaged_images.inc(),
            )

        embeddings = await self.pool.run(kind, await self._parse(request, decode))
        try:
            check_finite(embeddings)
        except DataError as error:
            raise HTTPError(500, str(error)) from None
        return embeddings

    async def _image_reader(self, request: Request) -> Callable[[], list[bytes]]:
        """A function that returns the encoded images of a body: the body itself, base64 in JSON, or files of a form."""
        body, kind = _body(request), request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == JSON:
            return self._base64_reader(request, "images")
        if kind == "multipart/form-data":
            files = await self._form_files(request, body)
            return lambda: files
        if kind.startswith("image/") or kind in ("", "application/octet-stream"):
            if not body:
                raise HTTPError(400, "the body is empty, expected an image")
            return lambda: [body]
        hint = "; curl sends this where no -H 'Content-Type: ...' is given" if kind == _CURL_DEFAULT else ""
        raise HTTPError(
            415,
            f"Content-Type {kind[:60]!r}: expected image/*, application/octet-stream, "
            f"multipart/form-data or application/json{hint}",
        )

    def _base64_reader(self, request: Request, key: str) -> Callable[[], list[bytes]]:
        return functools.partial(protocols.base64_images, _body(request), key, limit=self.settings.max_images)

    async def _form_files(self, request: Request, body: bytes) -> list[bytes]:
        async def stream() -> AsyncGenerator[bytes, None]:
            yield body
            yield b""

        parser = MultiPartParser(request.headers, stream(), max_files=self.settings.max_images, max_fields=16)
        # Files stay in memory, where the body is already.
        parser.spool_max_size = self.settings.max_body
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise HTTPError(
                    413, f"the form has more images than the {self.settings.max_images} that one request may have"
                ) from None
            status = 413 if error.message.startswith("Too many") else 400
            raise HTTPError(status, f"the form cannot be read: {error.message}") from None
        except Exception as error:
            # The parsers below it raise many classes of errors at a damaged form.
            raise HTTPError(400, f"the form cannot be read: {error!r:.200}") from None
        boundary = parse_options_header(request.headers["content-type"])[1][b"boundary"]
        if b"--" + boundary + b"--" not in body:
            # The parser accepts a form that was cut off.
            raise HTTPError(400, "the form is truncated: its closing boundary is missing; send it whole")
        files = [await value.read() for _, value in form.multi_items() if not isinstance(value, str)]
        texts = [name for name, value in form.multi_items() if isinstance(value, str)]
        await form.close()
        if not files:
            found = f": {texts[0][:60]!r} is a text; a file is sent by curl -F {texts[0][:60]}=@FILE" if texts else ""
            raise HTTPError(400, f"the form has no file, expected an image or more{found}")
        return files

    async def _parse(self, request: Request, function: Callable[[], _Result]) -> _Result:
        """Call a function that reads a body in a thread, so that the event loop goes on with other requests.

        A small body of a lone request is read in the event loop: a thread would add two context switches.
        """
        if self.app.active_requests == 1 and len(_body(request)) <= _SMALL_BODY:
            return function()
        return await self._in_thread(function)

    async def _in_thread(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _body(request: Request) -> bytes:
    body: bytes = request.scope["plsc.body"]
    return body


def _reply(request: Request, value: dict[str, Any]) -> Response:
    return _compressed(request, protocols.write_json(value), JSON)


def _compressed(request: Request, body: bytes, media_type: str) -> Response:
    """A reply, compressed if the client accepts gzip alone: floats hardly shrink, and most clients list it by habit."""
    headers = {"Vary": "Accept-Encoding"}
    if request.headers.get("accept-encoding", "").strip().lower() == "gzip":
        body, headers["Content-Encoding"] = gzip.compress(body, compresslevel=1), "gzip"
    # Not by Starlette's `media_type`, which may add a charset: Paddle Serving's client compares the whole value.
    return Response(body, headers={**headers, "Content-Type": media_type})


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()
