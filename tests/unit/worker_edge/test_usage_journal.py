"""The journal as its callers see it: what comes back after it was closed or killed."""

import asyncio
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from journal.errors import JournalDirectoryError, JournalLockedError, JournalTooNewError
from journal.format import BadLineError, Begin, End, SegmentHead, delivered_path
from journal.journal import JournalLimits
from journal.outbox import DeadLetter
from journal.recovery import read_ends, read_lines
from worker.errors import UsageJournalFailedError
from worker.usage_event import UsageEnd
from worker.usage_journal import UsageJournal, UsageOutbox
from worker.usage_journal_format import FORMAT_VERSION, USAGE_FORMAT, end_fields
from worker.usage_wire import event_message

encode, decode = USAGE_FORMAT.encode, USAGE_FORMAT.decode
segment_path, segment_paths = USAGE_FORMAT.segment_path, USAGE_FORMAT.segment_paths


def outbox_of(journal: UsageJournal) -> UsageOutbox:
    return UsageOutbox(
        journal.directory, journal.opening.acknowledged, lambda: journal.durable_sequence
    )


def pending_ids(journal: UsageJournal) -> list[str]:
    return [p.event.request.request_id for p in outbox_of(journal).pending(10_000)]


async def write(journal: UsageJournal, make_event, *request_ids: str) -> None:
    for request_id in request_ids:
        event = make_event(request_id)
        await journal.begin(event.request)
        await journal.end(event)


def test_every_record_reads_back_as_it_was_written(make_request, make_event):
    for record in (USAGE_FORMAT.head, Begin(make_request("a")), End(make_event("a"))):
        assert decode(encode(7, record).removesuffix(b"\n")) == (7, record)


def test_a_flipped_bit_anywhere_makes_a_line_unreadable(make_event):
    line = encode(7, End(make_event("a"))).removesuffix(b"\n")
    for position in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(BadLineError):
            decode(bytes(flipped))


async def test_an_ended_request_is_pending_and_the_same_after_reopening(tmp_path, make_event):
    journal = UsageJournal(tmp_path)
    await write(journal, make_event, "a", "b")
    assert pending_ids(journal) == ["a", "b"]
    journal.close()

    reopened = UsageJournal(tmp_path)
    assert [p.event for p in outbox_of(reopened).pending(10)] == [make_event("a"), make_event("b")]
    assert reopened.opening.lost_count == 0
    assert reopened.opening.undelivered_count == 2
    reopened.close()


def as_format_1(record: dict) -> bytes:
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%016x %b\n" % (xxhash.xxh3_64_intdigest(body), body)


async def test_a_journal_of_format_1_is_read_delivered_and_gone_on_with(tmp_path, make_event):
    """As a worker left it that knew nothing of cache writes."""
    events = {name: make_event(name) for name in ("told", "waits")}
    records = [{"type": "segment", "format": 1}]
    for event in events.values():
        fields = end_fields(event)
        del fields["cache_write"], fields["proof"]
        records += [{"type": "begin", "request": fields["request"]}, {"type": "end", **fields}]
    lines = [as_format_1({"sequence": n, **each}) for n, each in enumerate(records, 1)]
    segment_path(tmp_path, 1).write_bytes(b"".join(lines))
    delivered_path(tmp_path).write_bytes(as_format_1({"format": 1, "acknowledged": 3}))

    journal = UsageJournal(tmp_path)
    assert (journal.opening.damaged_bytes, journal.opening.lost_count) == (0, 0)
    await write(journal, make_event, "new")
    waits, new = [p.event for p in outbox_of(journal).pending(10)]
    assert new == make_event("new")
    bare = replace(events["waits"].tokens, cache_write_tokens=0, cache_write_ttl_class="")
    assert waits == replace(events["waits"], tokens=bare, proof=None)
    journal.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"commitment": "x"},
        {"runs": 7},
        {"runs": [{"gpu": "1", "digest": "00"}]},
        {"runs": [{"gpu": 1}]},
        {"digests": "?"},
    ],
)
def test_an_end_whose_proof_is_none_does_not_count(make_event, changes):
    fields = end_fields(make_event("a"))
    fields = {"sequence": 7, "type": "end", **fields, "proof": fields["proof"] | changes}
    with pytest.raises(BadLineError):
        decode(as_format_1(fields).removesuffix(b"\n"))


@pytest.mark.parametrize("written", [{}, {"tokens": 1}, {"tokens": "1", "ttl_class": ""}, 7])
def test_an_end_whose_cache_write_is_none_does_not_count(make_event, written):
    fields = {"sequence": 7, "type": "end", **end_fields(make_event("a")), "cache_write": written}
    with pytest.raises(BadLineError):
        decode(as_format_1(fields).removesuffix(b"\n"))


async def test_a_begun_request_ends_as_worker_lost_at_the_next_start_and_only_once(
    tmp_path, make_event, make_request
):
    journal = UsageJournal(tmp_path)
    await journal.begin(make_request("open"))
    await write(journal, make_event, "done")
    journal.close()

    for opened in range(3):
        journal = UsageJournal(tmp_path, wall_clock_ns=lambda: 5_000_000_000)
        assert journal.opening.lost_count == (1 if opened == 0 else 0)
        events = {p.event.request.request_id: p.event for p in outbox_of(journal).pending(10)}
        journal.close()
        assert sorted(events) == ["done", "open"]
        lost = events["open"]
        assert lost.end is UsageEnd.WORKER_LOST
        assert lost.end_time_ns == 5_000_000_000
        assert lost.tokens.prompt_tokens == lost.tokens.completion_tokens == 0


async def test_only_one_worker_at_a_time_has_a_journal(tmp_path):
    journal = UsageJournal(tmp_path)
    with pytest.raises(JournalLockedError, match="another worker"):
        UsageJournal(tmp_path)
    journal.close()
    UsageJournal(tmp_path).close()


def test_a_path_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalDirectoryError, match="choose another data_directory"):
        UsageJournal(tmp_path / "file" / "journal")


def test_a_newer_format_is_refused_and_left_alone(tmp_path):
    path = segment_path(tmp_path, 1)
    path.write_bytes(encode(1, SegmentHead(format=FORMAT_VERSION + 1)))
    with pytest.raises(JournalTooNewError, match="newer kvtier") as caught:
        UsageJournal(tmp_path)
    assert caught.value.reason == "FORMAT_TOO_NEW"
    assert path.read_bytes() == encode(1, SegmentHead(format=FORMAT_VERSION + 1))
    path.unlink()
    UsageJournal(tmp_path).close()


async def test_files_are_readable_by_their_owner_only(tmp_path, make_event):
    journal = UsageJournal(tmp_path / "journal")
    await write(journal, make_event, "a")
    journal.close()
    for path in (tmp_path / "journal").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


async def test_many_ends_share_one_sync(tmp_path, make_event):
    syncs = []
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def sync(descriptor: int) -> None:
        syncs.append(descriptor)
        # The third is the first request's end: hold it until all the others wait.
        if len(syncs) == 2:
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)
        os.fdatasync(descriptor)

    from journal.segment import JournalFile

    journal = UsageJournal(tmp_path, file=JournalFile(sync=sync))
    first = asyncio.ensure_future(journal.end(make_event("first")))
    while len(syncs) < 2:
        await asyncio.sleep(0)
    rest = [asyncio.ensure_future(journal.end(make_event(f"r{i}"))) for i in range(200)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *rest)
    assert len(syncs) == 3
    assert len(pending_ids(journal)) == 201
    journal.close()


async def test_a_caller_that_goes_away_takes_no_record_with_it(tmp_path, make_event):
    journal = UsageJournal(tmp_path)
    task = asyncio.ensure_future(journal.end(make_event("a")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await write(journal, make_event, "b")
    assert pending_ids(journal) == ["a", "b"]
    journal.close()


async def test_delivered_segments_are_removed_and_open_requests_outlive_them(
    tmp_path, make_event, make_request
):
    journal = UsageJournal(tmp_path, JournalLimits(segment_bytes=2_000))
    outbox = outbox_of(journal)
    await journal.begin(make_request("slow"))
    for batch in range(20):
        await write(journal, make_event, *(f"{batch}-{i}" for i in range(10)))
        pending = outbox.pending(500)
        assert len(pending) == 10
        outbox.acknowledge(pending[-1].sequence)
        assert len(segment_paths(tmp_path)) <= 2
    journal.close()

    journal = UsageJournal(tmp_path)
    assert journal.opening.lost_count == 1
    assert pending_ids(journal) == ["slow"]
    journal.close()


async def test_acknowledging_part_of_a_batch_leaves_the_rest_in_order(tmp_path, make_event):
    journal = UsageJournal(tmp_path)
    await write(journal, make_event, "a", "b", "c", "d")
    outbox = outbox_of(journal)
    first = outbox.pending(3)
    assert [p.event.request.request_id for p in first] == ["a", "b", "c"]
    outbox.acknowledge(first[1].sequence)
    assert [p.event.request.request_id for p in outbox.pending(10)] == ["c", "d"]
    journal.close()
    reopened = UsageJournal(tmp_path)
    assert pending_ids(reopened) == ["c", "d"]
    reopened.close()


async def test_sequence_numbers_are_not_reused_when_everything_was_removed(tmp_path, make_event):
    journal = UsageJournal(tmp_path)
    await write(journal, make_event, "a")
    outbox = outbox_of(journal)
    last = outbox.pending(1)[0].sequence
    outbox.acknowledge(last)
    journal.close()
    for path in segment_paths(tmp_path):
        path.unlink()

    journal = UsageJournal(tmp_path)
    await write(journal, make_event, "b")
    assert pending_ids(journal) == ["b"]
    assert outbox_of(journal).pending(1)[0].sequence > last
    journal.close()


@pytest.mark.parametrize("content", [b"", b"garbage", b"0000000000000000 {}\n"])
async def test_a_damaged_delivered_file_sends_again_and_loses_nothing(
    tmp_path, make_event, content
):
    journal = UsageJournal(tmp_path)
    await write(journal, make_event, "a", "b")
    outbox = outbox_of(journal)
    outbox.acknowledge(outbox.pending(1)[0].sequence)
    journal.close()
    (tmp_path / "delivered").write_bytes(content)
    journal = UsageJournal(tmp_path)
    assert pending_ids(journal) == ["a", "b"]
    journal.close()


async def test_a_refused_event_is_kept_as_a_dead_letter(tmp_path, make_event):
    journal = UsageJournal(tmp_path)
    await write(journal, make_event, "a")
    outbox = outbox_of(journal)
    pending = outbox.pending(10)
    outbox.acknowledge(pending[0].sequence, [DeadLetter(pending[0], "CONFLICT", "OTHER")])
    assert outbox.pending(10) == []
    kept = (tmp_path / "dead_letters.jsonl").read_text()
    assert '"CONFLICT"' in kept
    assert '"request_id": "a"' in kept
    journal.close()


async def test_a_full_journal_refuses_to_begin_but_lets_running_requests_end(
    tmp_path: Path, make_event, make_request
):
    journal = UsageJournal(tmp_path, JournalLimits(capacity_bytes=2_000, segment_bytes=1_000))
    await journal.begin(make_request("running"))
    refused = None
    for i in range(50):
        try:
            await write(journal, make_event, f"{i}")
        except UsageJournalFailedError as error:
            refused = error
            break
    assert refused is not None
    assert "capacity" in str(refused)
    await journal.end(make_event("running"))
    outbox = outbox_of(journal)
    pending = outbox.pending(500)
    assert pending[-1].event.request.request_id == "running"
    outbox.acknowledge(pending[-1].sequence)
    await write(journal, make_event, "again")
    journal.close()


def test_who_asked_is_kept_and_an_older_workers_silence_stays_one(make_event):
    event = make_event("a")
    said = replace(event, request=replace(event.request, project_id="search", user_id=""))
    for each in (event, said):
        assert decode(encode(1, End(each)).removesuffix(b"\n")) == (1, End(each))
        begin = Begin(each.request)
        assert decode(encode(1, begin).removesuffix(b"\n")) == (1, begin)
    assert b"project_id" not in encode(1, Begin(event.request))
    assert not event_message(event).HasField("project_id")
    message = event_message(said)
    assert (message.project_id, message.HasField("user_id"), message.user_id) == (
        "search",
        True,
        "",
    )


def test_leases_are_kept_and_none_is_not_unsaid(make_event):
    event = make_event("a")
    for leases in ((), ("one", "two"), tuple(f"{n:032x}" for n in range(1000))):
        said = replace(event, lease_ids=leases)
        assert decode(encode(1, End(said)).removesuffix(b"\n")) == (1, End(said))
        message = event_message(said)
        assert message.HasField("leases")
        assert tuple(message.leases.ids) == leases
    assert not event_message(event).HasField("leases")


def test_key_session_and_class_are_kept_and_an_older_workers_silence_stays_one(make_event):
    event = make_event("a")
    request = replace(event.request, key_id="k1", session_id="", service_class="batch")
    said = replace(event, request=request)
    assert decode(encode(1, End(said)).removesuffix(b"\n")) == (1, End(said))
    assert b"key_id" not in encode(1, Begin(event.request))
    message, older = event_message(said), event_message(event)
    assert (message.key_id, message.session_id, message.service_class) == ("k1", "", "batch")
    assert message.HasField("session_id")
    assert not any(older.HasField(name) for name in ("key_id", "session_id", "service_class"))
    nothing = replace(event, request=replace(event.request, service_class=""))
    assert not event_message(nothing).HasField("service_class")


def test_the_outbox_passes_over_begins_and_no_end(make_event):
    event = make_event("a")
    # An end whose own words look like a begin's.
    tricky = replace(event, request=replace(event.request, client_request_id=',"type":"begin",'))
    records = [
        USAGE_FORMAT.head,
        Begin(event.request),
        End(event),
        Begin(tricky.request),
        End(tricky),
    ]
    lines = [encode(number, each) for number, each in enumerate(records, 1)]
    broken = lines[2][:-5] + b"?" + lines[2][-4:]
    raw = b"".join([*lines, broken, lines[1], lines[4], lines[1][:30]])
    found = [line for line in read_lines(USAGE_FORMAT, raw) if isinstance(line.record, End)]
    passed = [
        (line_end, end.sequence, End(end.event)) for line_end, end in read_ends(USAGE_FORMAT, raw)
    ]
    assert passed == [(line.end, line.sequence, line.record) for line in found]
    assert len(passed) == 3


def test_an_end_is_delivered_as_it_lies_and_one_of_before_is_encoded(make_event):
    event = make_event("a")
    wire = event_message(event).SerializeToString()
    old = {"sequence": 7, "type": "end", **end_fields(event)}
    for line in (encode(7, End(event)), as_format_1(old)):
        end = USAGE_FORMAT.decode_end(line.removesuffix(b"\n"))
        assert end is not None
        assert (end.sequence, end.name, end.wire, end.event) == (7, "a", wire, event)
    assert USAGE_FORMAT.decode_end(encode(7, Begin(event.request)).removesuffix(b"\n")) is None


@pytest.mark.parametrize(
    "changes", [{"wire": None}, {"wire": "?"}, {"wire": "Zm9vYmFy"}, {"name": 7}, {"sequence": "7"}]
)
def test_an_end_whose_bytes_are_none_does_not_count(make_event, changes):
    body = json.loads(encode(7, End(make_event("a")))[17:])
    line = as_format_1(body | changes).removesuffix(b"\n")
    with pytest.raises(BadLineError):
        decode(line)
