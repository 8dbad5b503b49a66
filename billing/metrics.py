"""What the billing service tells Prometheus. Names and labels are part of its face; labels are
bounded and never name a tenant or a request.

Written on the ledger writer's thread (commits) and the event loop (calls); prometheus-client makes
that, and reading from its own thread, safe.
"""

import logging
from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from billing.attestation_keeping import AttestationOutcome
from billing.budget_alert import Alert, AlertKind
from billing.meter import Head, Outcome, RecordStatus
from billing.money import to_text
from billing.usage import Refusal

__all__ = ["BillingMetrics"]

log = logging.getLogger(__name__)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EVENTS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000)


class BillingMetrics:
    """Counters and gauges in a registry of their own; hears of commits as the ledger's listener."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._events = self._counter("events", "Usage events answered.", "outcome")
        self._refusals = self._counter("refusals", "Events without an entry.", "reason")
        self._attestations = self._counter(
            "attestations", "Attestations of cache services answered.", "outcome"
        )
        self._unrated = self._counter("unrated_events", "Entries that no price covers.")
        self._failures = self._counter("failed_commits", "Transactions that were not taken.")
        self._group = self._histogram("commit_events", "Events of one transaction.", _EVENTS)
        self._record = self._histogram("record_seconds", "RecordUsage, until durable.", _SECONDS)
        self._entries = Gauge(
            "kvtier_billing_ledger_entries", "Entries in the ledger.", registry=self.registry
        )
        self._alerts = self._counter("budget_alerts", "Thresholds passed.", "kind")
        self._reservations = self._counter(
            "reservations", "Requests asked for, by what became of it.", "outcome"
        )
        self._holds = Gauge(
            "kvtier_billing_holds", "Requests that something is held for.", registry=self.registry
        )
        self._reserve = self._histogram("reserve_seconds", "ReserveBudget, answered.", _SECONDS)
        for kind in AlertKind:
            self._alerts.labels(kind.value)
        for status in RecordStatus:
            self._events.labels(status.value)
            self._attestations.labels(status.value)
        for refusal in Refusal:
            self._refusals.labels(refusal.value)

    def opened(self, head: Head) -> None:
        self._entries.set(head.position)

    def recorded(self, seconds: float) -> None:
        self._record.observe(seconds)

    def committed(self, outcomes: Sequence[Outcome], batch_count: int, head: Head) -> None:
        self._group.observe(len(outcomes))
        self._entries.set(head.position)
        for status, count in Tally(outcome.status for outcome in outcomes).items():
            self._events.labels(status.value).inc(count)
        reasons = Tally(outcome.reason for outcome in outcomes if outcome.reason)
        for reason, count in reasons.items():
            self._refusals.labels(reason).inc(count)
        if reasons:
            log.warning("events refused and kept aside", extra={"reasons": dict(reasons)})
        unrated = sum(outcome.unrated for outcome in outcomes)
        if unrated:
            self._unrated.inc(unrated)
            log.warning("no price covers events", extra={"event_count": unrated})

    def attested(self, outcomes: Sequence[AttestationOutcome]) -> None:
        for status, count in Tally(outcome.status for outcome in outcomes).items():
            self._attestations.labels(status.value).inc(count)
        reasons = Tally(outcome.reason for outcome in outcomes if outcome.reason)
        if reasons:
            log.warning("attestations kept aside", extra={"reasons": dict(reasons)})

    def alerted(self, alerts: Sequence[Alert], hold_count: int) -> None:
        self._holds.set(hold_count)
        for alert in alerts:
            self._alerts.labels(alert.kind.value).inc()
            log.warning(
                "a budget's threshold is passed",
                extra={
                    "kind": alert.kind.value,
                    "scope": str(alert.scope),
                    "percent": alert.percent,
                    "amount": to_text(alert.amount),
                    "limit": to_text(alert.limit),
                    "currency": alert.currency,
                },
            )

    def reserved(self, outcome: str, seconds: float) -> None:
        """`outcome`: held, free (no budget covers it), or the reason of the refusal, lower case."""
        self._reservations.labels(outcome).inc()
        self._reserve.observe(seconds)

    def failed(self, batch_count: int) -> None:
        self._failures.inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvtier_billing_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"kvtier_billing_{name}", text, buckets=buckets, registry=self.registry)
