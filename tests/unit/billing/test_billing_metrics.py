from collections.abc import Callable
from pathlib import Path

from prometheus_client import generate_latest

from billing.entry import EntryHash
from billing.meter import Head, Outcome, RecordStatus
from billing.metrics import BillingMetrics
from billing.usage import Refusal

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_outcomes_reasons_and_the_ledgers_length_are_counted() -> None:
    metrics = BillingMetrics()
    metrics.committed(
        [
            Outcome("a", RecordStatus.ACCEPTED, position=7),
            Outcome("b", RecordStatus.ACCEPTED, position=8, unrated=True),
            Outcome("c", RecordStatus.REJECTED, "FUTURE"),
        ],
        2,
        Head(8, EntryHash(bytes(32))),
    )
    metrics.failed(1)
    read: Callable[..., float | None] = metrics.registry.get_sample_value
    assert read("kvtier_billing_events_total", {"outcome": "accepted"}) == 2
    assert read("kvtier_billing_events_total", {"outcome": "conflict"}) == 0
    assert read("kvtier_billing_refusals_total", {"reason": "FUTURE"}) == 1
    assert read("kvtier_billing_unrated_events_total") == 1
    assert read("kvtier_billing_failed_commits_total") == 1
    assert read("kvtier_billing_ledger_entries") == 8
    assert read("kvtier_billing_commit_events_sum") == 3


def test_every_metric_is_described_for_people() -> None:
    metrics = BillingMetrics()
    described = DOCUMENT.read_text()
    names = {metric.name for metric in metrics.registry.collect()}
    assert len(names) == 12
    for name in names:
        assert f"`{name}" in described


def test_no_label_grows_with_use() -> None:
    before = generate_latest(BillingMetrics().registry).count(b"\n")
    metrics = BillingMetrics()
    for refusal in Refusal:
        outcome = Outcome("r", RecordStatus.REJECTED, refusal.value)
        metrics.committed([outcome], 1, Head(0, EntryHash(bytes(32))))
    assert generate_latest(metrics.registry).count(b"\n") == before
