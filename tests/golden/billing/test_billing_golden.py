"""One month of a tenant, to the last digit, and the bytes that entries are hashed from.

These files pin what was promised to customers and auditors. They change only together with a new
format, by running this file as a program, and a reviewer reads the difference.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import select

from billing.entry import Entry, EntryHash, genesis_hash
from billing.invoice import invoice_of
from billing.ledger import Ledger
from billing.ledger_schema import entries
from billing.ledger_sqlite import SqliteStore
from billing.meter import Submission
from billing.metrics import BillingMetrics
from billing.period import DAY_NS, HOUR_NS, Period
from billing.price_book_file import parse_price_book
from billing.rating import rate
from billing.statement import invoice_data
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent, event_text
from billing.wire import invoice_message

HERE = Path(__file__).parent
ENTRIES = HERE / "entries.json"
INVOICE = HERE / "invoice.json"

NOVEMBER = 1_761_955_200 * 10**9
"""1 November 2025, 00:00 UTC."""

BOOK = parse_price_book(
    """
format = 1
[[versions]]
name = "2025-01"
effective_time = 2025-01-01T00:00:00Z
currency = "CNY"
source = "golden"
[[versions.prices]]
model = "large-*"
hit = "0.5"
miss = "4"
output = "16"
[[versions.prices]]
model = "*"
hit = "0.1"
miss = "1"
output = "2"
[[versions]]
name = "2025-11-16"
effective_time = 2025-11-16T00:00:00+08:00
currency = "CNY"
source = "golden"
invoice_decimals = 4
[[versions.prices]]
model = "*"
hit = "0.075"
miss = "1.25"
output = "2.333333"
""",
    "golden",
)


def _event(number: int) -> UsageEvent:
    """The number-th event of a month of one every seven hours and a bit."""
    end = NOVEMBER + number * 7 * HOUR_NS + number * 1_234_567_891
    hits = (number * 64, number % 5 * 128, number % 7 * 640, number % 11 * 64)
    miss, output = number % 64 + 1, number * 3 % 257
    reason = list(EndReason)[number % 6]
    if reason in (EndReason.WORKER_LOST, EndReason.ERROR):
        hits, miss, output = (0, 0, 0, 0), 0, 0
    hit = sum(hits)
    return UsageEvent(
        request_id=f"req-{number:05}",
        schema_version=1,
        tenant_id=TenantId("acme" if number % 4 else "beta"),
        model="large-1" if number % 3 == 0 else "small",
        start_time_ns=end - 3_000_000_007,
        end_time_ns=end,
        end_reason=reason,
        tokens=TokenCounts(hit + miss, hit, *hits, miss, output),
        node="node-1",
        client_request_id="naïve ☃ \u202e \x00" if number == 2 else "",
        ttft_ns=None if miss == 0 else 41_000_000 + number,
    )


def _entries() -> list[dict[str, Any]]:
    chain = genesis_hash("golden-ledger")
    found = []
    for position, number in enumerate((1, 2, 3, 4, 5, 60), 1):
        event = _event(number)
        assert event.end_time_ns is not None
        version = BOOK.version_for(event.end_time_ns, event.model)
        entry = Entry(
            position,
            NOVEMBER + 40 * DAY_NS + position,
            event_text(event),
            version.id if version else None,
            rate(event, version),
        )
        chain = entry.hash_after(chain)
        found.append({"bytes": entry.canonical_bytes().decode("ascii"), "hash": chain.hex()})
    unrated = Entry(7, 0, event_text(_event(1)), None, ())
    chain = EntryHash(unrated.hash_after(chain))
    found.append({"bytes": unrated.canonical_bytes().decode("ascii"), "hash": chain.hex()})
    return found


def _invoice() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore(Path(directory))
        ledger = Ledger(store, BOOK, lambda: NOVEMBER + 40 * DAY_NS, BillingMetrics())
        events = [_event(number) for number in range(110)]
        ledger.record([Submission(event, b"") for event in events]).result(30)
        period = Period(NOVEMBER, NOVEMBER + 30 * DAY_NS)
        message = store.read(lambda c: invoice_message(invoice_of(c, TenantId("acme"), period)))
        count = len(store.read(lambda c: c.execute(select(entries.c.position)).all()))
        ledger.close()
        store.close()
    assert count == 110
    return invoice_data(message)


def test_entries_are_the_same_bytes_for_ever() -> None:
    assert _entries() == json.loads(ENTRIES.read_text())


def test_one_months_invoice_is_the_same_to_the_last_digit() -> None:
    assert _invoice() == json.loads(INVOICE.read_text())


if __name__ == "__main__":
    ENTRIES.write_text(json.dumps(_entries(), indent=1) + "\n")
    INVOICE.write_text(json.dumps(_invoice(), indent=1) + "\n")
