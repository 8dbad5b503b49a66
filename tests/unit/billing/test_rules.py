"""Each rule of a card, by itself and with others."""

from decimal import Decimal

import pytest

from billing.rating import Facts, rated_lines
from tests.unit.billing.price_books import HOUR, NIGHT, PRICE, START, charged, tokens_of, version_of

DAY = 24 * HOUR


def test_a_relative_rate_follows_what_it_is_relative_to() -> None:
    relative = PRICE.replace('hit = "0.1"', 'hit = { times = "0.1", of = "miss" }')
    step = '[[versions.prices.steps]]\nprompt_above = 100\nmiss = "3"\n'
    version = version_of(step, price=relative)
    assert charged(version, tokens_of(hit=50, miss=50)) == [
        ("hit", 50, "0.1", ""),
        ("miss", 50, "1", ""),
    ]
    assert charged(version, tokens_of(hit=51, miss=50)) == [
        ("hit", 51, "0.3", "prompt over 100"),
        ("miss", 50, "3", "prompt over 100"),
    ]


def test_times_of_a_rate_reaches_those_relative_to_it_and_times_of_all_is_applied_once() -> None:
    relative = PRICE.replace('hit = "0.1"', 'hit = { times = "0.1", of = "miss" }')
    classes = (
        '[[versions.prices.classes]]\nclass = "half"\nmiss = { times = "0.5" }\n'
        '[[versions.prices.classes]]\nclass = "batch"\ntimes = "0.5"\n'
    )
    version = version_of(classes, price=relative)
    tokens = tokens_of(hit=1, miss=1, output=1)
    assert [x[2] for x in charged(version, tokens, service_class="half")] == ["0.05", "0.5", "2"]
    assert [x[2] for x in charged(version, tokens, service_class="batch")] == ["0.05", "0.5", "1.0"]
    assert [x[3] for x in charged(version, tokens, service_class="other")] == ["", "", ""]


def test_short_prompts_have_no_hits_and_long_ones_whole_steps_of_them() -> None:
    rule = "minimum_prompt_tokens = 1024\nhit_step_tokens = 128\nminimum_hit_tokens = 256\n"
    version = version_of(rule)

    def counts(hit: int, miss: int) -> list[int]:
        lines = charged(version, tokens_of(hit=hit, miss=miss))
        return [sum(x[1] for x in lines if x[0] == meter) for meter in ("hit", "miss")]

    assert counts(1000, 23) == [0, 1023]
    assert counts(1000, 24) == [896, 128]
    assert counts(255, 2000) == [0, 2255]
    assert counts(256, 2000) == [256, 2000]
    assert counts(383, 2000) == [256, 2127]


def test_the_farthest_tier_loses_its_hits_first() -> None:
    price = PRICE + 'hit_ssd = "0.3"\nhit_step_tokens = 100\n'
    version = version_of("", price=price)
    assert charged(version, tokens_of(hit=150, ssd=120)) == [
        ("hit", 150, "0.1", ""),
        ("hit_ssd", 50, "0.3", ""),
        ("miss", 70, "1", ""),
    ]


def test_cache_writes_on_top_or_in_place_of_miss() -> None:
    writes = 'cache_write = { "1h" = { times = "2", of = "miss" }, "*" = "1.25" }\n'
    on_top = version_of("", price=PRICE + writes)
    instead = version_of("", price=PRICE + writes + 'cache_write_mode = "instead"\n')
    tokens = tokens_of(hit=8, miss=100, output=20, write=110, ttl="1h")
    assert charged(on_top, tokens) == [
        ("hit", 8, "0.1", ""),
        ("miss", 100, "1", ""),
        ("output", 20, "2", ""),
        ("cache_write", 110, "2", ""),
    ]
    assert charged(instead, tokens) == [
        ("hit", 8, "0.1", ""),
        ("cache_write", 100, "2", ""),
        ("output", 20, "2", ""),
    ]
    other = tokens_of(miss=100, write=64, ttl="5m")
    assert charged(instead, other) == [("cache_write", 64, "1.25", ""), ("miss", 36, "1", "")]


def test_the_last_step_that_holds_is_for_the_whole_request() -> None:
    steps = (
        '[[versions.prices.steps]]\noutput_above = 200\noutput = "4"\n'
        '[[versions.prices.steps]]\nprompt_above = 1000\nmiss = "2"\noutput = "8"\n'
    )
    version = version_of(steps)
    assert [x[2] for x in charged(version, tokens_of(miss=1000, output=200))] == ["1", "2"]
    assert [x[2] for x in charged(version, tokens_of(miss=1000, output=201))] == ["1", "4"]
    assert [x[2] for x in charged(version, tokens_of(miss=1001, output=201))] == ["2", "8"]


def test_marginal_steps_hold_for_the_tokens_past_them() -> None:
    steps = (
        'steps_apply = "marginal"\n'
        '[[versions.prices.steps]]\nprompt_above = 100\ntimes = "2"\n'
        '[[versions.prices.steps]]\nprompt_above = 200\ntimes = "3"\n'
    )
    version = version_of(steps)
    assert charged(version, tokens_of(hit=150, miss=100, output=7)) == [
        ("hit", 100, "0.1", ""),
        ("hit", 50, "0.2", "prompt over 100"),
        ("miss", 50, "2", "prompt over 100"),
        ("miss", 50, "3", "prompt over 200"),
        ("output", 7, "6", "prompt over 200"),
    ]
    assert charged(version, tokens_of(hit=100)) == [("hit", 100, "0.1", "")]


@pytest.mark.parametrize(
    ("utc_hours", "rule"),
    [
        (13.99, ""),
        (14, "window night"),
        (21.99, "window night"),
        (22, ""),
    ],
)
def test_a_window_past_midnight_in_its_zone(utc_hours: float, rule: str) -> None:
    version = version_of('[[versions.prices.windows]]\nwindow = "night"\ntimes = "0.5"\n', NIGHT)
    time_ns = START + int(utc_hours * 3600) * 10**9
    assert charged(version, tokens_of(miss=1), time_ns)[0][3] == rule


def test_working_days_know_holidays_and_days_worked_instead() -> None:
    times = NIGHT.replace('hours = ["22:00-06:00"]', 'days = ["workday"]\nhours = ["08:00-18:00"]')
    version = version_of('[[versions.prices.windows]]\nwindow = "night"\ntimes = "2"\n', times)

    def peak(month: int, day: int) -> bool:
        # Noon in Shanghai is 04:00 UTC.
        days = {9: 243, 10: 273}[month] + day - 1
        return charged(version, tokens_of(miss=1), START + days * DAY + 4 * HOUR)[0][3] != ""

    assert [peak(9, 26), peak(9, 27), peak(9, 28)] == [True, False, True]  # Fri, Sat, worked Sun
    assert [peak(9, 30), peak(10, 1), peak(10, 2), peak(10, 3)] == [True, False, False, True]


def test_a_window_keeps_to_the_clock_when_clocks_change() -> None:
    times = NIGHT.replace("Asia/Shanghai", "America/New_York").replace("22:00-06:00", "09:00-10:00")
    version = version_of('[[versions.prices.windows]]\nwindow = "night"\ntimes = "2"\n', times)

    def held(day: int, utc_hour: int) -> bool:
        at = START + day * DAY + utc_hour * HOUR
        return charged(version, tokens_of(miss=1), at)[0][3] != ""

    # 9 March 2025 is day 67.
    assert [held(66, 14), held(66, 13), held(67, 13), held(67, 14)] == [True, False, True, False]


def test_a_promotion_has_its_first_moment_and_not_its_last() -> None:
    version = version_of(
        '[[versions.prices.promotions]]\nname = "launch"\nfrom = 2025-01-02T00:00:00Z\n'
        'until = 2025-01-03T00:00:00Z\ntimes = "0.25"\n'
    )
    rules = [
        charged(version, tokens_of(miss=1), at)[0][3]
        for at in (START + DAY - 1, START + DAY, START + 2 * DAY - 1, START + 2 * DAY)
    ]
    assert rules == ["", "promotion launch", "promotion launch", ""]


def test_layers_stack_in_their_order() -> None:
    version = version_of(
        '[[versions.prices.steps]]\nprompt_above = 10\nmiss = "4"\n'
        '[[versions.prices.windows]]\nwindow = "night"\nmiss = { times = "0.5" }\n'
        '[[versions.prices.classes]]\nclass = "batch"\ntimes = "0.5"\n'
        '[[versions.prices.promotions]]\nname = "p"\nfrom = 2025-01-01T00:00:00Z\n'
        'until = 2025-02-01T00:00:00Z\ntimes = "0.1"\n',
        NIGHT,
    )
    (line,) = charged(version, tokens_of(miss=11), START + 15 * HOUR, "batch")
    rule = "prompt over 10; window night; class batch; promotion p"
    assert (line[0], line[1], Decimal(line[2]), line[3]) == ("miss", 11, Decimal("0.1"), rule)


def test_tokens_are_rounded_up_and_requests_have_a_price() -> None:
    version = version_of("", price=PRICE + 'round_up_tokens = 100\nrequest = "0.003"\nper = 1000\n')
    lines = rated_lines(Facts("m", tokens_of(hit=1, miss=100, output=101), START), version)
    assert [(x.key.meter, x.quantity, x.amount) for x in lines] == [
        ("hit", 100, Decimal("0.01")),
        ("miss", 100, Decimal("0.1")),
        ("output", 200, Decimal("0.4")),
        ("request", 1, Decimal("0.003")),
    ]
    assert rated_lines(Facts("m", tokens_of(), START), version) == ()


def test_what_the_cache_saved_is_against_a_miss_and_writes_cost() -> None:
    writes = 'cache_write = { "*" = "1.25" }\ncache_write_mode = "instead"\n'
    version = version_of("", price=PRICE + writes)
    lines = rated_lines(
        Facts("m", tokens_of(hit=1_000_000, miss=1_000_000, write=400_000), START), version
    )
    saved = {x.key.meter: x.key.saved(x.quantity) for x in lines}
    assert saved == {"hit": Decimal("0.9"), "cache_write": Decimal("-0.1"), "miss": 0}
