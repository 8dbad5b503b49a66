"""The cache service's metrics: what the core tells its listener, and what it can be asked.

    core -> MetricsListener -> counters, histograms -+
    core.stats() (on a scrape, on the event loop) ---+-> registry -> http://.../metrics

Invariant: labels are tiers, reasons and, where that is wanted, the few organisations that own most
blocks, never projects, users, hashes, sessions or requests. Names:
`docs/metrics.md`. The listener runs on the event loop; the page is served by a thread of its own,
which asks the loop for the stats.
"""

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_service.intake import StreamIntake
from cache_service.listener import QuietListener
from cache_service.owner_views import OwnersView
from cache_service.ssd_metrics import ssd_metrics
from cache_service.views import CacheStats, PassView
from kvtier.blocks import MissReason, Tier
from kvtier.calls import Calls
from kvtier.metrics_page import serve_metrics

__all__ = ["CallMetrics", "MetricsListener", "MetricsPage"]

log = logging.getLogger(__name__)

STATS_SECONDS_MAX = 2.0

SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class MetricsListener(QuietListener):
    """Counts, logs what is worth waking for, and lets the stream intake forget ended sessions."""

    def __init__(self, registry: CollectorRegistry, intake: StreamIntake) -> None:
        self._intake = intake
        self._sessions = _counter(registry, "sessions", "Sessions by how they ended", "event")
        self._asked = _counter(registry, "asked_blocks", "Blocks that acquires asked for")
        self._matched = _counter(registry, "matched_blocks", "Blocks found, by tier", "tier")
        self._ready = _counter(registry, "ready_blocks", "Blocks made readable for a client")
        self._misses = _counter(registry, "misses", "Acquires that fell short, by why", "reason")
        self._expired = _counter(registry, "expired", "Leases, reservations that expired", "kind")
        self._committed = _counter(registry, "committed_bytes", "Payload bytes committed")
        self._refused = _counter(registry, "refused_blocks", "Blocks not reserved", "reason")
        self._evicted = _counter(registry, "evicted_blocks", "Blocks that left a tier", "tier")
        self._expired_blocks = _counter(registry, "expired_blocks", "Blocks whose time was over")
        self._purges = _counter(registry, "purges", "Purges that ended")
        self._purged = _counter(registry, "purged_blocks", "Copies that purges took out", "tier")
        self._pin_changes = _counter(registry, "pin_changes", "Pins made and ended", "how")
        self._moved = _counter(registry, "ssd_payload_bytes", "Payload bytes moved", "direction")
        self._declined = _counter(registry, "declined_blocks", "Blocks admission kept off the SSD")
        self._room_waits = _counter(
            registry, "room_waits", "Slabs that had to wait for the SSD writer"
        )
        self._corrupt = _counter(registry, "corrupt_blocks", "Blocks that failed a check", "tier")
        self._recycled = _counter(registry, "recycled_segments", "Segments recycled")
        self._relogged = _counter(registry, "relogged_blocks", "Blocks kept by writing them again")
        self._ssd_failures = _counter(
            registry, "ssd_failures", "I/O errors of the SSD", "operation"
        )
        self._scrubbed = _counter(registry, "scrubbed_bytes", "Bytes of the SSD that were verified")
        self._scrub_findings = _counter(
            registry, "scrub_findings", "Blocks that a scrub found bad", "kind"
        )
        self._scrub_dropped = _counter(registry, "scrub_dropped_blocks", "Blocks dropped for it")
        self._bulk = _counter(registry, "bulk_payload_bytes", "Payload of bulk lanes", "direction")
        self._bulk_refused = _counter(registry, "bulk_refused_tickets", "Tickets refused")
        self._cut = _counter(registry, "watchers_cut", "Watchers that were cut off", "reason")
        self._shared_asked = _counter(
            registry, "shared_asked", "Acquires that asked the shared tier", "outcome"
        )
        self._shared_bytes = _counter(
            registry, "shared_bytes", "Bytes to and from the shared tier", "direction"
        )
        self._shared_dropped = _counter(
            registry, "shared_dropped_blocks", "Blocks that do not go there, by why", "reason"
        )
        self._shared_failures = _counter(
            registry, "shared_failures", "Failures of the shared tier", "operation"
        )
        self._load_seconds = Histogram(
            "kvtier_cache_load_seconds",
            "From an acquire's match to its end",
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )

    def session_opened(self, session_id: str, client_name: str) -> None:
        self._sessions.labels("opened").inc()
        log.info("session opened", extra={"session_id": session_id, "client": client_name})

    def session_closed(self, session_id: str, expired: bool) -> None:
        self._intake.close_session(session_id)
        self._sessions.labels("expired" if expired else "closed").inc()
        log.info("session ended", extra={"session_id": session_id, "expired": expired})

    def prefix_matched(
        self, asked_count: int, host_count: int, ssd_count: int, reason: MissReason
    ) -> None:
        self._asked.inc(asked_count)
        self._matched.labels("host").inc(host_count)
        self._matched.labels("ssd").inc(ssd_count)

    def prefix_ready(self, ready_count: int, reason: MissReason, seconds: float) -> None:
        self._ready.inc(ready_count)
        self._load_seconds.observe(seconds)
        if reason is not MissReason.NONE:
            self._misses.labels(reason.name.lower()).inc()

    def leases_expired(self, count: int) -> None:
        self._expired.labels("lease").inc(count)
        log.warning("leases expired unreleased", extra={"count": count})

    def reservations_expired(self, count: int) -> None:
        self._expired.labels("reservation").inc(count)
        log.warning("reservations expired uncommitted", extra={"count": count})

    def blocks_committed(self, count: int, payload_bytes: int) -> None:
        self._committed.inc(payload_bytes)

    def blocks_refused(self, count: int, reason: MissReason) -> None:
        self._refused.labels(reason.name.lower()).inc(count)

    def blocks_evicted(self, tier: Tier, count: int) -> None:
        self._evicted.labels(tier.name.lower()).inc(count)

    def blocks_expired(self, count: int) -> None:
        self._expired_blocks.inc(count)

    def blocks_purged(self, copies: Mapping[Tier, int]) -> None:
        self._purges.inc()
        for tier, count in copies.items():
            self._purged.labels(tier.name.lower()).inc(count)
        log.info("blocks purged", extra={f"{t.name.lower()}_count": n for t, n in copies.items()})

    def pins_changed(self, how: str, count: int) -> None:
        self._pin_changes.labels(how).inc(count)
        log.info("pins changed", extra={"how": how, "count": count})

    def blocks_promoted(self, count: int, payload_bytes: int, seconds: float) -> None:
        self._moved.labels("read").inc(payload_bytes)

    def blocks_written(self, count: int, payload_bytes: int, seconds: float) -> None:
        self._moved.labels("write").inc(payload_bytes)

    def writes_declined(self, count: int) -> None:
        self._declined.inc(count)

    def room_waited(self) -> None:
        self._room_waits.inc()

    def written_out(self, written_count: int, left_count: int, left_bytes: int) -> None:
        log.log(
            logging.WARNING if left_count else logging.INFO,
            "blocks that only host memory had were written to the SSD",
            extra={
                "written_count": written_count,
                "left_count": left_count,
                "left_bytes": left_bytes,
            },
        )

    def block_corrupt(self, tier: Tier) -> None:
        self._corrupt.labels(tier.name.lower()).inc()
        log.warning("a corrupt block was dropped", extra={"tier": tier.name.lower()})

    def segment_recycled(self, relogged_count: int, dropped_count: int) -> None:
        self._recycled.inc()
        self._relogged.inc(relogged_count)

    def ssd_failed(self, operation: str, problem: str) -> None:
        self._ssd_failures.labels(operation).inc()
        log.error("the SSD failed", extra={"operation": operation, "problem": problem})

    def block_scrubbed(self, size_bytes: int) -> None:
        self._scrubbed.inc(size_bytes)

    def scrub_found(self, kind: str, dropped_count: int) -> None:
        self._scrub_findings.labels(kind).inc()
        self._scrub_dropped.inc(dropped_count)

    def scrub_passed(self, found: PassView) -> None:
        bad = found.corrupt_count or found.unreadable_count
        log.log(
            logging.WARNING if bad else logging.DEBUG,
            "the SSD was scrubbed",
            extra={
                "checked_count": found.checked_count,
                "checked_bytes": found.checked_bytes,
                "corrupt_count": found.corrupt_count,
                "unreadable_count": found.unreadable_count,
                "dropped_count": found.dropped_count,
                "duration_seconds": round(found.seconds, 3),
            },
        )

    def bulk_moved(self, direction: str, payload_bytes: int) -> None:
        self._bulk.labels(direction).inc(payload_bytes)

    def bulk_refused(self) -> None:
        self._bulk_refused.inc()

    def shared_asked(self, outcome: str, count: int) -> None:
        self._shared_asked.labels(outcome).inc()
        self._matched.labels("shared").inc(count)

    def shared_read(self, count: int, payload_bytes: int) -> None:
        self._shared_bytes.labels("read").inc(payload_bytes)

    def shared_written(self, count: int, size_bytes: int) -> None:
        self._shared_bytes.labels("write").inc(size_bytes)

    def shared_dropped(self, reason: str, count: int) -> None:
        self._shared_dropped.labels(reason).inc(count)

    def shared_failed(self, operation: str, problem: str) -> None:
        self._shared_failures.labels(operation).inc()
        log.warning("the shared tier failed", extra={"operation": operation, "problem": problem})

    def watcher_cut(self, reason: str) -> None:
        self._cut.labels(reason).inc()
        log.warning("a watcher of the events was cut off", extra={"reason": reason})


class CallMetrics(Collector):
    """Calls that are being served, and those refused. Read on the page's thread."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "kvtier_cache_calls", "Calls that are being served", value=self._calls.count
        )
        yield CounterMetricFamily(
            "kvtier_cache_refused_calls",
            "Calls refused with TOO_MANY_CALLS",
            value=self._calls.refused_count,
        )


class MetricsPage(Collector):
    """The Prometheus page: `registry`, and the core's stats at the moment of the scrape."""

    def __init__(
        self,
        registry: CollectorRegistry,
        stats: Callable[[], CacheStats],
        tenants: Callable[[], OwnersView | None],
    ) -> None:
        self._registry = registry
        self._stats = stats
        self._tenants = tenants
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], None] | None = None

    def start(self, address: str) -> str:
        """Serves on `address`; returns it with the port really bound. Raises AddressInUseError.

        REQUIRES: called on the running event loop, which is the core's.
        """
        self._loop = asyncio.get_running_loop()
        bound, self._stop = serve_metrics(address, self._registry)
        self._registry.register(self)
        return bound

    async def stop(self) -> None:
        """Idempotent. A scrape that is running gets its answer first."""
        if self._stop is not None:
            stop, self._stop = self._stop, None
            await asyncio.to_thread(stop)

    def describe(self) -> list[Metric]:
        """Nothing ahead of time, so that registering asks the loop nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Runs on the page's thread."""
        assert self._loop is not None
        asked = asyncio.run_coroutine_threadsafe(self._ask(), self._loop)
        try:
            stats, tenants = asked.result(STATS_SECONDS_MAX)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            return
        yield from _gauges(stats)
        if tenants is not None:
            yield from _owner_gauges(stats, tenants)

    async def _ask(self) -> tuple[CacheStats, OwnersView | None]:
        return self._stats(), self._tenants()


def _gauges(stats: CacheStats) -> Iterator[Metric]:
    for name, text, value in (
        ("sessions_open", "Sessions that are open", stats.session_count),
        ("leases_live", "Leases that are live", stats.lease_count),
        ("reservations_live", "Reservations that are live", stats.reservation_count),
        ("pending_writes_blocks", "Blocks on their way to the SSD", stats.pending_write_count),
        ("host_only_blocks", "Blocks in host memory that the SSD lacks", stats.host_only_count),
        ("quarantined_slabs", "Slabs resting before reuse", stats.quarantined_slab_count),
        ("pins", "Pins that are kept", stats.pin_count),
        ("pinned_blocks", "Blocks that pins name", stats.pinned_block_count),
        ("watchers_open", "Watchers of the events", stats.watcher_count),
        ("bulk_lanes_open", "Connections of the bulk lane", stats.bulk_lane_count),
        ("bulk_transfers", "Loads and stores on bulk lanes", stats.bulk_transfer_count),
        ("uptime_seconds", "Since the start", stats.uptime_seconds),
    ):
        yield GaugeMetricFamily(f"kvtier_cache_{name}", text, value=value)
    yield CounterMetricFamily("kvtier_cache_events", "Copies that came or left", stats.event_count)
    for name, text, field in (
        ("capacity_bytes", "What a tier may hold", "capacity_bytes"),
        ("used_bytes", "What a tier holds, with rounding and headers", "used_bytes"),
        ("blocks", "Blocks in a tier", "block_count"),
    ):
        family = GaugeMetricFamily(f"kvtier_cache_tier_{name}", text, labels=["tier"])
        for tier in stats.tiers:
            family.add_metric([tier.tier.name.lower()], getattr(tier, field))
        yield family
    yield from _recovery_gauges(stats)
    yield from ssd_metrics(stats)


def _owner_gauges(stats: CacheStats, tenants: OwnersView) -> Iterator[Metric]:
    """By organisation; "*" is all without a label of their own. Nobody's is the rest of a tier."""
    tiers = {each.tier for each in stats.tiers}
    listed, total = tenants.owners, tenants.total
    for name, text, fields in (
        ("owner_blocks", "Blocks by owner", {"host": "host_count", "ssd": "ssd_count"}),
        ("owner_bytes", "Payload bytes by owner", {"host": "host_bytes", "ssd": "ssd_bytes"}),
    ):
        family = GaugeMetricFamily(f"kvtier_cache_{name}", text, labels=["owner", "tier"])
        for tier in sorted(tiers):
            field = fields[tier.name.lower()]
            for owner in listed:
                family.add_metric([owner.path, tier.name.lower()], getattr(owner, field))
            rest = getattr(total, field) - sum(getattr(owner, field) for owner in listed)
            family.add_metric(["*", tier.name.lower()], rest)
        yield family


def _recovery_gauges(stats: CacheStats) -> Iterator[Metric]:
    """What the last start found on the SSD; absent without an SSD tier."""
    report = stats.recovery
    if report is None:
        return
    blocks = GaugeMetricFamily(
        "kvtier_cache_recovery_blocks", "Blocks at the last start, by outcome", labels=["outcome"]
    )
    blocks.add_metric(["kept"], report.kept_count)
    blocks.add_metric(["dropped"], report.dropped_count)
    blocks.add_metric(["repaired"], report.repaired_count)
    yield blocks
    for name, text, value in (
        ("kept_bytes", "Payload kept at the last start", report.kept_bytes),
        ("problems", "Kinds of damage found at the last start", len(report.problems)),
        ("seconds", "How long the last start's recovery took", report.duration_seconds),
    ):
        yield GaugeMetricFamily(f"kvtier_cache_recovery_{name}", text, value=value)


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"kvtier_cache_{name}", text, labels, registry=registry)
