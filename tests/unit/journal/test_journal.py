"""A journal of any kind: batches, what goes on in the next process, what waits for a disk.

How it survives damage, kills and full disks is held by the usage journal's tests.
"""

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from journal.dialect import Dialect
from journal.errors import JournalLockedError
from journal.format import Begin, End, JournalFormat
from journal.journal import Journal, JournalLimits
from journal.outbox import Outbox
from journal.segment import JournalFile
from kvtier.errors import KvtierError


@dataclass(frozen=True)
class Visit:
    name: str
    note: str = ""


class VisitsFailedError(KvtierError):
    reason = "VISITS_FAILED"


def fields(visit: Visit) -> dict[str, Any]:
    return {"name": visit.name, "note": visit.note}


def read(record: dict[str, Any]) -> Visit:
    return Visit(record["name"], record["note"])


FORM = JournalFormat(
    Dialect(
        noun="visitors' book",
        holder="porter",
        file_prefix="visits-",
        format_version=1,
        begin_fields=fields,
        read_begin=read,
        end_fields=fields,
        read_end=read,
        name=lambda visit: visit.name,
        subject=lambda visit: visit,
        lost=lambda visit, now_ns: Visit(visit.name, f"lost after {visit.note}"),
        unwritten=lambda visit, now_ns: visit,
        failure=VisitsFailedError,
    )
)


def ended(journal: Journal[Visit, Visit]) -> list[Visit]:
    outbox = Outbox(
        FORM, journal.directory, journal.opening.acknowledged, lambda: journal.durable_sequence
    )
    return [pending.event for pending in outbox.pending(1000)]


async def test_a_batch_is_written_whole_and_its_ends_are_durable(tmp_path: Path) -> None:
    synced: list[int] = []
    file = JournalFile(sync=lambda descriptor: synced.append(os.fdatasync(descriptor) or 1))
    journal = Journal(FORM, tmp_path, file=file)
    await journal.submit([Begin(Visit("ann")), Begin(Visit("bob"))])
    after_begins = len(synced)
    await journal.submit([End(Visit("ann", "tea")), Begin(Visit("eve")), End(Visit("bob"))])
    assert len(synced) == after_begins + 1
    assert ended(journal) == [Visit("ann", "tea"), Visit("bob")]
    journal.close()
    again = Journal(FORM, tmp_path)
    assert again.opening.lost_count == 1
    assert ended(again)[-1] == Visit("eve", "lost after ")
    again.close()


async def test_what_goes_on_is_as_its_last_begin_said_and_is_not_lost(tmp_path: Path) -> None:
    journal = Journal(FORM, tmp_path, JournalLimits(segment_bytes=1))
    for note in ("one", "two", "three"):
        await journal.submit([Begin(Visit("stays", note)), Begin(Visit("leaves", note))])
        await journal.end(Visit(note))
    journal.close()
    for _ in range(3):
        journal = Journal(FORM, tmp_path, goes_on=lambda visit: visit.name == "stays")
        assert journal.resumed == (Visit("stays", "three"),)
        assert [visit for visit in ended(journal) if visit.name == "leaves"] == [
            Visit("leaves", "lost after three")
        ]
        # A new segment says it again, so that the old ones may go.
        await journal.begin(Visit("other"))
        await journal.end(Visit("other"))
        journal.close()
    last = Journal(FORM, tmp_path)
    assert ended(last)[-1] == Visit("stays", "lost after three")
    last.close()


async def test_ends_that_failed_are_written_when_the_disk_takes_them_again(tmp_path: Path) -> None:
    full = [True]

    def write(descriptor: int, raw: bytes) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, raw)

    journal = Journal(FORM, tmp_path, file=JournalFile(write=write))
    for name in ("ann", "bob"):
        with pytest.raises(VisitsFailedError, match="porter's data_directory"):
            await journal.end(Visit(name, "tea"))
    assert journal.unwritten_count == 2
    full[0] = False
    await journal.end(Visit("eve"))
    assert journal.unwritten_count == 0
    assert sorted(ended(journal), key=lambda visit: visit.name) == [
        Visit("ann", "tea"),
        Visit("bob", "tea"),
        Visit("eve"),
    ]
    journal.close()


async def test_above_its_capacity_it_takes_ends_only(tmp_path: Path) -> None:
    journal = Journal(FORM, tmp_path, JournalLimits(capacity_bytes=200))
    await journal.begin(Visit("ann"))
    await journal.end(Visit("bob", "x" * 100))
    assert journal.full
    with pytest.raises(VisitsFailedError, match="visitors' book is at its capacity"):
        await journal.submit([Begin(Visit("eve"))])
    await journal.submit([Begin(Visit("eve")), End(Visit("ann"))])
    assert len(ended(journal)) == 2
    journal.close()


async def test_one_process_has_it_and_a_closed_one_takes_nothing(tmp_path: Path) -> None:
    journal = Journal(FORM, tmp_path)
    with pytest.raises(JournalLockedError, match="give each porter its own"):
        Journal(FORM, tmp_path)
    journal.close()
    with pytest.raises(VisitsFailedError, match="porter is stopping"):
        await journal.end(Visit("ann"))
    await asyncio.sleep(0)
