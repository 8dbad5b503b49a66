"""What cache services attest to have kept becomes entries that are charged: once, provably."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select

from billing.attestation import Attestation, StorageSaid, attestation_from_text, attestation_text
from billing.attestation_keeping import AttestationOutcome, AttestationSubmission
from billing.budget_status import budget_statuses, with_spent
from billing.errors import TenantUnknownError
from billing.invoice import invoice_of
from billing.ledger_schema import entries, postings
from billing.meter import RecordStatus
from billing.period import HOUR_NS, Period
from billing.price_book_file import parse_price_book
from billing.report import UsageQuery, usage_rows
from billing.usage import TenantId, UsageEvent
from tests.unit.billing.reserving import budget, limit
from tests.unit.billing.test_balances import funding, wallet

Till = Any
START = 1_800_000_000 * 10**9
assert START % HOUR_NS == 0

BOOK = """
format = 2
[[versions]]
name = "kept"
effective_time = 2025-01-01T00:00:00Z
currency = "CNY"
source = "test"
[[versions.prices]]
model = "exact*"
hit = "1"
miss = "1"
output = "1"
storage = { price = "4.5", meter = "exact_seconds" }
[[versions.prices]]
model = "most*"
per = 1000
hit = "1"
miss = "1"
output = "1"
storage = { price = "0.017", meter = "hourly_maximum" }
[[versions.prices]]
model = "begun*"
hit = "1"
miss = "1"
output = "1"
storage = { price = "2", meter = "started_hour" }
[[versions.prices]]
model = "*"
hit = "1"
miss = "1"
output = "1"
"""


@pytest.fixture
def till(open_till: Callable[..., Till]) -> Till:
    return open_till(parse_price_book(BOOK, "test"))


def kept(name: str = "s1", model: str = "exact", hour: int = 0, **changes: Any) -> Attestation:
    """A thousand tokens for half an hour."""
    said = {
        "tenant_id": "acme",
        "model": model,
        "tier": "host",
        "token_milliseconds": 1_800_000_000,
        "maximum_tokens": 1_000,
        "started_tokens": 2_000,
        **changes,
    }
    start_ns = START + hour * HOUR_NS
    end_ns = start_ns + HOUR_NS // 2
    storage = StorageSaid(**said)
    return Attestation(f"storage/{name}", 1, "n", "run", start_ns, end_ns, storage=storage)


def attest(till: Till, *said: Attestation) -> list[AttestationOutcome]:
    submissions = [AttestationSubmission(each, each.attestation_id.encode()) for each in said]
    found: list[AttestationOutcome] = till.ledger.attest(submissions).result(30)
    return found


@pytest.mark.parametrize(
    ("model", "quantity", "amount"),
    [
        ("exact", 500 * 10**6, "0.00225"),  # 500 token-hours at 4.5 a million
        ("most", 1_000 * 10**6, "0.017"),  # 1,000 at 0.017 a thousand
        ("begun", 2_000 * 10**6, "0.004"),  # 2,000 at 2 a million
    ],
)
def test_storage_is_charged_once_as_its_price_says(
    till: Till, model: str, quantity: int, amount: str
) -> None:
    said = kept(model=model)
    assert attestation_from_text(attestation_text(said)) == said
    statuses = [attest(till, said)[0].status for _ in range(3)]
    assert statuses == [RecordStatus.ACCEPTED, RecordStatus.DUPLICATE, RecordStatus.DUPLICATE]
    (other,) = attest(till, replace(said, end_time_ns=said.end_time_ns + 1))
    assert (other.status, other.reason) == (RecordStatus.CONFLICT, "OTHER_CONTENT")
    rows = till.store.read(lambda c: c.execute(select(postings)).all())
    assert [(r.account, r.quantity_tokens, Decimal(r.amount)) for r in rows] == [
        ("receivable/acme", 0, Decimal(amount)),
        ("revenue/storage", quantity, -Decimal(amount)),
    ]
    assert till.verify().problem == ""
    assert till.ledger.head.position == 1


def test_it_is_on_the_invoice_of_its_hour_and_in_the_report_and_no_request(
    till: Till, usage_event: Callable[..., UsageEvent]
) -> None:
    with pytest.raises(TenantUnknownError):
        till.store.read(lambda c: invoice_of(c, TenantId("acme"), Period()))
    attest(till, *(kept(f"h{hour}", hour=hour) for hour in range(3)), kept("t", tier="ssd"))
    attest(till, kept("free", model="free"), kept("b", tenant_id="beta"))
    before = {"start_time_ns": START - 9, "end_time_ns": START - 1}
    till.record(usage_event("r1", model="exact", hit=0, miss=10, output=0, **before))
    period = Period(START, START + 2 * HOUR_NS)
    invoice = till.store.read(lambda c: invoice_of(c, TenantId("acme"), period))
    lines = [(x.token_class, x.rule, x.quantity_tokens, x.amount) for x in invoice.lines]
    assert lines == [
        ("storage", "host, exact seconds", 1_000 * 10**6, Decimal("0.0045")),
        ("storage", "ssd, exact seconds", 500 * 10**6, Decimal("0.00225")),
    ]
    assert {x.unit_tokens for x in invoice.lines} == {10**12}
    assert (invoice.total, invoice.request_count) == (Decimal("0.00675"), 0)
    rows = till.store.read(lambda c: usage_rows(c, UsageQuery(group_by=("tenant", "model"))))
    assert [(row.group, row.amount, row.request_count) for row in rows] == [
        (("acme", "exact"), Decimal("0.00901"), 1),
        (("acme", "free"), Decimal(0), 0),
        (("beta", "exact"), Decimal("0.00225"), 0),
    ]
    half = 1_800_000_000
    assert [row.storage for row in rows] == [
        {"host": 3 * half, "ssd": half},
        {"host": half},
        {"host": half},
    ]
    # No hit saved anything: what is kept stored is what a cache costs.
    assert [(row.saved, row.net_saved) for row in rows] == [
        (0, Decimal("-0.009")),
        (0, 0),
        (0, Decimal("-0.00225")),
    ]
    assert (invoice.saved, invoice.net_saved) == (0, Decimal("-0.00675"))
    assert till.verify().problem == ""


def test_it_is_taken_from_the_balance_and_counts_against_a_limit(
    till: Till, open_till: Callable[..., Till]
) -> None:
    till.clock.now_ns = START + HOUR_NS
    budget(till, limit=limit("1"))
    till.ledger.fund(funding("top_up", "1")).result(30)
    attest(till, kept())
    till.close()
    again = open_till(parse_price_book(BOOK, "test"))
    again.clock.now_ns = START + HOUR_NS
    attest(again, kept("s2"))
    assert wallet(again).prepaid == 1 - Decimal("0.0045")

    def statuses(connection: Any, standing: Any, now_ns: int) -> Any:
        found = budget_statuses(standing, "acme", "", now_ns)[0]
        return [with_spent(connection, each) for each in found]

    (status,) = again.ledger.decide(statuses).result(30)
    assert status.spent == Decimal("0.0045")
    assert again.verify().problem == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tenant_id": ""}, "MISSING_ID"),
        ({"model": ""}, "MISSING_ID"),
        ({"tenant_id": "a\nb"}, "INVALID_TEXT"),
        ({"tier": "gpu"}, "UNKNOWN_KIND"),
        ({"tier": "shared"}, "UNKNOWN_KIND"),
        ({"token_milliseconds": -1}, "QUANTITY_RANGE"),
        ({"token_milliseconds": 1_800_000_002}, "QUANTITY_RANGE"),
        ({"maximum_tokens": 10**13}, "QUANTITY_RANGE"),
        ({"started_tokens": 10**13}, "QUANTITY_RANGE"),
    ],
)
def test_what_no_meter_says_is_kept_aside(till: Till, changes: dict[str, Any], reason: str) -> None:
    (outcome,) = attest(till, kept(**changes))
    assert (outcome.status, outcome.reason) == (RecordStatus.REJECTED, reason)
    two_hours = replace(kept(), end_time_ns=START + HOUR_NS + 1)
    assert attest(till, two_hours)[0].reason == "TIME_RANGE"
    assert attest(till, replace(kept(), end_time_ns=START + HOUR_NS))[0].reason == ""


def test_a_changed_entry_or_posting_is_found(till: Till) -> None:
    attest(till, kept(), kept("s2"))
    till.alter("UPDATE postings SET amount = '9' WHERE position = 2 AND line = 1")
    found = till.verify()
    assert (found.broken_position, bool(found.problem)) == (2, True)


def test_a_usage_events_id_and_storages_never_meet(
    till: Till, usage_event: Callable[..., UsageEvent]
) -> None:
    till.record(usage_event("storage/s1"))
    assert attest(till, kept())[0].status is RecordStatus.ACCEPTED
    found = till.store.read(lambda c: c.execute(select(entries.c.kind)).scalars().all())
    assert found == ["usage", "storage"]
