"""Three ways to charge what is kept, and that parts add up to the whole."""

from decimal import Decimal
from fractions import Fraction

import pytest

from billing.money import round_fraction
from billing.price_book import PriceBook
from billing.price_book_file import parse_price_book
from billing.storage import StorageSpan, storage_charges
from tests.unit.billing.price_books import HEAD, HOUR, PRICE, START

MINUTE = HOUR // 60
DAY = 24 * HOUR


def book_of(meter: str, price: str = "4.5") -> PriceBook:
    storage = f'storage = {{ price = "{price}", meter = "{meter}" }}\n'
    return parse_price_book(HEAD + PRICE + storage, "b")


def span(tokens: int, start: int, end: int, model: str = "m") -> StorageSpan:
    return StorageSpan(model, tokens, START + start * MINUTE, START + end * MINUTE)


def token_hours(meter: str, *spans: StorageSpan, start: int = 0, end: int = DAY) -> Fraction:
    charges = storage_charges(spans, book_of(meter), START + start, START + end)
    return sum((charge.token_hours for charge in charges), Fraction(0))


def test_exact_seconds_are_charged_as_they_were() -> None:
    assert token_hours("exact_seconds", span(1000, 10, 25)) == 250
    assert token_hours("exact_seconds", span(1000, 10, 25), span(1000, 10, 25)) == 500
    (charge,) = storage_charges([span(10**6, 0, 20)], book_of("exact_seconds"), START, START + DAY)
    assert charge.amount == Fraction(3, 2)
    third = storage_charges([span(1, 0, 20)], book_of("exact_seconds", "1"), START, START + DAY)
    assert third[0].amount == Fraction(1, 3_000_000)
    assert round_fraction(third[0].amount, 9) == Decimal("3.33E-7")


def test_started_hours_are_each_prefixs_own() -> None:
    assert token_hours("started_hour", span(100, 10, 11)) == 100
    assert token_hours("started_hour", span(100, 10, 70)) == 100
    assert token_hours("started_hour", span(100, 10, 71)) == 200
    assert token_hours("started_hour", span(100, 10, 11), span(100, 20, 21)) == 200
    assert token_hours("started_hour", span(100, 10, 10)) == 0


def test_of_an_hour_of_the_clock_the_most_counts() -> None:
    assert token_hours("hourly_maximum", span(100, 10, 11)) == 100
    assert token_hours("hourly_maximum", span(100, 10, 11), span(70, 20, 21)) == 100
    assert token_hours("hourly_maximum", span(100, 10, 30), span(70, 20, 40)) == 170
    assert token_hours("hourly_maximum", span(100, 50, 70)) == 200
    assert token_hours("hourly_maximum", span(100, 30, 60 * 5 + 1)) == 600
    # One replaces the other at the same moment: they were never kept together.
    assert token_hours("hourly_maximum", span(100, 0, 30), span(100, 30, 60)) == 100


@pytest.mark.parametrize("meter", ["exact_seconds", "started_hour", "hourly_maximum"])
@pytest.mark.parametrize("cut", [HOUR, 3 * HOUR, 5 * HOUR, 23 * HOUR])
def test_parts_of_a_time_add_up_to_the_whole(meter: str, cut: int) -> None:
    spans = [span(7, 10, 200), span(11, 95, 96), span(13, 150, 1000), span(17, 300, 301)]
    whole = token_hours(meter, *spans)
    parts = token_hours(meter, *spans, end=cut) + token_hours(meter, *spans, start=cut)
    assert parts == whole != 0


def test_what_lies_outside_of_the_time_is_not_charged() -> None:
    for meter in ("exact_seconds", "started_hour", "hourly_maximum"):
        assert token_hours(meter, span(7, 0, 60), start=HOUR) == 0
        assert token_hours(meter, span(7, 60, 120), end=HOUR) == 0


def test_each_version_charges_its_own_time_and_one_without_a_price_nothing() -> None:
    later = HEAD.replace("format = 2\n", "").replace('"v"', '"w"').replace("T00:00", "T02:00")
    storage = 'storage = { price = "1", meter = "exact_seconds" }\n'
    book = parse_price_book(
        HEAD + PRICE + later + PRICE + storage.replace("exact_seconds", "started_hour"), "b"
    )
    charges = storage_charges([span(10, 0, 180), span(1, 0, 1, "n")], book, START, START + DAY)
    assert [(x.model, x.version.name, x.token_hours) for x in charges] == [("m", "w", 10)]
    assert storage_charges([span(10, 0, 60)], book, 0, START) == []
