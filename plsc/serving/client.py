"""A client of the embedded server: keep-alive, retries, several servers, batches."""

from __future__ import annotations

import io
import json
import queue
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from plsc.data.records import read_image
from plsc.errors import DataError, ServingError
from plsc.utils.lazy import require

# Statuses after which another try, or another server, may answer.
_TRY_AGAIN = (429, 502, 503, 504)


@dataclass(frozen=True)
class Verdict:
    """What /verify says of two images.

    Attributes:
        cosine: of their embeddings.
        same: whether it reaches the server's threshold; None where the server has none.
        threshold: the server's.
    """

    cosine: float
    same: bool | None
    threshold: float | None


class Client:
    """Embeds images by one embedded server or several. For several threads at once.

    A request that fails is tried again, with growing pauses or after the server's Retry-After, and on the next
    server: embedding has no side effect, so that a repetition does no harm.

    Args:
        servers: 'http://127.0.0.1:8866', 'host:port', or a list of them.
        api_key: sent where the servers want one.
        timeout: seconds for an answer.
        retries: further attempts of a failed request.
        connections: requests at a time to each server.

    Raises:
        MissingDependencyError: urllib3 is not installed.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "http://127.0.0.1:8866",
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        connections: int = 2,
    ) -> None:
        self._urllib3 = require("urllib3", "'urllib3>=2'", "plsc.serving.Client")
        self.servers = [_url(server) for server in ([servers] if isinstance(servers, str) else servers)]
        if not self.servers or connections < 1 or retries < 0:
            raise ServingError(
                f"client: got {len(self.servers)} servers, {connections} connections and {retries} "
                f"retries; expected one server or more, one connection or more, and 0 retries or more"
            )
        self._connections, self._retries = connections, retries
        # Without this a reply is gzip where the library asks for it alone, and floats hardly shrink.
        headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = self._urllib3.PoolManager(
            num_pools=len(self.servers) + 1, maxsize=connections, headers=headers, timeout=timeout, block=False
        )

    def embed(self, images: Any | Iterable[Any], batch_size: int = 16, progress: bool = False) -> np.ndarray:
        """Embed images: [n, D] float32 of unit length, in order.

        Args:
            images: one or many of: a path, encoded bytes, or a [H, W, 3] uint8 RGB array.
            batch_size: images of a request. Requests go to all servers at a time, two to each.
            progress: show a bar.

        Raises:
            DataError: an image cannot be read here.
            ServingError: the batch size is below 1, no server answers, or one refuses; the message has its reason.
        """
        if isinstance(images, (str, Path, bytes)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        images = list(images)
        if batch_size < 1:
            raise ServingError(f"client: got batch_size {batch_size}, expected 1 or more")
        starts = list(range(0, len(images), batch_size))
        results: list[Any] = [None] * len(starts)
        waiting: queue.SimpleQueue = queue.SimpleQueue()
        for number in range(len(starts)):
            waiting.put(number)
        failures: list[Exception] = []
        with tqdm(total=len(images), unit="image", disable=not progress) as bar:

            def work(first: int) -> None:
                while not failures:
                    try:
                        number = waiting.get_nowait()
                    except queue.Empty:
                        return
                    try:
                        chunk = images[starts[number] : starts[number] + batch_size]
                        results[number] = self._embed(starts[number], chunk, first)
                        bar.update(len(chunk))
                    except Exception as error:
                        failures.append(error)

            ways = min(len(starts), len(self.servers) * self._connections)
            threads = [threading.Thread(target=work, args=(way,), daemon=True) for way in range(1, ways)]
            for thread in threads:
                thread.start()
            work(0)
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        return np.concatenate(results) if results else np.zeros([0, 0], np.float32)

    def verify(self, one: Any, other: Any) -> Verdict:
        """Compare two images."""
        reply = self._post("/verify", *self._form([one, other]))
        return Verdict(**_json(reply))

    def identify(self, images: Any | Iterable[Any], count: int = 5) -> list[list[dict[str, Any]]]:
        """For each image the most similar entries of the server's gallery: 'name', 'cosine', 'same'."""
        single = isinstance(images, (str, Path, bytes)) or (isinstance(images, np.ndarray) and images.ndim == 3)
        reply = self._post(f"/identify?k={count}", *self._form([images] if single else list(images)))
        return _json(reply)["results"]

    def ready(self) -> dict[str, bool]:
        """Which servers can answer."""
        found = {}
        for server in self.servers:
            try:
                found[server] = self._http.request("GET", f"{server}/readyz", retries=False, timeout=5).status == 200
            except self._urllib3.exceptions.HTTPError:
                found[server] = False
        return found

    def close(self) -> None:
        """Close all connections."""
        self._http.clear()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.close()

    def _embed(self, start: int, images: list[Any], first: int) -> np.ndarray:
        if len(images) == 1:
            body, kind = _encoded(start, images[0]), "application/octet-stream"
        else:
            body, kind = self._form(images, start)
        reply = self._post("/embed", body, kind, {"Accept": "application/x-npy"}, first, start)
        try:
            return np.load(io.BytesIO(reply), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ServingError(f"the server's reply is no array: {error}; is it a PLSC server?") from None

    def _form(self, images: list[Any], start: int = 0) -> tuple[bytes, str]:
        fields = [
            ("image", (f"{start + index}", _encoded(start + index, image), "application/octet-stream"))
            for index, image in enumerate(images)
        ]
        return self._urllib3.filepost.encode_multipart_formdata(fields)

    def _post(
        self, path: str, body: bytes, kind: str, headers: dict[str, str] | None = None, first: int = 0, start: int = 0
    ) -> bytes:
        """Send to the servers in turn, from the `first` on. A reason that names an image by its place in the body names
        it by its place in the sequence, of which the body begins at `start`."""
        retry = self._urllib3.Retry(
            total=0 if len(self.servers) > 1 else self._retries,
            status_forcelist=_TRY_AGAIN,
            allowed_methods=None,
            backoff_factor=0.2,
            raise_on_status=False,
            respect_retry_after_header=True,
        )
        reasons, ready_at = [], dict.fromkeys(self.servers, 0.0)
        # With several servers the next one is the better retry; the last round waits as it would for one.
        attempts = self._retries + 1 if len(self.servers) > 1 else 1
        for attempt in range(attempts):
            server = self.servers[(first + attempt) % len(self.servers)]
            if attempt >= len(self.servers):
                pause = 0.2 * 2 ** min(attempt - len(self.servers), 5)
                time.sleep(max(pause, ready_at[server] - time.monotonic()))
            try:
                reply = self._http.request(
                    "POST",
                    server + path,
                    body=body,
                    retries=retry,
                    headers={**self._http.headers, **(headers or {}), "Content-Type": kind},
                )
            except self._urllib3.exceptions.HTTPError as error:
                reasons.append(f"{server}: {error}")
                continue
            if reply.status == 200:
                return reply.data
            reason = re.sub(r"^image (\d+)", lambda found: f"image {start + int(found[1])}", _reason(reply.data))
            reasons.append(f"{server}: {reply.status}: {reason}")
            if reply.status not in _TRY_AGAIN:
                break
            ready_at[server] = time.monotonic() + (retry.get_retry_after(reply) or 0)
        raise ServingError(f"{path}: {'; '.join(dict.fromkeys(reasons))}")


def _url(server: str) -> str:
    return (server if "://" in server else f"http://{server}").rstrip("/")


def _encoded(index: int, image: Any) -> bytes:
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(
                f"image {index}: got an array {list(image.shape)} of {image.dtype}, expected [H, W, 3] of uint8"
            )
        # Uncompressed: the network of a service is faster than any compressor.
        return cv2.imencode(".bmp", image[..., ::-1])[1].tobytes()
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise DataError(f"image {index}: got {type(image).__name__}, expected a path, encoded bytes or an array")
    return bytes(image)


def _json(data: bytes) -> dict[str, Any]:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ServingError(f"the server's reply is no JSON: {error}; is it a PLSC server?") from None


def _reason(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return repr(data[:200])
