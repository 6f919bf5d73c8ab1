"""How an embedded server runs: one frozen object with every default."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

from plsc.errors import ServingError

MIB = 1 << 20


@dataclass(frozen=True)
class ServeSettings:
    """The settings of one embedded server.

    Attributes:
        model: an exported folder.
        host: address to listen on; loopback by default.
        port: 0 takes a free one.
        workers: predictor processes. Paddle holds Python's lock while it computes, so each has a process.
        threads: CPU threads of each; by default the machine's cores shared out.
        max_batch: images per forward pass; 8 is best on a CPU, a GPU wants more.
        max_wait_ms: how long a batch may wait to become as large as the one before it. A lone client never waits.
        max_queue: images waiting; past it, 503 with Retry-After.
        max_body: bytes of a request, compressed or not.
        max_held: bytes of all requests being read or answered; past it, 503.
        max_images: images of one request.
        max_pixels: height times width of one image.
        timeout: seconds in which a request must have come, and in which it is answered, else 408 or 504.
        drain: seconds after SIGTERM in which connections are asked to go elsewhere before none is taken any more.
        api_key: wanted in `Authorization: Bearer KEY` or `X-API-Key: KEY`, but for /healthz and /readyz.
        gallery: folder of `plsc gallery build`, for /identify.
        threshold: cosine from which on /verify and /identify say that two are the same; None says nothing.
        access_log: one line of JSON per request on standard output.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8866
    workers: int = 1
    threads: int | None = None
    max_batch: int = 8
    max_wait_ms: float = 5.0
    max_queue: int = 512
    max_body: int = 32 * MIB
    max_held: int = 512 * MIB
    max_images: int = 64
    max_pixels: int = 1 << 24
    timeout: float = 30.0
    drain: float = 1.0
    api_key: str | None = None
    gallery: Path | None = None
    threshold: float | None = None
    access_log: bool = True

    def __post_init__(self) -> None:
        for name in ("workers", "max_batch", "max_queue", "max_body", "max_held", "max_images", "max_pixels"):
            if getattr(self, name) < 1:
                raise ServingError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if not (0 < self.timeout < math.inf and 0 <= self.drain < math.inf and 0 <= self.max_wait_ms < math.inf):
            raise ServingError(
                f"got timeout={self.timeout}, drain={self.drain}, max_wait_ms={self.max_wait_ms}; "
                f"expected a finite timeout above 0, and the others finite and 0 or more"
            )
        if not 0 <= self.port <= 65535:
            raise ServingError(f"port: got {self.port}, expected 0 to 65535")
        if self.threads is not None and self.threads < 1:
            raise ServingError(f"threads: got {self.threads}, expected 1 or more")
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise ServingError("api_key: expected printable ASCII characters, at least one")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ServingError(f"threshold: got {self.threshold}, expected a cosine from -1 to 1")

    @property
    def threads_per_worker(self) -> int:
        return self.threads or max(1, available_cores() // self.workers)

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        shown["api_key"] = self.api_key and "(set)"
        return f"ServeSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
