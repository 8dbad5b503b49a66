"""A journal that a worker of format 3 left behind when it was killed: one event delivered, two that
wait, one request open. Today's worker opens it, loses and doubles none, and goes on.
"""

import shutil
from pathlib import Path

import pytest

from billing.usage import refusal_of
from billing.wire import submission_of
from kvtier.blocks import Tier
from worker.usage_event import AdmittedRequest, UsageEnd
from worker.usage_journal import UsageJournal, UsageOutbox
from worker.usage_wire import event_message

GOLDEN = Path(__file__).parent / "usage_journal_format_3"
START_NS = 1_761_955_200 * 10**9


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    copied = tmp_path / "journal"
    shutil.copytree(GOLDEN, copied)
    return copied


def outbox_of(journal: UsageJournal) -> UsageOutbox:
    return UsageOutbox(
        journal.directory, journal.opening.acknowledged, lambda: journal.durable_sequence
    )


async def test_a_journal_of_format_3_is_read_delivered_and_gone_on_with(directory: Path) -> None:
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
