from collections.abc import Callable
from typing import Any

import pytest

from billing.usage import EndReason, Refusal, UsageEvent, event_from_text, event_text, refusal_of

Events = Callable[..., UsageEvent]


def test_a_well_formed_event_is_accepted(usage_event: Events, now_ns: int) -> None:
    assert refusal_of(usage_event(), now_ns) is None


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"request_id": ""}, Refusal.MISSING_ID),
        ({"tenant_id": ""}, Refusal.MISSING_TENANT),
        ({"model": ""}, Refusal.MISSING_MODEL),
        ({"schema_version": 2}, Refusal.UNKNOWN_SCHEMA),
        ({"schema_version": 0}, Refusal.UNKNOWN_SCHEMA),
        ({"end_reason": None}, Refusal.UNKNOWN_END_REASON),
        ({"tenant_id": "a\nb"}, Refusal.INVALID_TEXT),
        ({"model": "m" * 1025}, Refusal.INVALID_TEXT),
        ({"start_time_ns": None}, Refusal.MISSING_TIME),
        ({"end_time_ns": None}, Refusal.MISSING_TIME),
        ({"start_time_ns": -1}, Refusal.TIME_RANGE),
        ({"ttft_ns": -1}, Refusal.TIME_RANGE),
        ({"end_time_ns": 1_800_000_000 * 10**9 - 3 * 10**9}, Refusal.TIME_ORDER),
        ({"end_time_ns": 1_900_000_000 * 10**9}, Refusal.FUTURE),
        ({"hit": -1, "miss": 201, "hit_host": -1}, Refusal.NEGATIVE_QUANTITY),
        ({"output": -5}, Refusal.NEGATIVE_QUANTITY),
        ({"output": 10**10 + 1}, Refusal.QUANTITY_TOO_LARGE),
        ({"prompt": 201}, Refusal.HIT_MISS_SUM),
        ({"hit_gpu": 1}, Refusal.TIER_SUM),
        ({"cache_write": -1}, Refusal.NEGATIVE_QUANTITY),
        ({"miss": 5, "output": 6, "cache_write": 12}, Refusal.CACHE_WRITE_SUM),
        ({"end_reason": EndReason.WORKER_LOST}, Refusal.LOST_WITH_TOKENS),
    ],
)
def test_an_event_that_makes_no_sense_is_refused_with_its_reason(
    usage_event: Events, now_ns: int, changes: dict[str, Any], refusal: Refusal
) -> None:
    assert refusal_of(usage_event(**changes), now_ns) is refusal


def test_a_clock_that_runs_ahead_by_hours_is_tolerated(usage_event: Events, now_ns: int) -> None:
    assert refusal_of(usage_event(end_time_ns=now_ns + 8 * 3600 * 10**9), now_ns) is None


def test_no_client_can_dodge_the_bill_with_a_strange_name(usage_event: Events, now_ns: int) -> None:
    event = usage_event(client_request_id="\x00\n\u202e" * 2000)
    assert refusal_of(event, now_ns) is None
    assert event_from_text(event_text(event)) == event


def test_a_request_that_took_no_time_and_no_token_is_an_event(
    usage_event: Events, now_ns: int
) -> None:
    event = usage_event(
        start_time_ns=now_ns,
        hit=0,
        miss=0,
        output=0,
        ttft_ns=None,
        end_reason=EndReason.WORKER_LOST,
    )
    assert refusal_of(event, now_ns) is None
    assert event_from_text(event_text(event)) == event


def test_cache_writes_are_in_the_text_and_without_them_it_is_that_of_before(
    usage_event: Events, now_ns: int
) -> None:
    plain = usage_event()
    assert "cache_write" not in event_text(plain)
    written = usage_event(cache_write=64, cache_write_ttl_class='1"h')
    assert refusal_of(written, now_ns) is None
    head = '{"cache_write":64,"cache_write_ttl_class":"1\\"h",'
    assert event_text(written) == head + event_text(plain)[1:]
    forever = usage_event(cache_write=64)
    for event in (plain, written, forever, usage_event(cache_write_ttl_class="x")):
        assert event_from_text(event_text(event)) == event
    with pytest.raises(ValueError):
        event_from_text('{"cache_write":0,"cache_write_ttl_class":"",' + event_text(plain)[1:])


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"request_id":"r1"}', "\x00"])
def test_text_that_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        event_from_text(text)


def test_text_that_says_the_same_in_other_bytes_is_refused(usage_event: Events) -> None:
    text = event_text(usage_event())
    for other in (
        text + " ",
        text.replace(":", ": ", 1),
        text.replace('"output":10', '"output":10.0'),
    ):
        assert other != text
        with pytest.raises(ValueError):
            event_from_text(other)
