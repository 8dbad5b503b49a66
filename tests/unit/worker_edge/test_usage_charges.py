"""What each end of a request charges: the table in docs/billing.md, row by row."""

from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.blocks import MissReason, Tier
from kvtier.v1 import usage_pb2
from worker.requests import EngineUsage
from worker.usage_event import (
    ChargedTokens,
    UsageEnd,
    charge,
    computed_tokens,
    end_request,
    lose_request,
)
from worker.usage_wire import event_message

FULL = EngineUsage(192, {Tier.GPU: 64, Tier.HOST: 64}, 64, 10, 0.1, 0.2, MissReason.NONE)
EARLY = EngineUsage(96, {Tier.SSD: 64}, 32, 0, 0.1, 0.2, MissReason.NONE)
NOTHING = ChargedTokens()
CLASS = {"cache_write_ttl_class": "1h"}

RULES = {
    UsageEnd.STOP: (FULL, ChargedTokens({Tier.GPU: 64, Tier.HOST: 64}, 64, 10)),
    UsageEnd.LENGTH: (FULL, ChargedTokens({Tier.GPU: 64, Tier.HOST: 64}, 64, 10)),
    UsageEnd.CANCELLED: (EARLY, ChargedTokens({Tier.SSD: 64}, 32, 0)),
    UsageEnd.DEADLINE: (EARLY, ChargedTokens({Tier.SSD: 64}, 32, 0)),
    UsageEnd.ERROR: (FULL, NOTHING),
    UsageEnd.WORKER_LOST: (FULL, NOTHING),
}


@pytest.mark.parametrize("end", UsageEnd)
def test_each_end_charges_what_the_table_says(end):
    usage, expected = RULES[end]
    assert charge(usage, end) == expected
    assert expected.hit_tokens + expected.miss_tokens == expected.prompt_tokens


@pytest.mark.parametrize("end", [UsageEnd.CANCELLED, UsageEnd.DEADLINE])
def test_a_request_ended_after_its_first_token_charges_the_whole_prompt(end):
    assert charge(FULL, end) == ChargedTokens({Tier.GPU: 64, Tier.HOST: 64}, 64, 10)


def test_tokens_made_after_a_stop_string_are_not_charged():
    assert charge(FULL, UsageEnd.STOP, undelivered_tokens=3).completion_tokens == 7


def test_what_was_computed_is_told_whatever_is_charged():
    kept = replace(FULL, written_tokens=64)
    assert computed_tokens(kept, "1h") == charge(kept, UsageEnd.STOP, 0, "1h")
    assert computed_tokens(FULL).completion_tokens == 10


def test_what_was_kept_is_told_with_its_class_and_never_more_than_is_charged():
    kept = replace(FULL, written_tokens=48)
    told = charge(kept, UsageEnd.STOP, ttl_class="1h")
    assert (told.cache_write_tokens, told.cache_write_ttl_class) == (48, "1h")
    assert told == replace(charge(FULL, UsageEnd.STOP), cache_write_tokens=48, **CLASS)
    # Blocks may hold tokens made after a stop string.
    told = charge(replace(FULL, written_tokens=74), UsageEnd.STOP, 6, "1h")
    assert (told.completion_tokens, told.cache_write_tokens) == (4, 68)
    assert charge(FULL, UsageEnd.STOP, ttl_class="1h").cache_write_ttl_class == ""
    for end in (UsageEnd.ERROR, UsageEnd.WORKER_LOST):
        assert charge(kept, end, ttl_class="1h") == NOTHING
    with pytest.raises(ValueError, match="more than it computed"):
        ChargedTokens({Tier.GPU: 64}, 3, 2, 6)


def test_the_table_names_every_end_reason():
    table = (Path(__file__).parents[3] / "docs" / "billing.md").read_text()
    for end in UsageEnd:
        assert f"`{end.name}`" in table


def test_end_reasons_have_the_numbers_of_the_contract():
    assert {f"END_REASON_{e.name}": int(e) for e in UsageEnd} | {"END_REASON_UNSPECIFIED": 0} == (
        dict(usage_pb2.EndReason.items())
    )


def test_a_negative_count_never_becomes_an_event():
    with pytest.raises(ValueError, match="negative"):
        ChargedTokens(miss_tokens=-1)


def test_an_event_never_ends_before_it_began(make_request):
    request = make_request("a")
    assert lose_request(request, now_ns=0).end_time_ns == request.start_time_ns
    ended = end_request(request, UsageEnd.STOP, NOTHING, now_ns=0, ttft_ns=None)
    assert ended.end_time_ns == request.start_time_ns


def test_the_message_to_billing_says_all_of_it(make_event):
    message = event_message(make_event("a"))
    assert message.request_id == "a"
    assert message.tenant_id == "acme"
    assert message.end_reason == usage_pb2.END_REASON_STOP
    assert message.tokens.prompt_tokens == 64 + 128 + 17
    assert message.tokens.hit_tokens_by_tier.gpu == 64
    assert message.tokens.hit_tokens_by_tier.ssd == 128
    assert message.tokens.hit_tokens == 192
    assert message.tokens.cache_write_tokens == 16
    assert message.tokens.cache_write_ttl_class == "5m"
    assert message.end_time.ToNanoseconds() == 2_000_000_000
    assert message.ttft.ToNanoseconds() == 123
    assert message.client_request_id == "client ü"
