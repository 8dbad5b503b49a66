"""The usage journal when the disk or the process fails."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from journal.errors import JournalDirectoryError
from journal.journal import JournalLimits
from journal.segment import JournalFile
from kvtier.blocks import Tier
from worker.errors import UsageJournalFailedError
from worker.usage_event import AdmittedRequest, ChargedTokens, UsageEnd, UsageEvent
from worker.usage_journal import UsageJournal, UsageOutbox
from worker.usage_journal_format import USAGE_FORMAT


def request(request_id: str) -> AdmittedRequest:
    return AdmittedRequest(request_id, "acme", "demo", "node-1", "", 1_000_000_000)


def event(request_id: str) -> UsageEvent:
    tokens = ChargedTokens({Tier.HOST: 64}, 3, 2)
    return UsageEvent(request(request_id), 2_000_000_000, UsageEnd.STOP, tokens, None)


async def write(journal: UsageJournal, *request_ids: str) -> None:
    for request_id in request_ids:
        await journal.begin(request(request_id))
        await journal.end(event(request_id))


def events_of(journal: UsageJournal) -> list[UsageEvent]:
    outbox = UsageOutbox(
        journal.directory, journal.opening.acknowledged, lambda: journal.durable_sequence
    )
    return [p.event for p in outbox.pending(1_000_000)]


def ends_of(journal: UsageJournal) -> dict[str, UsageEnd]:
    events = events_of(journal)
    ends = {e.request.request_id: e.end for e in events}
    assert len(ends) == len(events), "a request has more than one event"
    return ends


async def test_a_tail_torn_at_any_byte_keeps_every_whole_record(tmp_path: Path):
    whole = tmp_path / "whole"
    journal = UsageJournal(whole)
    await write(journal, "a", "b")
    journal.close()
    (segment,) = USAGE_FORMAT.segment_paths(whole)
    raw = segment.read_bytes()
    line_ends = [i + 1 for i, byte in enumerate(raw) if byte == ord("\n")]
    head, begin_a, end_a, begin_b, end_b = line_ends

    for length in range(len(raw) + 1):
        torn = tmp_path / f"torn-{length}"
        torn.mkdir()
        (torn / segment.name).write_bytes(raw[:length])
        # Syncing is not what this is about, and there are a thousand openings.
        journal = UsageJournal(torn, file=JournalFile(sync=lambda _: None))
        expected = {}
        if length >= begin_a:
            expected["a"] = UsageEnd.STOP if length >= end_a else UsageEnd.WORKER_LOST
        if length >= begin_b:
            expected["b"] = UsageEnd.STOP if length >= end_b else UsageEnd.WORKER_LOST
        assert ends_of(journal) == expected, f"torn after {length} bytes"
        good = max((e for e in (0, *line_ends) if e <= length), default=0)
        assert journal.opening.torn_bytes == length - good
        assert (torn / segment.name).stat().st_size == good
        journal.close()
    assert head < begin_a < end_a < begin_b < end_b == len(raw)


async def test_a_flipped_bit_costs_its_own_record_only_and_leaves_evidence(tmp_path: Path):
    journal = UsageJournal(tmp_path)
    await write(journal, "a", "b", "c")
    journal.close()
    (segment,) = USAGE_FORMAT.segment_paths(tmp_path)
    raw = bytearray(segment.read_bytes())
    lines = bytes(raw).splitlines(keepends=True)
    start = sum(len(line) for line in lines[:4])
    raw[start + 100] ^= 0x10
    segment.write_bytes(raw)

    journal = UsageJournal(tmp_path)
    # The end of b is unreadable, so b counts as lost: an event, and no charge.
    assert ends_of(journal) == {
        "a": UsageEnd.STOP,
        "b": UsageEnd.WORKER_LOST,
        "c": UsageEnd.STOP,
    }
    assert journal.opening.damaged_bytes == len(lines[4])
    (evidence,) = tmp_path.glob("damaged-*.bin")
    assert evidence.read_bytes() == bytes(raw[start : start + len(lines[4])])
    journal.close()


@pytest.mark.parametrize("call", ["write", "sync", "short write"])
async def test_a_disk_that_refuses_fails_the_request_and_the_next_one_works(tmp_path, call):
    failing = False

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_call(descriptor: int, raw: bytes) -> int:
        if failing and call == "write":
            refuse()
        if failing and call == "short write":
            os.write(descriptor, raw[: len(raw) // 2])
            refuse()
        return os.write(descriptor, raw)

    def sync_call(descriptor: int) -> None:
        if failing and call == "sync":
            refuse()
        os.fdatasync(descriptor)

    journal = UsageJournal(tmp_path, file=JournalFile(write=write_call, sync=sync_call))
    await write(journal, "before")
    await journal.begin(request("victim"))
    await journal.begin(request("running"))
    failing = True
    with pytest.raises(UsageJournalFailedError, match="No space"):
        await journal.end(event("victim"))
    with pytest.raises(UsageJournalFailedError):
        await journal.end(event("victim too"))
    failing = False
    await write(journal, "after")
    expected = {
        "before": UsageEnd.STOP,
        "victim": UsageEnd.ERROR,
        "victim too": UsageEnd.ERROR,
        "after": UsageEnd.STOP,
    }
    assert ends_of(journal) == expected
    unpaid = next(e for e in events_of(journal) if e.request.request_id == "victim")
    assert unpaid.tokens == ChargedTokens()
    journal.close()

    reopened = UsageJournal(tmp_path)
    assert ends_of(reopened) == {**expected, "running": UsageEnd.WORKER_LOST}
    reopened.close()


async def test_a_full_disk_collects_no_files_for_the_requests_that_it_fails(tmp_path):
    failing = False

    def write_call(descriptor: int, raw: bytes) -> int:
        if failing:
            os.write(descriptor, raw[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, raw)

    journal = UsageJournal(tmp_path, file=JournalFile(write=write_call))
    await write(journal, "before")
    await journal.begin(request("victim"))
    failing = True
    with pytest.raises(UsageJournalFailedError, match=r"\(No space left on device\)"):
        await journal.end(event("victim"))
    for number in range(30):
        with pytest.raises(UsageJournalFailedError):
            await journal.begin(request(f"refused {number}"))
    assert len(USAGE_FORMAT.segment_paths(tmp_path)) == 1
    failing = False
    await write(journal, "after")
    expected = {"before": UsageEnd.STOP, "victim": UsageEnd.ERROR, "after": UsageEnd.STOP}
    assert ends_of(journal) == expected
    journal.close()
    reopened = UsageJournal(tmp_path)
    assert reopened.opening.lost_count == 0
    assert ends_of(reopened) == expected
    await write(reopened, "later")
    assert ends_of(reopened) == {**expected, "later": UsageEnd.STOP}
    reopened.close()


async def test_a_full_journal_whose_directory_cannot_be_listed_refuses_and_answers_everyone(
    tmp_path,
):
    """Nobody may wait for a writer that gave up while it counted bytes."""
    directory = tmp_path / "journal"
    journal = UsageJournal(directory, JournalLimits(capacity_bytes=1))
    await journal.begin(request("running"))
    directory.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageJournalFailedError, match="capacity"):
        await asyncio.wait_for(journal.begin(request("new")), 5)
    await asyncio.wait_for(journal.end(event("running")), 5)
    (tmp_path / "elsewhere").rename(directory)
    assert ends_of(journal) == {"running": UsageEnd.STOP}
    journal.close()


async def test_a_worker_that_dies_while_the_disk_refuses_charges_nothing(tmp_path):
    failing = False

    def sync_call(descriptor: int) -> None:
        if failing:
            raise OSError(errno.EIO, "Input/output error")
        os.fdatasync(descriptor)

    journal = UsageJournal(tmp_path, file=JournalFile(sync=sync_call))
    await journal.begin(request("victim"))
    await write(journal, "before")
    failing = True
    with pytest.raises(UsageJournalFailedError):
        await journal.end(event("victim"))
    journal.close()

    reopened = UsageJournal(tmp_path)
    assert ends_of(reopened) == {"before": UsageEnd.STOP, "victim": UsageEnd.WORKER_LOST}
    reopened.close()


async def test_a_disk_that_refuses_at_the_start_stops_the_start(tmp_path):
    journal = UsageJournal(tmp_path)
    await journal.begin(request("open"))
    journal.close()

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(JournalDirectoryError, match="Input/output error"):
        UsageJournal(tmp_path, file=JournalFile(sync=refuse))


APPENDER = """
import asyncio, sys
from pathlib import Path
from worker.usage_event import AdmittedRequest, ChargedTokens, UsageEnd, UsageEvent
from journal.journal import JournalLimits
from worker.usage_journal import UsageJournal

async def one(journal, name):
    request = AdmittedRequest(name, "acme", "demo", "node", "", 1)
    await journal.begin(request)
    print("begin", name, flush=True)
    await journal.end(UsageEvent(request, 2, UsageEnd.STOP, ChargedTokens({}, 1, 1), None))
    print("end", name, flush=True)

async def main():
    journal = UsageJournal(Path(sys.argv[1]), JournalLimits(segment_bytes=4096))
    number = 0
    while True:
        names = [f"{sys.argv[2]}-{number + i}" for i in range(8)]
        number += 8
        await asyncio.gather(*(one(journal, name) for name in names))

asyncio.run(main())
"""


def kill_while_appending(directory: Path, name: str, after_lines: int) -> tuple[set[str], set[str]]:
    """What the process said it had begun and ended before it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(directory), name], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(after_lines)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    said = [line.split() for line in lines if line.endswith("\n")]
    return {n for w, n in said if w == "begin"}, {n for w, n in said if w == "end"}


async def test_kill_9_while_appending_keeps_every_acknowledged_event_once(tmp_path: Path):
    begun: set[str] = set()
    ended: set[str] = set()
    for round_number, after_lines in enumerate((3, 40, 77)):
        more_begun, more_ended = await asyncio.to_thread(
            kill_while_appending, tmp_path, f"round{round_number}", after_lines
        )
        begun |= more_begun
        ended |= more_ended
    journal = UsageJournal(tmp_path)
    ends = ends_of(journal)
    journal.close()
    assert ended
    assert begun <= set(ends)
    assert {ends[name] for name in ended} == {UsageEnd.STOP}
    for name in begun - ended:
        assert ends[name] in (UsageEnd.STOP, UsageEnd.WORKER_LOST)
