"""A period under another book: from a real ledger, and nothing in it changes."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from billing.errors import BookRefusedError, InvalidGroupError
from billing.period import Period
from billing.price_book import PriceBook
from billing.price_book_file import given_book, parse_price_book
from billing.rerating import ReratedRow, RerateQuery, rerated_rows
from billing.usage import UsageEvent
from kvtier.serving import ShuttingDownError
from tests.unit.billing.price_books import HEAD, NIGHT, PRICE

Events = Callable[..., UsageEvent]
HALF = HEAD + NIGHT + PRICE + '[[versions.prices.windows]]\nwindow = "night"\ntimes = "0.5"\n'


def rerated(till: Any, text: str, **query: Any) -> list[ReratedRow]:
    book = parse_price_book(text, "b")
    rows: list[ReratedRow] = till.store.read(lambda c: rerated_rows(c, RerateQuery(**query), book))
    return rows


def sums(found: dict[str, Any]) -> dict[str, tuple[Decimal, int]]:
    return {currency: (each.amount, each.request_count) for currency, each in found.items()}


def test_the_same_book_gives_the_same_amounts(
    till: Any, usage_event: Events, book_text: str
) -> None:
    till.record(usage_event("a"), usage_event("b", model="big-1", tenant_id="beta"))
    for row in rerated(till, book_text, group_by=("tenant", "model")):
        assert sums(row.charged) == sums(row.rerated)
        assert {each.saved for each in row.charged.values()} == {
            each.saved for each in row.rerated.values()
        }


def test_each_event_is_rated_at_its_own_time(till: Any, usage_event: Events, now_ns: int) -> None:
    # 08:00 UTC is 16:00 in Shanghai; eight hours later it is midnight there.
    later = now_ns + 8 * 3_600 * 10**9
    till.record(
        usage_event("day", hit=0, miss=1_000_000, output=0),
        usage_event(
            "night", hit=0, miss=1_000_000, output=0, start_time_ns=later, end_time_ns=later
        ),
    )
    (row,) = rerated(till, HALF)
    assert sums(row.charged) == {"CNY": (Decimal(2), 2)}
    assert sums(row.rerated) == {"CNY": (Decimal("1.5"), 2)}
    days = rerated(till, HALF, group_by=("day",), period=Period(now_ns, now_ns + 1))
    assert [(x.group, sums(x.rerated)) for x in days] == [
        (("2027-01-15",), {"CNY": (Decimal(1), 1)})
    ]


def test_what_one_of_both_does_not_cover_is_counted_apart(till: Any, usage_event: Events) -> None:
    till.record(
        usage_event("a", hit=0, miss=1_000_000, output=0),
        usage_event("old", start_time_ns=0, end_time_ns=1),
    )
    only = (HEAD + PRICE).replace('model = "*"', 'model = "other"').replace("CNY", "EUR")
    (row,) = rerated(till, only)
    assert sums(row.charged) == {"CNY": (Decimal(1), 1), "": (Decimal(0), 1)}
    assert sums(row.rerated) == {"": (Decimal(0), 2)}
    (row,) = rerated(till, (HEAD + PRICE).replace("CNY", "EUR").replace("2025", "1970"))
    assert sums(row.rerated)["EUR"][1] == 2


def test_nothing_changes(till: Any, usage_event: Events) -> None:
    till.record(usage_event("a"))
    head = till.ledger.head
    rerated(till, HALF)
    assert till.ledger.head == head
    assert till.verify().problem == ""


def test_groups_are_those_of_reports(till: Any) -> None:
    with pytest.raises(InvalidGroupError):
        rerated(till, HALF, group_by=("week",))
    assert rerated(till, HALF) == []


def test_it_gives_up_when_the_service_stops(
    till: Any, usage_event: Events, book: PriceBook
) -> None:
    till.record(usage_event("a"))
    with pytest.raises(ShuttingDownError):
        till.store.read(lambda c: rerated_rows(c, RerateQuery(), book, lambda: True))


def test_a_callers_book_is_refused_with_its_lines_and_name() -> None:
    with pytest.raises(BookRefusedError, match=r"mine\.toml:10: "):
        given_book(HEAD + PRICE.replace('"1"', "1"), "mine.toml")
    with pytest.raises(BookRefusedError, match="the book"):
        given_book("", "")
    with pytest.raises(BookRefusedError, match="over 1048576"):
        given_book("#" * (1024 * 1024 + 1), "")
