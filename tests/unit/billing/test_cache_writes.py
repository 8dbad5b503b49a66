"""Cache writes: shown by TTL class, and charged on top where the price book says so."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from billing.errors import PriceBookError
from billing.invoice import Invoice, invoice_of
from billing.period import Period
from billing.price_book import PriceBook, version_from_text
from billing.price_book_file import parse_price_book
from billing.quote import quote
from billing.rating import facts_of, rate
from billing.report import UsageQuery, UsageRow, usage_rows
from billing.statement import book_data, invoice_data
from billing.tables import show_book, show_invoice
from billing.usage import TenantId, UsageEvent
from billing.wire import invoice_message, version_message
from kvtier.v1 import usage_pb2

Events = Callable[..., UsageEvent]
PRICES = '{ "1h" = "5", "" = "0", "*" = "2" }'


@pytest.fixture
def priced(book_text: str) -> PriceBook:
    text = book_text.replace('output = "2"\n', f'output = "2"\ncache_write = {PRICES}\n')
    return parse_price_book(text, "test")


def invoice(till: Any) -> Invoice:
    found: Invoice = till.store.read(lambda c: invoice_of(c, TenantId("acme"), Period()))
    return found


def report(till: Any, *group_by: str) -> list[UsageRow]:
    rows: list[UsageRow] = till.store.read(
        lambda c: usage_rows(c, UsageQuery(group_by=tuple(group_by)))
    )
    return rows


@pytest.fixture
def written(usage_event: Events, now_ns: int) -> list[UsageEvent]:
    """Under the first version's prices, where the text of a class and its tokens differ."""
    then = {"start_time_ns": now_ns - 40 * 86_400 * 10**9, "end_time_ns": now_ns - 86_400 * 10**9}
    writes = [(64, "1h"), (32, "1h"), (16, "5m"), (8, ""), (0, "")]
    return [
        usage_event(f"w{i}", cache_write=count, cache_write_ttl_class=name, **then)
        for i, (count, name) in enumerate(writes)
    ]


def test_they_are_shown_by_class_and_cost_nothing_without_a_price(
    till: Any, written: list[UsageEvent]
) -> None:
    till.record(*written)
    shown = invoice(till)
    assert shown.cache_writes == (("", 8), ("1h", 96), ("5m", 16))
    assert [line.token_class for line in shown.lines] == ["hit", "miss", "output"]
    assert [line.quantity_tokens for line in shown.lines] == [5 * 128, 5 * 72, 5 * 10]
    (row,) = report(till)
    assert row.cache_writes == {"": 8, "1h": 96, "5m": 16}
    assert (row.request_count, row.miss, row.amount) == (5, 5 * 72, Decimal("0.000524"))
    assert till.verify().problem == ""


def test_a_class_with_a_price_has_a_line_and_a_posting(
    open_till: Any, priced: PriceBook, written: list[UsageEvent]
) -> None:
    till = open_till(priced)
    till.record(*written)
    lines = [x for x in invoice(till).lines if x.token_class == "cache_write"]
    assert [(x.cache_write_ttl_class, x.quantity_tokens, x.unit_price) for x in lines] == [
        ("", 8, Decimal(0)),
        ("1h", 96, Decimal(5)),
        ("5m", 16, Decimal(2)),
    ]
    more = Decimal("0.00048") + Decimal("0.000032")
    assert sum(line.amount for line in lines) == more
    for group_by in ((), ("tenant", "model")):
        (row,) = report(till, *group_by)
        assert row.amount == Decimal("0.000524") + more
    assert till.verify().problem == ""
    till.close()
    again = open_till(priced)
    assert again.verify().problem == ""


def test_what_rating_posts_is_what_a_quote_says(
    priced: PriceBook, written: list[UsageEvent]
) -> None:
    for event in written:
        owed, *credits_ = rate(event, priced.versions[0])
        assert sum(each.amount for each in credits_) == -owed.amount
        assert event.end_time_ns is not None
        said = quote(priced, facts_of(event))
        assert said.amount == owed.amount
        assert ("revenue/cache_write" in [each.account for each in credits_]) == bool(
            event.tokens.cache_write
        )


def test_a_version_with_such_prices_is_read_back_and_one_without_has_the_text_of_before(
    priced: PriceBook, book: PriceBook
) -> None:
    first = priced.versions[0]
    assert version_from_text(first.text) == first
    assert first.text.count('[["","0"],["*","2"],["1h","5"]]') == 1
    assert first.id != book.versions[0].id
    assert '["*","0.1","1","2"]' in book.versions[0].text
    assert priced.versions[1].id == book.versions[1].id


@pytest.mark.parametrize(
    ("prices", "problem"),
    [
        ('"5"', "prices by TTL class"),
        ('{ "1h" = 0.5 }', "is a float"),
        ('{ "1h" = "-1" }', "cache_write.1h"),
        ('{ "a\\nb" = "1" }', "not printable"),
    ],
)
def test_a_book_with_wrong_prices_is_refused(book_text: str, prices: str, problem: str) -> None:
    text = book_text.replace('output = "2"\n', f'output = "2"\ncache_write = {prices}\n')
    with pytest.raises(PriceBookError, match=problem):
        parse_price_book(text, "b")


def test_tables_say_what_was_written_and_what_it_costs(
    open_till: Any, priced: PriceBook, written: list[UsageEvent], capsys: Any
) -> None:
    till = open_till(priced)
    till.record(*written)
    show_invoice(Console(width=120), invoice_data(invoice_message(invoice(till))))
    text = capsys.readouterr().out
    for words in ("cache_write 1h", "cache_write no end", "no end 8, 1h 96, 5m 16"):
        assert words in text
    response = usage_pb2.GetPriceBookResponse(
        versions=[version_message(each) for each in priced.versions]
    )
    show_book(Console(width=120), book_data(response))
    assert "no end 0, * 2, 1h 5" in capsys.readouterr().out
