"""Journals that workers of older formats, and of today's, left behind when they were killed: one
event delivered, two that wait, one request open. Today's worker opens each, loses and doubles none,
and goes on.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from billing.usage import refusal_of
from billing.wire import submission_of
from kvtier.blocks import Tier
from kvtier.v1 import usage_pb2
from worker.usage_delivery import request_bytes
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    PromptProof,
    ProvenRun,
    UsageEnd,
    UsageEvent,
)
from worker.usage_journal import UsageJournal, UsageOutbox
from worker.usage_wire import event_message

GOLDEN = Path(__file__).parent
START_NS = 1_761_955_200 * 10**9


def copied(tmp_path: Path, number: int) -> Path:
    directory = tmp_path / "journal"
    shutil.copytree(GOLDEN / f"usage_journal_format_{number}", directory)
    return directory


def outbox_of(journal: UsageJournal) -> UsageOutbox:
    return UsageOutbox(
        journal.directory, journal.opening.acknowledged, lambda: journal.durable_sequence
    )


async def test_a_journal_of_format_3_is_read_delivered_and_gone_on_with(tmp_path: Path) -> None:
    directory = copied(tmp_path, 3)
    journal = UsageJournal(directory)
    opening = journal.opening
    assert (opening.acknowledged, opening.undelivered_count, opening.lost_count) == (3, 2, 1)
    assert (opening.torn_bytes, opening.damaged_bytes) == (0, 0)
    second, third, lost = [each.event for each in outbox_of(journal).pending(10)]
    assert second.request == AdmittedRequest(
        "r2", "acme", "small", "node-1", "naïve ☃", START_NS, "search", "u1"
    )
    assert (second.end_time_ns, second.ttft_ns) == (START_NS + 2 * 10**9, 41_000_000)
    assert second.tokens.hit_tokens_by_tier[Tier.HOST] == 256
    assert (second.tokens.miss_tokens, second.tokens.completion_tokens) == (14, 6)
    assert (second.tokens.cache_write_tokens, second.tokens.cache_write_ttl_class) == (10, "1h")
    assert (third.request.project_id, third.request.key_id) == ("", None)
    assert (lost.request.request_id, lost.end) == ("open", UsageEnd.WORKER_LOST)
    for event in (second, third, lost):
        said = submission_of(event_message(event)).event
        assert refusal_of(said, event.end_time_ns) is None
        assert (said.key_id, said.session_id, said.lease_ids, said.proof) == (None,) * 4
    new = AdmittedRequest("new", "acme", "small", "node-1", "", START_NS)
    await journal.begin(new)
    journal.close()
    again = UsageJournal(directory)
    assert [each.event.request.request_id for each in outbox_of(again).pending(10)] == [
        *("r2", "r3", "open", "new")
    ]
    again.close()


def event(name: str, tokens: ChargedTokens, **said: object) -> UsageEvent:
    request = AdmittedRequest(
        *(name, "acme", "small", "node-1", "naïve ☃", START_NS, "search", "u1", "k1"),
        session_id=str(said.pop("session_id", "s1")),
        service_class=str(said.pop("service_class", "")),
    )
    return UsageEvent(request, START_NS + 2 * 10**9, UsageEnd.STOP, tokens, **said)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [4, 5])
def test_a_journal_with_proofs_is_read_and_delivered_to_the_byte(
    tmp_path: Path, number: int
) -> None:
    directory = copied(tmp_path, number)
    journal = UsageJournal(directory, wall_clock_ns=lambda: START_NS + 1)
    opening = journal.opening
    assert (opening.acknowledged, opening.undelivered_count, opening.lost_count) == (3, 2, 1)
    assert (opening.torn_bytes, opening.damaged_bytes) == (0, 0)
    ends = outbox_of(journal).pending(10)
    runs = (ProvenRun({Tier.HOST: 4}, b"h" * 32), ProvenRun({None: 1}, b"c" * 32))
    proof = PromptProof(1, 64, b"k" * 16, b"n" * 16, runs, 2, b"d" * 64)
    tokens = ChargedTokens({Tier.HOST: 256}, 14, 6, 10, "1h")
    second = event("r2", tokens, ttft_ns=41_000_000, lease_ids=("l1", "l2"), proof=proof)
    third = event("r3", tokens, session_id="", service_class="batch", lease_ids=())
    lost = replace(
        event("open", ChargedTokens()), end_time_ns=START_NS + 1, end=UsageEnd.WORKER_LOST
    )
    assert [end.event for end in ends] == [second, third, lost]
    assert [end.name for end in ends] == ["r2", "r3", "open"]
    sent = usage_pb2.RecordUsageRequest(events=map(event_message, (second, third, lost)))
    assert request_bytes(end.wire for end in ends) == sent.SerializeToString()
    journal.close()
