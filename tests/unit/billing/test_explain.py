"""Why a request costs what it costs."""

from billing.explain import explained_lines, notes_of
from billing.price_book import PriceVersion
from billing.rating import Facts, rated_lines
from billing.usage import TokenCounts
from tests.unit.billing.price_books import HOUR, NIGHT, PRICE, START, tokens_of, version_of

NIGHTLY = (
    '[[versions.prices.steps]]\nprompt_above = 10\nmiss = "4"\n'
    '[[versions.prices.windows]]\nwindow = "night"\nmiss = { times = "0.5" }\ntimes = "0.1"\n'
)


def why(version: PriceVersion, tokens: TokenCounts, time_ns: int = START) -> list[tuple[str, ...]]:
    facts = Facts("m", tokens, time_ns)
    found = explained_lines(facts, version)
    assert tuple(each.line for each in found) == rated_lines(facts, version)
    return [(each.line.key.meter, *each.derivation) for each in found]


def notes(version: PriceVersion, tokens: TokenCounts) -> tuple[str, ...]:
    return notes_of(Facts("m", tokens, START), version)


def test_every_layer_that_made_a_price_is_named() -> None:
    relative = PRICE.replace('hit = "0.1"', 'hit = { times = "0.1", of = "miss" }')
    version = version_of(NIGHTLY, NIGHT, relative)
    assert why(version, tokens_of(hit=11, miss=1), START + 15 * HOUR) == [
        (
            "hit",
            "base: x 0.1 of miss",
            "base: miss 1",
            "prompt over 10: miss 4",
            "window night: miss x 0.5",
            "window night: all x 0.1",
        ),
        (
            "miss",
            "base: 1",
            "prompt over 10: 4",
            "window night: x 0.5",
            "window night: all x 0.1",
        ),
    ]
    assert why(version, tokens_of(output=1)) == [("output", "base: 2")]


def test_cache_writes_name_the_class_that_their_price_is_of() -> None:
    version = version_of("", price=PRICE + 'cache_write = { "1h" = "3", "*" = "5" }\n')
    assert why(version, tokens_of(miss=9, write=9, ttl="5m"))[-1] == ("cache_write", "base: 5")
    assert why(version, tokens_of(miss=9, write=9, ttl="1h"))[-1] == ("cache_write", "base: 3")


def test_what_is_charged_otherwise_than_counted_is_said() -> None:
    rule = "minimum_prompt_tokens = 100\nminimum_hit_tokens = 50\nhit_step_tokens = 20\n"
    version = version_of(rule)
    assert notes(version, tokens_of(hit=60, miss=39)) == (
        "60 hit tokens are charged as miss: the prompt is under 100 tokens",
    )
    assert notes(version, tokens_of(hit=49, miss=60)) == (
        "49 hit tokens are charged as miss: fewer than 50 are no hit",
    )
    assert notes(version, tokens_of(hit=70, miss=60)) == (
        "10 hit tokens are charged as miss: hits count in steps of 20",
    )
    assert notes(version, tokens_of(hit=80, miss=60)) == ()
    assert notes(version, tokens_of(miss=100, write=64)) == (
        "64 cache write tokens cost nothing more",
    )
    rounded = version_of("round_up_tokens = 10\n")
    assert notes(rounded, tokens_of(miss=1)) == ("tokens of each class are rounded up to 10",)


def test_a_model_without_a_price_needs_no_reason() -> None:
    version = version_of("", price=PRICE.replace('"*"', '"other"'))
    assert why(version, tokens_of(miss=1)) == []
    assert notes(version, tokens_of(miss=1)) == ()
