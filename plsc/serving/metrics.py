"""The server's metrics, in Prometheus' format."""

from __future__ import annotations

from plsc.utils.lazy import SERVER_PACKAGES, require

require("prometheus_client", SERVER_PACKAGES, purpose="the server")

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("plsc_requests", "requests answered", ("path", "status"), registry=registry)
        self.request_seconds = Histogram(
            "plsc_request_seconds",
            "seconds from a request's head to the end of its reply",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_rows = Histogram("plsc_batch_rows", "images per forward pass", buckets=_ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "plsc_batch_seconds", "seconds per forward pass", buckets=_SECONDS, registry=registry
        )
        self.worker_restarts = Counter("plsc_worker_restarts", "predictor processes replaced", registry=registry)
        self.damaged_images = Counter(
            "plsc_damaged_images", "images that are damaged but were decoded in part and embedded", registry=registry
        )
        self.queue_rows = Gauge("plsc_queue_rows", "images waiting for a predictor", registry=registry)
        self.workers_ready = Gauge(
            "plsc_workers_ready", "predictor processes that have loaded the model", registry=registry
        )
        # Exported under its name of version 1.0, which dashboards use.
        self.inflight_bytes = Gauge(
            "plsc_held_bytes", "bytes of the bodies of all requests in progress", registry=registry
        )

    def on_batch(self, rows: int, seconds: float) -> None:
        """Count one forward pass."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
