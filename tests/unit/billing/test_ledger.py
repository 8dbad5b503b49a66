from collections.abc import Callable
from concurrent.futures import Future
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from billing.errors import LedgerUnavailableError, PriceBookError
from billing.ledger_schema import entries, postings, refused_events
from billing.meter import RecordStatus, Submission
from billing.price_book import PriceBook
from billing.price_book_file import parse_price_book
from billing.usage import UsageEvent

Events = Callable[..., UsageEvent]
Till = Any

_REFUSE = {
    False: (
        "CREATE TRIGGER full_disk BEFORE INSERT ON postings"
        " BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    ),
    True: (
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'disk full'; END $$",
        "CREATE TRIGGER full_disk BEFORE INSERT ON postings"
        " FOR EACH ROW EXECUTE FUNCTION full_disk()",
    ),
}
"""By whether the database is PostgreSQL."""


def _count(till: Till, table: Any) -> int:
    query = select(func.count()).select_from(table)
    return till.store.read(lambda connection: connection.execute(query).scalar_one())


def test_events_get_positions_in_the_order_they_came(till: Till, usage_event: Events) -> None:
    outcomes = till.record(*(usage_event(f"r{i}") for i in range(5)))
    assert [o.position for o in outcomes] == [1, 2, 3, 4, 5]
    assert {o.status for o in outcomes} == {RecordStatus.ACCEPTED}
    assert till.ledger.head.position == 5


def test_the_same_event_again_is_a_duplicate_of_the_first(till: Till, usage_event: Events) -> None:
    till.record(usage_event("a"), usage_event("b"))
    again, twice, thrice = till.record(usage_event("b"), usage_event("c"), usage_event("c"))
    assert (again.status, again.position) == (RecordStatus.DUPLICATE, 2)
    assert (twice.status, twice.position) == (RecordStatus.ACCEPTED, 3)
    assert (thrice.status, thrice.position) == (RecordStatus.DUPLICATE, 3)
    assert _count(till, entries) == 3
    assert _count(till, refused_events) == 0


def test_other_content_under_a_known_name_is_a_conflict_and_kept_aside_once(
    till: Till, usage_event: Events
) -> None:
    till.record(usage_event("a", output=10))
    for _ in range(3):
        (outcome,) = till.record(usage_event("a", output=11))
        assert outcome.status is RecordStatus.CONFLICT
        assert outcome.reason == "OTHER_CONTENT"
        assert outcome.position == 0
    assert _count(till, entries) == 1
    assert _count(till, refused_events) == 1
    (first,) = till.record(usage_event("a", output=10))
    assert first.status is RecordStatus.DUPLICATE


def test_a_rejected_event_is_kept_aside_and_the_rest_of_its_batch_stands(
    till: Till, usage_event: Events
) -> None:
    good, bad, also_good = till.record(
        usage_event("a"), usage_event("b", prompt=7), usage_event("c")
    )
    assert (good.position, bad.position, also_good.position) == (1, 0, 2)
    assert (bad.status, bad.reason) == (RecordStatus.REJECTED, "HIT_MISS_SUM")
    row = till.store.read(lambda c: c.execute(select(refused_events)).one())
    assert (row.request_id, row.reason) == ("b", "HIT_MISS_SUM")
    assert row.wire == repr(usage_event("b", prompt=7)).encode()
    (repaired,) = till.record(usage_event("b"))
    assert repaired.status is RecordStatus.ACCEPTED


def test_an_event_that_no_price_covers_is_kept_unrated(
    till: Till, usage_event: Events, now_ns: int
) -> None:
    (outcome,) = till.record(usage_event("old", start_time_ns=0, end_time_ns=1))
    assert outcome.status is RecordStatus.ACCEPTED
    assert outcome.unrated
    assert _count(till, postings) == 0
    found = till.verify()
    assert (found.problem, found.entry_count, found.unrated_count) == ("", 1, 1)


def test_the_ledger_remembers_for_ever(open_till: Callable[..., Till], usage_event: Events) -> None:
    till = open_till()
    till.record(usage_event("a"), usage_event("b"))
    head = till.ledger.head
    till.close()
    till = open_till()
    assert till.ledger.head == head
    again, new = till.record(usage_event("b"), usage_event("c"))
    assert (again.status, again.position) == (RecordStatus.DUPLICATE, 2)
    assert (new.status, new.position) == (RecordStatus.ACCEPTED, 3)
    assert till.verify().problem == ""


def test_every_posting_of_the_ledger_sums_to_zero(till: Till, usage_event: Events) -> None:
    till.record(*(usage_event(f"r{i}", hit=i, miss=1, output=i * 3) for i in range(50)))
    amounts = till.store.read(lambda c: c.execute(select(postings.c.amount)).scalars().all())
    assert len(amounts) == 4 * 49 + 2
    assert sum(map(Decimal, amounts)) == 0


def test_batches_that_wait_share_one_transaction(till: Till, usage_event: Events) -> None:
    # While another connection holds the write lock, batches pile up behind the writer.
    with till.blocked():
        waiting: list[Future[Any]] = [
            till.ledger.record([Submission(usage_event(f"r{i}"), b"")]) for i in range(20)
        ]
    positions = [future.result(30)[0].position for future in waiting]
    assert positions == list(range(1, 21))
    assert sum(events for events, _ in till.heard.commits) == 20
    assert len(till.heard.commits) <= 3


def test_a_full_queue_says_send_again_and_loses_nothing(till: Till, usage_event: Events) -> None:
    taken: list[Future[Any]] = []

    def offer() -> None:
        taken.append(till.ledger.record([Submission(usage_event(f"r{len(taken)}"), b"")]))

    with till.blocked():
        while len(taken) < 64:
            offer()
        with pytest.raises(LedgerUnavailableError, match="send again"):
            [offer() for _ in range(136)]
    assert 64 <= len(taken) < 200
    assert all(future.result(30)[0].status is RecordStatus.ACCEPTED for future in taken)
    assert till.verify().entry_count == len(taken)


def test_a_call_that_was_given_up_before_its_turn_records_nothing(
    till: Till, usage_event: Events
) -> None:
    with till.blocked():
        first = till.ledger.record([Submission(usage_event("a"), b"")])
        while not first.running():
            pass
        given_up = till.ledger.record([Submission(usage_event("b"), b"")])
        assert given_up.cancel()
    assert first.result(30)[0].position == 1
    assert till.record(usage_event("c"))[0].position == 2


def test_closing_records_what_is_queued_and_takes_no_more(till: Till, usage_event: Events) -> None:
    queued = [till.ledger.record([Submission(usage_event(f"r{i}"), b"")]) for i in range(10)]
    till.ledger.close()
    assert all(future.done() and not future.exception() for future in queued)
    with pytest.raises(LedgerUnavailableError, match="closed"):
        till.record(usage_event("late"))


def test_a_failed_transaction_leaves_nothing_and_the_next_one_works(
    till: Till, usage_event: Events
) -> None:
    till.alter(*_REFUSE[bool(till.url)], guards=True)
    with pytest.raises(LedgerUnavailableError, match="disk full"):
        till.record(usage_event("a"), usage_event("b"))
    assert till.heard.failures == 1
    assert _count(till, entries) == 0
    till.alter(f"DROP TRIGGER full_disk{' ON postings' if till.url else ''}", guards=True)
    assert [o.position for o in till.record(usage_event("a"), usage_event("b"))] == [1, 2]
    assert till.verify().problem == ""


@pytest.mark.parametrize("table", ["entries", "postings", "price_versions", "ledger_meta"])
@pytest.mark.parametrize("verb", ["DELETE FROM {}", "UPDATE {} SET {} = {}"])
def test_the_database_itself_refuses_to_change_or_delete(
    till: Till, usage_event: Events, table: str, verb: str
) -> None:
    column = {
        "entries": "model",
        "postings": "amount",
        "price_versions": "name",
        "ledger_meta": "value",
    }[table]
    till.record(usage_event())
    with pytest.raises(DBAPIError, match="only grows"):
        till.alter(verb.format(table, column, column), guards=True)
    assert till.verify().problem == ""


def test_a_version_that_rated_events_must_not_change(
    open_till: Callable[..., Till], usage_event: Events, book_text: str
) -> None:
    till = open_till()
    till.record(usage_event())
    till.close()
    changed = parse_price_book(book_text.replace('output = "3"', 'output = "4"'), "b")
    with pytest.raises(PriceBookError, match='"second" rated events already'):
        open_till(changed)


def test_a_version_that_rated_nothing_may_still_change(
    open_till: Callable[..., Till], usage_event: Events, book_text: str
) -> None:
    till = open_till()
    till.record(usage_event())
    till.close()
    changed = parse_price_book(book_text.replace('output = "16"', 'output = "17"'), "b")
    assert open_till(changed).record(usage_event())[0].status is RecordStatus.DUPLICATE


def test_a_later_book_leaves_what_was_rated_as_it_is(
    open_till: Callable[..., Till], usage_event: Events, book_text: str, book: PriceBook
) -> None:
    only_first = parse_price_book(book_text[: book_text.rindex("[[versions]]")], "b")
    till = open_till(only_first)
    till.record(usage_event("a"))
    before = till.ledger.head
    till.close()
    till = open_till(book)
    till.record(usage_event("b"))
    found = till.verify()
    assert found.problem == ""
    rated = till.store.read(
        lambda c: c.execute(select(entries.c.price_id).order_by(entries.c.position)).scalars().all()
    )
    assert rated == [book.versions[0].id, book.versions[1].id]
    assert before.position == 1
