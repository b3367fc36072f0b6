"""What Prometheus reads at /metrics: requests, the queue, batches."""

import os
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from patchconvnet.deploy.server.asgi import Application, Message, Receive, Send

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # where several workers put their numbers together


class Metrics:
    """The counters of one process; with several workers, what is written out is the sum of all."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        prefix = "patchconvnet"
        self.requests = Counter(f"{prefix}_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            f"{prefix}_request_seconds", "From a request to its answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self.in_progress = Gauge(
            f"{prefix}_requests_in_progress", "Requests accepted and not answered yet.", registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.queue_length = Gauge(
            f"{prefix}_queue_images", "Images that wait for a forward pass.", registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.queue_seconds = Histogram(
            f"{prefix}_queue_seconds", "How long images waited for their forward pass.", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.decode_seconds = Histogram(
            f"{prefix}_decode_seconds", "From a file's bytes to the network's input.", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_images = Histogram(
            f"{prefix}_batch_images", "Images in a forward pass.", buckets=IMAGES, registry=registry
        )
        self.batch_seconds = Histogram(f"{prefix}_batch_seconds", "A forward pass.", buckets=SECONDS, registry=registry)
        self.refused = Counter(f"{prefix}_refused", "Requests refused since too many waited.", registry=registry)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        if DIRECTORY not in os.environ:
            return generate_latest(self._registry)
        all_workers = CollectorRegistry()
        MultiProcessCollector(all_workers)
        return generate_latest(all_workers)


class Measured:
    """Middleware that counts requests and their time, by the address's pattern, so that clients invent no labels.

    Args:
        app: what it stands in front of.
        metrics: that count.
    """

    def __init__(self, app: Application, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "") or "page"
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - began)
