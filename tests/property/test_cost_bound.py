"""What is held for a request is never less than what its event is charged or weighs."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.cost_bound import RequestShape, cost_bound
from billing.line import total_of
from billing.price_book import PriceBook, PriceVersion
from billing.quota_weight import quota_weight, weight_bound
from billing.rating import Facts, rated_lines
from billing.usage import TokenCounts
from tests.property.priced import DAY, NOW, cards, token_counts, versions


@given(
    versions("v1"),
    st.none() | versions("v2", NOW),
    token_counts(),
    st.integers(0, NOW + DAY),
    st.integers(0, 3 * DAY),
    st.data(),
)
@settings(deadline=None, max_examples=400)
def test_no_event_is_rated_higher_than_its_bound(
    first: PriceVersion,
    second: PriceVersion | None,
    tokens: TokenCounts,
    now_ns: int,
    wait_ns: int,
    data: st.DataObject,
) -> None:
    book = PriceBook((first,) if second is None else (first, second))
    service_class = data.draw(st.sampled_from(["", "batch"]))
    shape = RequestShape(
        "m1",
        tokens.prompt + data.draw(st.integers(0, 3000)),
        tokens.output + data.draw(st.integers(0, 3000)),
        service_class,
        tokens.cache_write_ttl_class,
    )
    bound = cost_bound(book, shape, now_ns, now_ns + wait_ns)
    end_ns = now_ns + data.draw(st.integers(0, wait_ns))
    version = book.version_for(end_ns, "m1")
    if bound is None:
        assert version is None or version.card_of("m1") is None or len(book.versions) == 2
        return
    assert version is not None
    lines = rated_lines(Facts("m1", tokens, end_ns, service_class), version)
    assert total_of(lines) <= bound.amount


def test_a_bound_is_the_whole_prompt_missed_and_the_longest_answer() -> None:
    from billing.price_book_file import load_price_book

    book = load_price_book(None)
    now_ns = book.versions[-1].effective_time_ns + DAY
    shape = RequestShape("demo", 1000, 200)
    miss = TokenCounts(1000, 0, 0, 0, 0, 0, 1000, 200)
    lines = rated_lines(Facts("demo", miss, now_ns), book.versions[-1])
    bound = cost_bound(book, shape, now_ns, now_ns + 10**9)
    assert bound is not None
    assert bound.amount == total_of(lines) > 0


@given(cards(), token_counts(), st.integers(0, 2000), st.integers(0, 2000))
def test_no_event_weighs_more_than_its_bound(
    card: Any, tokens: TokenCounts, prompt: int, output: int
) -> None:
    for each in (card, None, replace(card, quota=())):
        bound = weight_bound(tokens.prompt + prompt, tokens.output + output, each)
        assert quota_weight(tokens, each) <= bound
