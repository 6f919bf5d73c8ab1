"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from plsc.utils.lazy import SERVER_PACKAGES, require

prometheus = require("prometheus_client", SERVER_PACKAGES, "the server")


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = prometheus.CollectorRegistry()

        def make(kind, name, text, labels=(), **more):
            return kind(f"plsc_{name}", text, labels, registry=self._registry, **more)

        latency = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
        self.requests = make(prometheus.Counter, "requests", "requests answered", ("path", "status"))
        self.seconds = make(
            prometheus.Histogram,
            "request_seconds",
            "from the request's head to the reply's end",
            ("path",),
            buckets=latency,
        )
        self.batch_rows = make(
            prometheus.Histogram, "batch_rows", "images of a forward pass", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
        )
        self.batch_seconds = make(prometheus.Histogram, "batch_seconds", "seconds of a forward pass", buckets=latency)
        self.restarts = make(prometheus.Counter, "worker_restarts", "predictor processes that had to be replaced")
        self.waiting = make(prometheus.Gauge, "queue_rows", "images waiting for a predictor")
        self.ready = make(prometheus.Gauge, "workers_ready", "predictor processes that have loaded the model")
        self.held = make(prometheus.Gauge, "held_bytes", "bytes of the requests being read or answered")

    def on_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return prometheus.generate_latest(self._registry)
