"""Prometheus metrics, in the server's own registry."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and histograms; labels have few values, which clients cannot choose."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nextdetr_requests", "Requests answered.", ("route", "status"), registry=self.registry
        )  # fmt: skip
        self.request_seconds = Histogram(
            "nextdetr_request_seconds", "From the head of a request to the end of its answer.", ("route",),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.images = Counter(
            "nextdetr_images", "Images that detections were returned for.", ("model",), registry=self.registry
        )
        self.refused = Counter(
            "nextdetr_refused", "Requests refused because the queue was full or the time was over.", ("model", "reason"),
            registry=self.registry,
        )  # fmt: skip
        self.batches = Histogram(
            "nextdetr_batch_images", "Images a batch.", ("model",), buckets=_SIZES, registry=self.registry
        )  # fmt: skip
        self.step_seconds = Histogram(
            "nextdetr_step_seconds", "Seconds of an image; in the step model, of a batch.", ("model", "step"),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.reloads = Counter("nextdetr_reloads", "Reloads of a model.", ("model",), registry=self.registry)
        self.streams = Gauge("nextdetr_streams", "WebSockets that are open.", registry=self.registry)
        self._waiting = Gauge(
            "nextdetr_queue_images", "Images accepted and not answered yet.", ("model",), registry=self.registry
        )  # fmt: skip

    def watch_queue(self, model: str, length: Callable[[], float]) -> None:
        """Report a model's queue length when the metrics are read."""
        self._waiting.labels(model).set_function(length)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
