"""The journal: what began, and how each of it ended, durable before anybody relies on it.

    begin(subject)  written, not synced            end(event)  synced before it returns

Invariant: every subject that began gets exactly one counted end, by this process or by the next one
that opens the directory; an `end` call that returned is on the disk. Format:
`docs/formats/usage_journal.md`.

One writer thread owns the open segment, the sequence numbers and the open subjects; the event loop
hands it records over a queue (which its user bounds) and awaits futures. It
commits in groups: one sync for all that wait, and one call back to the loop that answers them all.
Reading and removing is `outbox.py`'s.
"""

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from journal.dialect import EndedT, SubjectT
from journal.errors import JournalDirectoryError
from journal.format import Begin, End, JournalFormat, Record
from journal.recovery import recover
from journal.segment import JournalFile, SegmentWriter, lock_directory, sync_directory
from kvtier.errors import KvtierError

__all__ = ["Journal", "JournalLimits", "JournalOpening"]

log = logging.getLogger(__name__)

BATCH_RECORDS_MAX = 1024
"""Records in one group commit: half a megabyte, a few milliseconds of writing."""


@dataclass(frozen=True, slots=True)
class JournalLimits:
    capacity_bytes: int = 1 << 30
    """Above it nothing begins."""
    segment_bytes: int = 4 << 20


@dataclass(frozen=True, slots=True)
class JournalOpening:
    """What was found when the journal was opened."""

    acknowledged: int
    """Billing has every end up to this sequence number."""
    undelivered_count: int
    """Ends above it, without those of `lost_count`."""
    lost_count: int
    """Subjects that a process before this one left open; they have an end now."""
    torn_bytes: int
    damaged_bytes: int


@dataclass(slots=True)
class _Waiting(Generic[SubjectT, EndedT]):
    records: Sequence[Begin[SubjectT] | End[EndedT]]
    done: "asyncio.Future[None]"
    loop: asyncio.AbstractEventLoop

    @property
    def ends_something(self) -> bool:
        return any(isinstance(record, End) for record in self.records)


class Journal(Generic[SubjectT, EndedT]):
    """Opens the directory, locks it and serves until `close`. Use from one event loop.

    Raises JournalLockedError, JournalDirectoryError.
    """

    def __init__(
        self,
        form: JournalFormat[SubjectT, EndedT],
        directory: Path,
        limits: JournalLimits | None = None,
        *,
        file: JournalFile | None = None,
        wall_clock_ns: Callable[[], int] = time.time_ns,
        goes_on: Callable[[SubjectT], bool] = lambda _: False,
    ) -> None:
        """`goes_on`: whether what an earlier process left open stays so, instead of being lost."""
        self.directory = directory
        self._form = form
        self._dialect = form.dialect
        self._limits = limits or JournalLimits()
        self._wall_clock_ns = wall_clock_ns
        self._open: dict[str, SubjectT] = {}
        self._failed: dict[str, EndedT] = {}
        self.resumed: Sequence[SubjectT] = ()
        """What stayed open, in the order of its names."""
        self._closed = False
        self._queue: queue.SimpleQueue[_Waiting[SubjectT, EndedT] | None] = queue.SimpleQueue()
        self._lock_descriptor = lock_directory(directory, self._dialect)
        try:
            self.opening = self._recover(file or JournalFile(), goes_on)
        except OSError as error:
            os.close(self._lock_descriptor)
            raise JournalDirectoryError(
                f"the {self._dialect.noun} in {directory} cannot be used:"
                f" {error.strerror or error}; make that possible, or choose another data_directory"
            ) from None
        except JournalDirectoryError:
            os.close(self._lock_descriptor)
            raise
        self._thread = threading.Thread(target=self._run, name=self._dialect.noun, daemon=True)
        self._thread.start()

    @property
    def durable_sequence(self) -> int:
        """Every record up to this number is on the disk or was given up. Any thread."""
        return self._segment.durable_sequence

    @property
    def used_bytes(self) -> int:
        """Of all segments, as of the last write. Any thread."""
        return self._segment.used_bytes

    @property
    def full(self) -> bool:
        """Above its capacity, as of the last write. Any thread."""
        return self._segment.used_bytes > self._limits.capacity_bytes

    @property
    def unwritten_count(self) -> int:
        """Ends that failed and wait until the journal can be written again. Any thread."""
        return len(self._failed)

    async def begin(self, subject: SubjectT) -> None:
        """Notes that `subject` began. Raises what the dialect's `failure` makes."""
        await self.submit([Begin(subject)])

    async def end(self, event: EndedT) -> None:
        """Makes `event` durable.

        Raises what the dialect's `failure` makes; then its `unwritten` is written as soon as the
        journal can be written again.
        """
        await self.submit([End(event)])

    def close(self) -> None:
        """Writes what waits, ends the thread, gives the lock back. Idempotent; blocks briefly."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        os.close(self._lock_descriptor)

    def submit(self, records: Sequence[Begin[SubjectT] | End[EndedT]]) -> "asyncio.Future[None]":
        """Queues records, all or none of which are written; when the future is done they are
        durable, if one of them is an end.

        A caller that goes away takes no record with it: what is queued is written.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self._closed:
            done.set_exception(self._dialect.failure(f"the {self._dialect.holder} is stopping"))
        else:
            self._queue.put(_Waiting(records, done, loop))
        return done

    def _recover(self, file: JournalFile, goes_on: Callable[[SubjectT], bool]) -> JournalOpening:
        """Ends what an earlier process left open, synced. Raises OSError."""
        contents = recover(self._form, self.directory)
        self._segment = SegmentWriter(self.directory, contents.last_sequence, self._form, file)
        now_ns = self._wall_clock_ns()
        self._open = {name: s for name, s in sorted(contents.open.items()) if goes_on(s)}
        self.resumed = tuple(self._open.values())
        lost = [
            End(self._dialect.lost(subject, now_ns))
            for name, subject in contents.open.items()
            if name not in self._open
        ]
        if lost:
            self._segment.open_next()
            self._segment.append([*self._head(), *lost], synced=True)
            sync_directory(self.directory)
        return JournalOpening(
            acknowledged=contents.acknowledged,
            undelivered_count=contents.undelivered_count,
            lost_count=len(lost),
            torn_bytes=contents.torn_bytes,
            damaged_bytes=contents.damaged_bytes,
        )

    # The writer thread.

    def _run(self) -> None:
        last = False
        while not last:
            batch, last = self._take()
            if batch:
                self._commit(batch)
        try:
            self._segment.finish()
        except OSError as error:
            log.error(
                "the %s's last sync failed", self._dialect.noun, extra={"problem": str(error)}
            )
            self._abandon()

    def _take(self) -> tuple[list[_Waiting[SubjectT, EndedT]], bool]:
        """All that waits, at least one, and whether the journal closes after them."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch, count = [first], len(first.records)
        while count < BATCH_RECORDS_MAX:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                return batch, True
            batch.append(waiting)
            count += len(waiting.records)
        return batch, False

    def _commit(self, batch: list[_Waiting[SubjectT, EndedT]]) -> None:
        """Writes the batch in one piece, syncs if it ends something, then answers everyone."""
        batch = self._refuse_when_full(batch)
        if not batch:
            return
        records = [record for waiting in batch for record in waiting.records]
        try:
            self._ensure_segment()
            self._segment.append(records, synced=self._must_sync(batch))
        except Exception as error:
            # Not only OSError: whatever it is, nobody may be left waiting.
            log.exception("the %s cannot be written", self._dialect.noun)
            self._give_up(batch, error)
            return
        for record in records:
            self._note(record)
        _answer([(waiting, None) for waiting in batch])

    def _must_sync(self, batch: list[_Waiting[SubjectT, EndedT]]) -> bool:
        return self._dialect.syncs_begins or any(waiting.ends_something for waiting in batch)

    def _refuse_when_full(
        self, batch: list[_Waiting[SubjectT, EndedT]]
    ) -> list[_Waiting[SubjectT, EndedT]]:
        if self.full:
            try:
                self._segment.used_bytes = self._segment.measure()
            except OSError as error:
                # Counted as before: still full. The thread must live, or nobody gets an answer.
                log.error(
                    "the %s cannot be measured", self._dialect.noun, extra={"problem": str(error)}
                )
        if not self.full:
            return batch
        problem = (
            f"the {self._dialect.noun} is at its capacity because billing does not take events;"
            " start billing, or raise journal.capacity_bytes"
        )
        refused = [waiting for waiting in batch if not waiting.ends_something]
        _answer([(waiting, self._dialect.failure(problem)) for waiting in refused])
        return [waiting for waiting in batch if waiting.ends_something]

    def _ensure_segment(self) -> None:
        """A segment with room, that repeats every open begin if it is new. Raises OSError."""
        if self._segment.length >= self._limits.segment_bytes:
            self._segment.finish()
        if self._segment.opened:
            return
        self._segment.open_next()
        now_ns, failed = self._wall_clock_ns(), sorted(self._failed.items())
        ends = [End(self._dialect.unwritten(event, now_ns)) for _, event in failed]
        self._segment.append([*self._head(), *ends], synced=True)
        sync_directory(self.directory)
        for name, _ in failed:
            del self._open[name]
        self._failed = {}

    def _head(self) -> list[Record[SubjectT, EndedT]]:
        return [self._form.head, *(Begin(subject) for subject in self._open.values())]

    def _note(self, record: Begin[SubjectT] | End[EndedT]) -> None:
        if isinstance(record, Begin):
            self._open[self._dialect.name(record.subject)] = record.subject
        else:
            self._open.pop(self._dialect.ended_name(record.event), None)

    def _give_up(self, batch: list[_Waiting[SubjectT, EndedT]], error: Exception) -> None:
        """Abandons the segment and tells everyone who waited."""
        self._abandon()
        problem = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        for record in (record for waiting in batch for record in waiting.records):
            if isinstance(record, End):
                subject = self._dialect.subject(record.event)
                name = self._dialect.name(subject)
                self._open[name] = subject
                self._failed[name] = record.event
        text = (
            f"the {self._dialect.noun} cannot be written ({problem}); send again when the"
            f" {self._dialect.holder}'s data_directory takes writes"
        )
        _answer([(waiting, self._dialect.failure(text)) for waiting in batch])

    def _abandon(self) -> None:
        try:
            self._segment.abandon()
        except OSError as problem:
            log.error("a failed batch stays in the journal", extra={"problem": str(problem)})


Answer = tuple[_Waiting[Any, Any], KvtierError | None]


def _answer(answers: Sequence[Answer]) -> None:
    """Tells everyone, from the writer's thread: one call back for all of a loop."""
    loops = dict.fromkeys(waiting.loop for waiting, _ in answers)
    for loop in loops:
        mine = [answer for answer in answers if answer[0].loop is loop]
        with contextlib.suppress(RuntimeError):  # the loop is gone, and so is who waited on it
            loop.call_soon_threadsafe(_tell, mine)


def _tell(answers: Sequence[Answer]) -> None:
    for waiting, error in answers:
        if waiting.done.done():
            continue  # whoever waited went away
        if error is None:
            waiting.done.set_result(None)
        else:
            waiting.done.set_exception(error)
