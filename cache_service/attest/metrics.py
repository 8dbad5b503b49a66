"""What attesting tells Prometheus. Event loop; read on the page's own thread."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

__all__ = ["AttestMetrics"]


class AttestMetrics:
    """Counters and gauges; hears what became of attestations as the delivery's listener."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "kvtier_cache_attestation"
        self._outcomes = Counter(
            f"{name}_outcomes", "Attestations answered by billing.", ["outcome"], registry=registry
        )
        self._failures = Counter(
            f"{name}_delivery_failures", "Calls to billing that failed.", registry=registry
        )
        self._lag = Gauge(
            f"{name}_journal_lag", "Durable attestations billing has not.", registry=registry
        )
        self._bytes = Gauge(
            f"{name}_journal_bytes", "Bytes of the attestation journal.", registry=registry
        )
        self._gapped = Gauge(
            f"{name}_gap_leases", "Leases that are in a gap instead.", registry=registry
        )

    def watch(self, used_bytes: Callable[[], int], undelivered_count: int) -> None:
        """`undelivered_count`: those that billing had not when the journal was opened."""
        self._bytes.set_function(lambda: float(used_bytes()))
        self._lag.set(undelivered_count)

    def watch_gaps(self, lease_count: Callable[[], int]) -> None:
        self._gapped.set_function(lambda: float(lease_count()))

    def written(self, count: int) -> None:
        self._lag.inc(count)

    def delivered(self, outcome: str, count: int) -> None:
        self._outcomes.labels(outcome).inc(count)
        self._lag.dec(count)

    def delivery_failed(self) -> None:
        self._failures.inc()
