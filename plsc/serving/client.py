"""The client of the HTTP server: kept connections, retries, several servers, batches."""

from __future__ import annotations

import functools
import io
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from plsc.data.image_input import each_image, named_error, take_image
from plsc.data.images import encode
from plsc.errors import DataError, ServingError
from plsc.inference.embedding import Embeddings
from plsc.utils.lazy import require
from plsc.utils.logging import progress_bar
from plsc.utils.numbers import as_count
from plsc.utils.plural import counted

# Statuses after which another attempt, or another server, may succeed.
_TRY_AGAIN = (429, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The server's verdict on two images.

    Attributes:
        cosine: cosine of their embeddings, -1 to 1.
        same: whether the cosine reaches the threshold; None if the server has no threshold.
        threshold: the server's threshold; None if it has none.
    """

    cosine: float
    same: bool | None
    threshold: float | None


class Client:
    """Sends images to one HTTP server or several. A client may be used by several threads and by forked processes,
    and pickled, its API key included.

    A request that fails is sent again: after growing pauses or the server's Retry-After, and, with several servers, to
    the next one. A repetition is harmless, because the server keeps nothing of a request.

    Args:
        servers: one address, 'http://127.0.0.1:8866' or 'host:port', or several.
        api_key: the servers' API key, if they require one.
        timeout: seconds for an answer.
        retries: further attempts of a failed request, 0 or more.
        connections: requests in progress at one time to each server, 1 or more.

    Attributes:
        servers: their addresses.

    Raises:
        MissingDependencyError: urllib3 is not installed.
        ServingError: no server, an address that is none, or a number out of its range.

    Example:
        >>> with Client(["http://a:8866", "http://b:8866"], api_key="secret") as client:
        ...     embeddings = client.embed(["ann.jpg", "bob.jpg"])  # [2, D]
        ...     verdict = client.verify("ann.jpg", "bob.jpg")
        >>> verdict.cosine, verdict.same
        (0.12, False)
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "http://127.0.0.1:8866",
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        connections: int = 2,
    ) -> None:
        self._urllib3 = require("urllib3", "'urllib3>=2'", purpose="plsc.serving.Client")
        self.servers = _urls(servers)
        if not self.servers or connections < 1 or retries < 0:
            raise ServingError(
                f"client: got {counted(len(self.servers), 'server')}, {counted(connections, 'connection')} and "
                f"{counted(retries, 'retry')}; expected one server or more, one connection or more, and 0 retries or "
                "more"
            )
        self._connections, self._retries, self._timeout = connections, retries, timeout
        self._api_key = api_key
        # urllib3 accepts gzip by default. The server would compress for it, although floats hardly shrink.
        headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._connect: Callable[[], Any] = functools.partial(
            self._urllib3.PoolManager,
            num_pools=len(self.servers) + 1,
            maxsize=connections,
            headers=headers,
            timeout=timeout,
            block=False,
        )
        self._pools = {os.getpid(): self._connect()}

    def embed(self, images: Any | Iterable[Any], batch_size: int = 16, *, progress: bool = False) -> Embeddings:
        """Embed images: [n, D] float32 of unit length, in the order of the images; [0, 0] without images.

        Args:
            images: one image or several, each of a kind that `plsc.data.image_input.take_image` takes.
            batch_size: images per request, 1 or more. Requests go to all servers at one time, `connections` to each.
            progress: show a progress bar on a terminal.

        Raises:
            DataError: an image cannot be read here.
            ServingError: the batch size is below 1, no server answers, or one refuses; the message has its reason.
        """
        size = as_count(batch_size)
        if size is None:
            raise ServingError(f"client: got batch_size {batch_size!r}, expected 1 or more, as a whole number")
        images = list(each_image(images))
        starts = list(range(0, len(images), size))
        results: list[Embeddings] = [np.zeros([0, 0], np.float32)] * len(starts)
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(starts)):
            waiting.put(number)
        failures, one_at_a_time = list[Exception](), threading.Lock()
        shown = progress_bar if progress else functools.partial(tqdm, disable=True)
        with shown(total=len(images), unit="image") as bar:

            def work(first: int) -> None:
                while not failures:
                    try:
                        number = waiting.get_nowait()
                    except queue.Empty:
                        return
                    try:
                        chunk = images[starts[number] : starts[number] + size]
                        results[number] = self._embed(starts[number], chunk, first)
                        with one_at_a_time:
                            bar.update(len(chunk))
                    except Exception as error:
                        failures.append(error)

            count = min(len(starts), len(self.servers) * self._connections)
            threads = [threading.Thread(target=work, args=(first,), daemon=True) for first in range(1, count)]
            for thread in threads:
                thread.start()
            work(0)
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        return np.concatenate(results) if results else np.zeros([0, 0], np.float32)

    def verify(self, one: Any, other: Any) -> Verdict:
        """Compare two images, each as for `embed`.

        Raises:
            DataError: an image cannot be read here.
            ServingError: no server answers, or one refuses; the message has its reason.
        """
        return Verdict(**_json(self._post("/verify", *self._form([one, other]))))

    def identify(self, images: Any | Iterable[Any], count: int = 5) -> list[list[dict[str, Any]]]:
        """For each image the most similar entries of the server's gallery, as dicts of 'name', 'cosine' and 'same'.

        Args:
            images: as for `embed`.
            count: entries per image, 1 to 100.

        Raises:
            DataError: an image cannot be read here.
            ServingError: the server has no gallery, no server answers, or one refuses; the message has its reason.
        """
        reply = _json(self._post(f"/identify?k={count}", *self._form(list(each_image(images)))))
        results: list[list[dict[str, Any]]] = reply["results"]
        return results

    def classify(self, images: Any | Iterable[Any], top: int = 5) -> list[list[dict[str, Any]]]:
        """For each image the most probable classes, as dicts of 'name', 'number', 'probability' and 'score'.

        Args:
            images: as for `embed`.
            top: classes per image, 1 to 100.

        Raises:
            DataError: an image cannot be read here.
            ServingError: the model was exported without a classifier, no server answers, or one refuses; the message
                has its reason.
        """
        reply = _json(self._post(f"/classify?k={top}", *self._form(list(each_image(images)))))
        results: list[list[dict[str, Any]]] = reply["results"]
        return results

    def ready(self) -> dict[str, bool]:
        """Whether each server can answer, by its address."""
        found = {}
        for server in self.servers:
            try:
                found[server] = self._http.request("GET", f"{server}/readyz", retries=False, timeout=5).status == 200
            except self._urllib3.exceptions.HTTPError:
                found[server] = False
        return found

    def close(self) -> None:
        """Close all connections of this process."""
        self._http.clear()

    @property
    def _http(self) -> Any:
        """The connections of this process. A forked process must not use its parent's: two would read one reply.

        The parent's pool is kept, because at the time of the fork another thread may have held its locks.
        """
        found = self._pools.get(os.getpid())
        return self._pools.setdefault(os.getpid(), self._connect()) if found is None else found

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Client, timeout=self._timeout, retries=self._retries, connections=self._connections), (
            self.servers,
            self._api_key,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.close()

    def _embed(self, start: int, images: list[Any], first: int) -> Embeddings:
        """Embed the images from place `start` of the caller's sequence on by one request, to the `first` server."""
        if len(images) == 1:
            body, kind = _encoded(start, images[0]), "application/octet-stream"
        else:
            body, kind = self._form(images, start)
        headers = {"Accept": "application/x-npy"}
        reply = self._post("/embed", body, kind, headers=headers, first=first, start=start)
        try:
            embeddings: Embeddings = np.load(io.BytesIO(reply), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ServingError(f"the server's reply is no array: {error}; is it a PLSC server?") from None
        return embeddings

    def _form(self, images: list[Any], start: int = 0) -> tuple[bytes, str]:
        """A body of several images, and its Content-Type."""
        fields = [
            ("image", (f"{start + index}", _encoded(start + index, image), "application/octet-stream"))
            for index, image in enumerate(images)
        ]
        body, kind = self._urllib3.filepost.encode_multipart_formdata(fields)
        return body, kind

    def _post(
        self,
        path: str,
        body: bytes,
        kind: str,
        *,
        headers: dict[str, str] | None = None,
        first: int = 0,
        start: int = 0,
    ) -> bytes:
        """Send a request to the servers in turn, from the `first` on, until one answers; returns the reply's body.

        A server's reason names an image by its place in the body. The error names it by its place in the caller's
        sequence, of which the body begins at `start`.
        """
        # With several servers the next one is the better retry.
        is_single = len(self.servers) == 1
        retry = self._urllib3.Retry(
            total=self._retries if is_single else 0,
            status_forcelist=_TRY_AGAIN,
            allowed_methods=None,
            backoff_factor=0.2,
            raise_on_status=False,
            respect_retry_after_header=True,
        )
        reasons, ready_at = [], dict.fromkeys(self.servers, 0.0)
        for attempt in range(1 if is_single else self._retries + 1):
            server = self.servers[(first + attempt) % len(self.servers)]
            if attempt >= len(self.servers):
                # Each server has failed once.
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
                reasons.append(f"{server}: {self._explain(error)}")
                continue
            if reply.status == 200:
                data: bytes = reply.data
                return data
            reason = re.sub(r"^image (\d+)", lambda found: f"image {start + int(found[1])}", _reason(reply.data))
            reasons.append(f"{server}: {reply.status}: {reason}")
            if reply.status not in _TRY_AGAIN:
                break
            ready_at[server] = time.monotonic() + (retry.get_retry_after(reply) or 0)
        raise ServingError(f"{path}: {'; '.join(dict.fromkeys(reasons))}")

    def _explain(self, error: Exception) -> str:
        """What keeps a server from being reached, without the names of urllib3's objects, and what to do."""
        errors, cause = self._urllib3.exceptions, getattr(error, "reason", None) or error
        if isinstance(cause, errors.SSLError):
            return f"no connection by https: {cause}; plsc serve speaks http, unless a proxy is before it"
        if isinstance(cause, errors.NameResolutionError):
            return "there is no such host; correct the address"
        if isinstance(cause, errors.NewConnectionError):
            system = cause.__cause__ or cause.__context__
            reason = getattr(system, "strerror", None) or cause
            return f"no connection: {reason}; start the server, or correct the address"
        if isinstance(cause, errors.TimeoutError):
            return f"no answer within {self._timeout} s; give a longer timeout, or fewer images at a time"
        return str(cause)


def _urls(servers: str | Sequence[str]) -> list[str]:
    """The addresses as 'scheme://host:port'."""
    given = [servers] if isinstance(servers, str) else servers
    found = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(server, str) and server for server in found):
        raise ServingError(
            f"client: got {type(servers).__name__} {str(servers)[:60]!r}, expected an address as "
            f"'http://127.0.0.1:8866', or several"
        )
    return [(server if "://" in server else f"http://{server}").rstrip("/") for server in map(str, found)]


def _encoded(index: int, image: Any) -> bytes:
    try:
        taken = take_image(image)
        # Uncompressed, because the network between services is faster than a compressor.
        return taken if isinstance(taken, bytes) else encode(taken, ".bmp")
    except DataError as error:
        raise named_error(error, image, index=index) from None


def _json(data: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise ServingError(f"the server's reply is no JSON: {error}; is it a PLSC server?") from None
    return found


def _reason(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return repr(data[:200])
