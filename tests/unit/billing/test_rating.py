from collections.abc import Callable
from decimal import Decimal

from billing.price_book import PriceBook
from billing.price_book_file import parse_price_book
from billing.rating import rate
from billing.usage import EndReason, UsageEvent

Events = Callable[..., UsageEvent]


def test_each_class_of_tokens_is_credited_and_the_tenant_owes_the_sum(
    usage_event: Events, book: PriceBook
) -> None:
    event = usage_event(hit=4032, miss=64, output=17)
    owed, *credits_ = rate(event, book.versions[0])
    assert owed.account == "receivable/acme"
    assert owed.amount == Decimal("0.0005012")
    assert [(p.account, p.quantity_tokens, p.amount) for p in credits_] == [
        ("revenue/hit", 4032, Decimal("-0.0004032")),
        ("revenue/miss", 64, Decimal("-0.000064")),
        ("revenue/output", 17, Decimal("-0.000034")),
    ]
    assert {p.currency for p in (owed, *credits_)} == {"CNY"}


def test_a_class_without_tokens_has_no_posting(usage_event: Events, book: PriceBook) -> None:
    postings = rate(usage_event(hit=0, output=0), book.versions[0])
    assert [p.token_class for p in postings] == ["", "miss"]


def test_tokens_that_are_free_are_posted_with_their_quantity(
    usage_event: Events, book: PriceBook, book_text: str
) -> None:
    free = parse_price_book(book_text.replace('hit = "0.1"', 'hit = "0"'), "b").versions[0]
    postings = rate(usage_event(miss=0, output=0), free)
    assert [(p.quantity_tokens, p.amount) for p in postings] == [(0, 0), (128, 0)]


def test_a_lost_worker_costs_nothing(usage_event: Events, book: PriceBook) -> None:
    event = usage_event(hit=0, miss=0, output=0, end_reason=EndReason.WORKER_LOST)
    assert rate(event, book.versions[0]) == ()


def test_an_event_without_a_price_has_no_posting(usage_event: Events, book: PriceBook) -> None:
    assert rate(usage_event(), None) == ()
