"""Any price book and any events, in any order and as often as you like."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from billing.entry import Entry
from billing.errors import PriceBookError
from billing.invoice import invoice_of
from billing.ledger import Ledger
from billing.ledger_schema import entries, postings
from billing.ledger_sqlite import SqliteStore
from billing.ledger_verify import verify_ledger
from billing.meter import Outcome, RecordStatus, Submission, posting_rows
from billing.metrics import BillingMetrics
from billing.money import amount_of
from billing.period import Period
from billing.price_book import Price, PriceBook, PriceVersion, version_from_text
from billing.price_book_file import parse_price_book
from billing.rating import rate
from billing.report import UsageQuery, usage_rows
from billing.usage import EndReason, TenantId, TokenCounts, UsageEvent, event_from_text, event_text
from billing.usage_sums import stored_versions

NOW = 1_000_000 * 10**9

money = st.decimals(min_value=0, max_value=10**6, places=6).map(
    lambda d: Decimal(format(d.copy_abs(), "f"))
)
prices = st.builds(
    Price,
    st.sampled_from(["*", "m?", "m1", "other-*"]),
    hit=money,
    miss=money,
    output=money,
    cache_write=st.dictionaries(st.sampled_from(["", "1h", "*"]), money).map(
        lambda by_class: tuple(sorted(by_class.items()))
    ),
)


@st.composite
def books(draw: st.DrawFn) -> PriceBook:
    starts = draw(st.lists(st.integers(0, NOW), min_size=1, max_size=4, unique=True).map(sorted))
    return PriceBook(
        tuple(
            PriceVersion(
                name=f"v{number}",
                effective_time_ns=start,
                currency="CNY",
                source="drawn",
                invoice_decimals=draw(st.integers(0, 12)),
                prices=tuple(draw(st.lists(prices, min_size=1, max_size=3))),
            )
            for number, start in enumerate(starts)
        )
    )


@st.composite
def events(draw: st.DrawFn, request_id: str) -> UsageEvent:
    tiers = [draw(st.integers(0, 10**6)) for _ in range(4)]
    miss, output = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    reason = draw(st.sampled_from(EndReason))
    if reason is EndReason.WORKER_LOST:
        tiers, miss, output = [0, 0, 0, 0], 0, 0
    start, end = sorted((draw(st.integers(0, NOW)), draw(st.integers(0, NOW))))
    hit = sum(tiers)
    return UsageEvent(
        request_id=request_id,
        schema_version=1,
        tenant_id=TenantId(draw(st.sampled_from(["a", "b"]))),
        model=draw(st.sampled_from(["m1", "m2", "other-x"])),
        start_time_ns=start,
        end_time_ns=end,
        end_reason=reason,
        tokens=TokenCounts(
            hit + miss,
            hit,
            *tiers,
            miss,
            output,
            cache_write := draw(st.integers(0, miss + output)),
            draw(st.sampled_from(["", "1h", "5m"])) if cache_write else "",
        ),
        node="n",
        client_request_id=draw(st.text(max_size=5)),
        ttft_ns=draw(st.none() | st.integers(0, 10**12)),
    )


@st.composite
def event_sets(draw: st.DrawFn) -> list[UsageEvent]:
    count = draw(st.integers(1, 12))
    return [draw(events(f"r{number}")) for number in range(count)]


@contextmanager
def till(book: PriceBook) -> Iterator[tuple[SqliteStore, Ledger]]:
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore(Path(directory))
        ledger = Ledger(store, book, lambda: NOW, BillingMetrics())
        try:
            yield store, ledger
        finally:
            ledger.close()
            store.close()


def record(ledger: Ledger, batch: list[UsageEvent]) -> list[Outcome]:
    return ledger.record([Submission(e, event_text(e).encode()) for e in batch]).result(30)


def rows_of(store: SqliteStore, table: Any, *order: Any) -> list[dict[str, Any]]:
    query = select(table).order_by(*order)
    return store.read(lambda c: [dict(row) for row in c.execute(query).mappings()])


@given(books(), event_sets())
@settings(max_examples=40, deadline=None)
def test_the_money_adds_up_however_it_is_asked(book: PriceBook, batch: list[UsageEvent]) -> None:
    with till(book) as (store, ledger):
        record(ledger, batch)
        lines = rows_of(store, postings, postings.c.position, postings.c.line)
        assert sum(Decimal(line["amount"]) for line in lines) == 0
        for tenant in {event.tenant_id for event in batch}:
            owed = sum(
                Decimal(line["amount"])
                for line in lines
                if line["account"] == f"receivable/{tenant}"
            )
            report = store.read(lambda c, t=tenant: usage_rows(c, UsageQuery(tenant_id=t)))
            assert sum(row.amount for row in report) == owed
            invoice = store.read(lambda c, t=tenant: invoice_of(c, t, Period()))
            assert invoice.total == sum(line.amount for line in invoice.lines)
            exact = sum(amount_of(x.quantity_tokens, x.unit_price) for x in invoice.lines)
            assert exact == owed
            decimals = {v.name: v.invoice_decimals for v in book.versions}
            slack = sum(Decimal(5).scaleb(-decimals[x.price_version] - 1) for x in invoice.lines)
            assert abs(invoice.total - owed) <= slack


@given(books(), event_sets())
@settings(max_examples=30, deadline=None)
def test_replaying_what_is_stored_gives_the_same_bytes(
    book: PriceBook, batch: list[UsageEvent]
) -> None:
    with till(book) as (store, ledger):
        record(ledger, batch)
        versions = store.read(stored_versions)
        lines = rows_of(store, postings, postings.c.position, postings.c.line)
        for row, event in zip(rows_of(store, entries, entries.c.position), batch, strict=True):
            assert event_from_text(row["event"]) == event
            expected = book.version_for(event.end_time_ns or 0, event.model)
            version = versions.get(row["price_id"])
            assert version == expected
            replayed = rate(event_from_text(row["event"]), version)
            stored = [line for line in lines if line["position"] == row["position"]]
            assert posting_rows(row["position"], replayed) == stored
            first, second = (
                Entry(row["position"], NOW, row["event"], row["price_id"], which)
                for which in (replayed, rate(event, expected))
            )
            assert first.canonical_bytes() == second.canonical_bytes()
        found = store.read(lambda c: verify_ledger(c, ledger.head))
        assert (found.problem, found.entry_count) == ("", len(batch))


@given(event_sets(), st.data())
@settings(max_examples=40, deadline=None)
def test_redelivery_in_any_order_gives_each_event_exactly_once(
    batch: list[UsageEvent], data: st.DataObject
) -> None:
    book = PriceBook((PriceVersion("v", 0, "CNY", "s", 6, (Price("*", *[Decimal(1)] * 3),)),))
    again = st.lists(st.sampled_from(batch), max_size=8)
    deliveries = data.draw(st.permutations([*batch, *data.draw(again)]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(deliveries)), max_size=4)))
    with till(book) as (store, ledger):
        outcomes = []
        for start, end in zip([0, *cuts], [*cuts, len(deliveries)], strict=True):
            outcomes += record(ledger, deliveries[start:end])
        stored = [
            event_from_text(row["event"]) for row in rows_of(store, entries, entries.c.position)
        ]
        assert sorted(stored, key=lambda e: e.request_id) == sorted(
            batch, key=lambda e: e.request_id
        )
        accepted = [o.request_id for o in outcomes if o.status is RecordStatus.ACCEPTED]
        assert sorted(accepted) == sorted(e.request_id for e in batch)
        positions = {o.request_id: o.position for o in outcomes if o.position}
        assert all(positions[o.request_id] == o.position for o in outcomes)
        assert not [o for o in outcomes if o.status is RecordStatus.CONFLICT]


@given(books())
@settings(max_examples=60, deadline=None)
def test_a_stored_version_is_the_same_version(book: PriceBook) -> None:
    for version in book.versions:
        assert version_from_text(version.text).id == version.id


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_no_text_makes_the_price_book_reader_stumble(text: str) -> None:
    for candidate in (text, f"format = 1\n[[versions]]\n{text}"):
        with suppress(PriceBookError):
            assert parse_price_book(candidate, "b").versions
