"""What the gateway tells Prometheus. Names and labels are part of its face; labels are bounded and
never name a tenant, a key or a request.

Written on the event loop; prometheus-client makes reading from its own thread safe.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.worker_link import Worker

__all__ = ["GatewayMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class GatewayMetrics:
    """Counters and gauges in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests by how they ended.", "path", "outcome")
        self._refusals = self._counter("refusals", "Requests that failed.", "reason")
        self._retries = self._counter("retries", "Attempts after one that came to nothing.")
        self._undescribed = self._counter(
            "undescribed_prompts", "Prompts that were routed without their blocks' names.", "reason"
        )
        self._first = Histogram(
            "kvtier_gateway_first_byte_seconds",
            "From a request's head to the first byte of a good answer.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._running = self._gauge("running_requests", "Requests under way.")
        self._caches = self._gauge(
            "followed_caches", "Cache services whose events are followed without a gap."
        )
        self._up = Gauge(
            "kvtier_gateway_worker_up",
            "Whether a worker takes requests.",
            ["worker"],
            registry=self.registry,
        )
        self._worker_running = Gauge(
            "kvtier_gateway_worker_running_requests",
            "Requests of this gateway at a worker.",
            ["worker"],
            registry=self.registry,
        )

    def watch_running(self, count: Callable[[], int]) -> None:
        self._running.set_function(lambda: float(count()))

    def watch_worker(self, worker: Worker) -> None:
        """Told by its address, as the settings have it."""
        self._up.labels(worker.address).set_function(lambda: float(worker.up))
        running = self._worker_running.labels(worker.address)
        running.set_function(lambda: float(worker.running_count))

    def watch_caches(self, current: Callable[[], int]) -> None:
        self._caches.set_function(lambda: float(current()))

    def ended(self, path: str, outcome: str) -> None:
        """`path` is one of ours, `outcome` done, refused, failed or gone (the caller)."""
        self._requests.labels(path, outcome).inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def retried(self) -> None:
        self._retries.inc()

    def undescribed(self, reason: str) -> None:
        """`reason`: a worker's where it is for callers, LATE, NONSENSE, or gRPC's code."""
        self._undescribed.labels(reason).inc()

    def first_byte(self, seconds: float) -> None:
        self._first.observe(seconds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvtier_gateway_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"kvtier_gateway_{name}", text, registry=self.registry)
