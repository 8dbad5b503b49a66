"""The storage meter against sums that are made the slow way, whatever comes and leaves when; and
against what the price book's rating of storage makes of the same spans.
"""

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.price_book import PriceBook
from billing.price_book_file import parse_price_book
from billing.storage import StorageSpan, storage_charges
from cache_service.metering.holding import HOUR_NS
from cache_service.metering.meter import HourUse, Sort, StorageMeter
from kvtier.blocks import Tier

SECOND = 10**9
START = 1_800_000_000 * SECOND  # a full hour
assert START % HOUR_NS == 0
SORTS = [Sort("acme", "m", Tier.HOST), Sort("acme", "n", Tier.SSD), Sort("beta", "m", Tier.HOST)]


@dataclass(frozen=True)
class Span:
    """Nanoseconds from START."""

    sort: Sort
    tokens: int
    start: int
    end: int


def spans_of(unit: int) -> st.SearchStrategy[list[Span]]:
    """Up to some hours, in whole units."""
    longest = 5 * HOUR_NS // unit

    def made(sort: Sort, tokens: int, start: int, length: int) -> Span:
        return Span(sort, tokens, start * unit, (start + length) * unit)

    times = st.one_of(
        st.integers(0, longest), st.integers(0, 5).map(lambda hour: hour * HOUR_NS // unit)
    )
    lengths = st.one_of(
        st.integers(1, longest), st.integers(1, 3).map(lambda hours: hours * HOUR_NS // unit)
    )
    each = st.builds(made, st.sampled_from(SORTS), st.integers(1, 10**6), times, lengths)
    return st.lists(each, max_size=12)


def metered(spans: list[Span], looks: list[int], end: int) -> list[HourUse]:
    """What the meter says; `looks`: when it is only asked."""
    now = [START]
    meter = StorageMeter(lambda: now[0])
    phases: dict[int, int] = {}
    # What leaves at a moment leaves before anything comes at it.
    moments = [(span.end, 0, at) for at, span in enumerate(spans)]
    moments += [(span.start, 1, at) for at, span in enumerate(spans)]
    moments += [(look, 2, 0) for look in looks]
    found: list[HourUse] = []
    for moment, what, at in sorted(moments):
        now[0] = START + moment
        if what == 0:
            meter.left(spans[at].sort, {phases[at]: spans[at].tokens})
        elif what == 1:
            phases[at] = meter.came(spans[at].sort, spans[at].tokens)
        else:
            assert all(each.use.token_milliseconds >= 0 for each in meter.uses())
            found += meter.take_hours()
        meter.check_integrity()
    now[0] = START + end
    assert meter.tokens() == {}
    return found + meter.close()


@given(spans_of(1), st.lists(st.integers(0, 9 * HOUR_NS), max_size=6))
def test_the_integral_is_what_brute_force_makes_of_it(spans: list[Span], looks: list[int]) -> None:
    uses = metered(spans, looks, 12 * HOUR_NS)
    keys = [(each.sort, each.start_ns // HOUR_NS) for each in uses]
    assert len(set(keys)) == len(keys), "an hour was cut twice"
    for sort in SORTS:
        own = [span for span in spans if span.sort == sort]
        exact = sum(span.tokens * (span.end - span.start) for span in own)
        said = sum(each.use.token_milliseconds for each in uses if each.sort == sort)
        # What is less than a millisecond is taken over while anything is kept.
        assert 0 <= exact - said * 10**6 < 10**6 * (len(own) + 1)
        if own:
            assert said == exact // 10**6 or len(own) > 1
    for each in uses:
        assert each.start_ns // HOUR_NS == (each.end_ns - 1) // HOUR_NS
        assert each.use.token_milliseconds <= (
            each.use.maximum_tokens * -(-(each.end_ns - each.start_ns) // 10**6) + 1
        )


def book_of(meter: str) -> PriceBook:
    prices = 'hit = "1"\nmiss = "1"\noutput = "1"\n'
    storage = f'storage = {{ price = "1", meter = "{meter}" }}\n'
    head = 'format = 2\n[[versions]]\nname = "v"\neffective_time = 2025-01-01T00:00:00Z\n'
    money = 'currency = "CNY"\nsource = "test"\n[[versions.prices]]\nmodel = "*"\n'
    return parse_price_book(head + money + prices + storage, "b")


BOOKS = {name: book_of(name) for name in ("exact_seconds", "hourly_maximum", "started_hour")}


@pytest.mark.parametrize("name", sorted(BOOKS))
@given(spans=spans_of(SECOND), looks=st.lists(st.integers(0, 9 * HOUR_NS), max_size=4))
def test_each_meter_of_a_price_book_gives_what_rating_gives_for_the_spans(
    name: str, spans: list[Span], looks: list[int]
) -> None:
    uses = metered(spans, looks, 12 * HOUR_NS)
    for sort in SORTS:
        own = [
            StorageSpan(sort.model, span.tokens, START + span.start, START + span.end)
            for span in spans
            if span.sort == sort
        ]
        charges = storage_charges(own, BOOKS[name], START, START + 12 * HOUR_NS)
        wanted = sum((charge.token_hours for charge in charges), Fraction(0))
        mine = [each.use for each in uses if each.sort == sort]
        said = {
            "exact_seconds": Fraction(sum(u.token_milliseconds for u in mine), 3_600_000),
            "hourly_maximum": Fraction(sum(u.maximum_tokens for u in mine)),
            "started_hour": Fraction(sum(u.started_tokens for u in mine)),
        }
        assert said[name] == wanted
