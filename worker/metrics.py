"""What the worker tells Prometheus. Names and labels are part of its face; labels are bounded and
never name a tenant or a request.

Invariant: the token counters count what usage events charge, so that they can be compared with the
ledger. Written on the event loop; prometheus-client makes reading from its own thread safe.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from kvtier.blocks import MissReason, Tier
from worker.engine_stats import EngineStats
from worker.requests import EngineUsage
from worker.usage_event import UsageEvent

__all__ = ["WorkerMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_ENGINE_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], int]], ...] = (
    ("pages", "Pages of the pool.", lambda s: s.page_count),
    ("free_pages", "Pages that hold nothing.", lambda s: s.free_page_count),
    ("cached_pages", "Pages that hold a finished request's block.", lambda s: s.cached_page_count),
    ("waiting_requests", "Requests not yet admitted.", lambda s: s.waiting_count),
    ("loading_requests", "Requests that load blocks.", lambda s: s.loading_count),
    ("running_requests", "Requests that compute.", lambda s: s.running_count),
    (
        "prefill_tokens_per_second",
        "How fast prompts were computed lately.",
        lambda s: s.prefill_tokens_per_second,
    ),
)


_ENGINE_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], int]], ...] = (
    ("preemptions", "Requests put back for want of pages.", lambda s: s.preemptions_total),
    (
        "recomputed_tokens",
        "Tokens computed again after that; in no bill.",
        lambda s: s.recomputed_tokens_total,
    ),
)


class WorkerMetrics:
    """Counters and gauges in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ends = self._counter("requests", "Admitted requests that ended.", "end_reason")
        self._refusals = self._counter("refusals", "Requests that were not admitted.", "reason")
        self._hits = self._counter("hit_tokens", "Prompt tokens served from a tier.", "tier")
        self._misses = self._counter("miss_tokens", "Prompt tokens computed.")
        self._completions = self._counter("completion_tokens", "Tokens generated.")
        self._miss_reasons = self._counter("hit_ends", "Why a prompt's hit ended.", "miss_reason")
        self._ttft = self._histogram("ttft_seconds", "From arrival to the first token.")
        self._queue = self._histogram("queue_seconds", "Waiting for pages and a place.")
        self._load = self._histogram("load_seconds", "Loading blocks from the cache service.")
        self._outcomes = self._counter("usage_outcomes", "Events answered by billing.", "outcome")
        self._failures = self._counter("usage_delivery_failures", "Calls to billing that failed.")
        self._lag = self._gauge("usage_journal_lag_events", "Durable events billing has not.")
        self._journal_bytes = self._gauge("usage_journal_bytes", "Bytes of the usage journal.")
        self._budgets = self._counter("budget_asks", "Requests, by billing's word.", "outcome")
        self._budget_seconds = self._histogram("budget_seconds", "Waiting for billing's word.")
        self._releases = self._gauge("budget_releases_waiting", "Releases that billing has not.")
        self._given_up = self._counter("budget_releases_given_up", "Holds left to end themselves.")
        for tier in Tier:
            self._hits.labels(tier.name.lower())

    def watch_engine(self, stats: Callable[[], EngineStats]) -> None:
        """Shows the engine's gauges and counters as of each scrape."""
        for name, text, read in _ENGINE_GAUGES:
            self._gauge(f"engine_{name}", text).set_function(_reader(read, stats))
        self.registry.register(_EngineCounters(stats))

    def watch_journal(self, used_bytes: Callable[[], int], undelivered_count: int) -> None:
        """`undelivered_count`: events that billing had not when the journal was opened."""
        self._journal_bytes.set_function(lambda: float(used_bytes()))
        self._lag.set(undelivered_count)

    def ended(self, event: UsageEvent, usage: EngineUsage) -> None:
        """A request's event is durable."""
        self._ends.labels(event.end.name.lower()).inc()
        for tier, tokens in event.tokens.hit_tokens_by_tier.items():
            self._hits.labels(tier.name.lower()).inc(tokens)
        self._misses.inc(event.tokens.miss_tokens)
        self._completions.inc(event.tokens.completion_tokens)
        self._miss_reasons.labels(MissReason(usage.miss_reason).name.lower()).inc()
        self._queue.observe(usage.queue_seconds)
        self._load.observe(usage.load_seconds)
        if event.ttft_ns is not None:
            self._ttft.observe(event.ttft_ns / 1e9)
        self._lag.inc()

    def refused(self, reason: str) -> None:
        """A request was not admitted."""
        self._refusals.labels(reason).inc()

    def watch_releases(self, waiting: Callable[[], int]) -> None:
        self._releases.set_function(lambda: float(waiting()))

    def release_given_up(self) -> None:
        """A release will not be sent any more."""
        self._given_up.inc()

    def budget_asked(self, outcome: str, seconds: float) -> None:
        """Billing was asked whether a request may be served, or could not be."""
        self._budgets.labels(outcome).inc()
        self._budget_seconds.observe(seconds)

    def delivered(self, outcome: str, count: int) -> None:
        self._outcomes.labels(outcome).inc(count)
        self._lag.dec(count)

    def delivery_failed(self) -> None:
        self._failures.inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvtier_worker_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"kvtier_worker_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"kvtier_worker_{name}", text, registry=self.registry, buckets=_SECONDS)


class _EngineCounters(Collector):
    """Read on the page's thread."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text, read in _ENGINE_COUNTERS:
            yield CounterMetricFamily(f"kvtier_worker_engine_{name}", text, value=read(stats))


def _reader(
    read: Callable[[EngineStats], int], stats: Callable[[], EngineStats]
) -> Callable[[], float]:
    return lambda: float(read(stats()))
