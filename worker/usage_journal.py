"""The usage journal: what each request used, durable before its client is told.

    begin(request)  written before `started`            end(event)  synced before `usage`

Invariant: every request that began gets exactly one counted end, by this process or by the next one
that opens the directory; an `end` call that returned is on the disk. Format:
`docs/formats/usage_journal.md`.

One writer thread owns the open segment, the sequence numbers and the open requests; the event loop
hands it records over a queue (bounded by the requests the engine takes) and awaits futures. It
commits in groups: one sync for all that wait, and one call back to the loop that answers them all.
Reading and removing is `usage_outbox.py`'s.
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

from worker.errors import JournalDirectoryError, UsageJournalFailedError
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    UsageEnd,
    UsageEvent,
    end_request,
    lose_request,
)
from worker.usage_journal_format import Begin, End, Record, SegmentHead
from worker.usage_journal_recovery import recover
from worker.usage_journal_segment import (
    JournalFile,
    SegmentWriter,
    lock_directory,
    sync_directory,
)

__all__ = ["JournalLimits", "JournalOpening", "UsageJournal"]

log = logging.getLogger(__name__)

BATCH_RECORDS_MAX = 1024
"""Records in one group commit: half a megabyte, a few milliseconds of writing."""


@dataclass(frozen=True, slots=True)
class JournalLimits:
    capacity_bytes: int = 1 << 30
    """Above it no request begins."""
    segment_bytes: int = 4 << 20


@dataclass(frozen=True, slots=True)
class JournalOpening:
    """What was found when the journal was opened."""

    acknowledged: int
    """Billing has every end up to this sequence number."""
    undelivered_count: int
    """Ends above it, without those of `lost_count`."""
    lost_count: int
    """Requests that a worker before this one left open; they have an end now."""
    torn_bytes: int
    damaged_bytes: int


@dataclass(slots=True)
class _Waiting:
    record: Record
    done: "asyncio.Future[None]"
    loop: asyncio.AbstractEventLoop


class UsageJournal:
    """Opens the directory, locks it and serves until `close`. Use from one event loop.

    Raises JournalLockedError, JournalDirectoryError.
    """

    def __init__(
        self,
        directory: Path,
        limits: JournalLimits | None = None,
        *,
        file: JournalFile | None = None,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.directory = directory
        self._limits = limits or JournalLimits()
        self._wall_clock_ns = wall_clock_ns
        self._open: dict[str, AdmittedRequest] = {}
        self._failed: set[str] = set()
        self._closed = False
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._lock_descriptor = lock_directory(directory)
        try:
            self.opening = self._recover(file or JournalFile())
        except OSError as error:
            os.close(self._lock_descriptor)
            raise JournalDirectoryError(
                f"the usage journal in {directory} cannot be used: {error.strerror or error}; make"
                " that possible, or choose another data_directory"
            ) from None
        except JournalDirectoryError:
            os.close(self._lock_descriptor)
            raise
        self._thread = threading.Thread(target=self._run, name="usage-journal", daemon=True)
        self._thread.start()

    @property
    def durable_sequence(self) -> int:
        """Every record up to this number is on the disk or was given up. Any thread."""
        return self._segment.durable_sequence

    @property
    def used_bytes(self) -> int:
        """Of all segments, as of the last write. Any thread."""
        return self._segment.used_bytes

    async def begin(self, request: AdmittedRequest) -> None:
        """Notes that `request` was admitted. Raises UsageJournalFailedError."""
        await self._submit(Begin(request))

    async def end(self, event: UsageEvent) -> None:
        """Makes the request's event durable.

        Raises UsageJournalFailedError; then the request is closed without charge as soon as the
        journal can be written again.
        """
        await self._submit(End(event))

    def close(self) -> None:
        """Writes what waits, ends the thread, gives the lock back. Idempotent; blocks briefly."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        os.close(self._lock_descriptor)

    def _submit(self, record: Record) -> "asyncio.Future[None]":
        """A caller that goes away takes no record with it: what is queued is written."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self._closed:
            done.set_exception(UsageJournalFailedError("the worker is stopping"))
        else:
            self._queue.put(_Waiting(record, done, loop))
        return done

    def _recover(self, file: JournalFile) -> JournalOpening:
        """Ends what an earlier worker left open, synced. Raises OSError."""
        contents = recover(self.directory)
        self._segment = SegmentWriter(self.directory, contents.last_sequence, file)
        now_ns = self._wall_clock_ns()
        lost = [End(lose_request(r, now_ns=now_ns)) for r in contents.open_requests.values()]
        if lost:
            self._segment.open_next()
            self._segment.append([SegmentHead(), *lost], synced=True)
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
            log.error("the usage journal's last sync failed", extra={"problem": str(error)})
            self._abandon()

    def _take(self) -> tuple[list[_Waiting], bool]:
        """All records that wait, at least one, and whether the journal closes after them."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch = [first]
        while len(batch) < BATCH_RECORDS_MAX:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                return batch, True
            batch.append(waiting)
        return batch, False

    def _commit(self, batch: list[_Waiting]) -> None:
        """Writes the batch in one piece, syncs if it ends a request, then answers everyone."""
        batch = self._refuse_when_full(batch)
        if not batch:
            return
        records = [waiting.record for waiting in batch]
        try:
            self._ensure_segment()
            self._segment.append(records, synced=any(isinstance(r, End) for r in records))
        except Exception as error:
            # Not only OSError: whatever it is, nobody may be left waiting.
            log.exception("the usage journal cannot be written")
            self._give_up(batch, error)
            return
        for waiting in batch:
            self._note(waiting.record)
        _answer([(waiting, None) for waiting in batch])

    def _refuse_when_full(self, batch: list[_Waiting]) -> list[_Waiting]:
        if self._segment.used_bytes > self._limits.capacity_bytes:
            try:
                self._segment.used_bytes = self._segment.measure()
            except OSError as error:
                # Counted as before: still full. The thread must live, or nobody gets an answer.
                log.error("the usage journal cannot be measured", extra={"problem": str(error)})
        if self._segment.used_bytes <= self._limits.capacity_bytes:
            return batch
        refused = [waiting for waiting in batch if not isinstance(waiting.record, End)]
        problem = (
            "the usage journal is at its capacity because billing does not take events; start"
            " billing, or raise journal.capacity_bytes"
        )
        _answer([(waiting, UsageJournalFailedError(problem)) for waiting in refused])
        return [waiting for waiting in batch if isinstance(waiting.record, End)]

    def _ensure_segment(self) -> None:
        """A segment with room, that repeats every open begin if it is new. Raises OSError."""
        if self._segment.length >= self._limits.segment_bytes:
            self._segment.finish()
        if self._segment.opened:
            return
        self._segment.open_next()
        failed = [self._open[request_id] for request_id in sorted(self._failed)]
        head: list[Record] = [SegmentHead()]
        head += [Begin(r) for r in self._open.values()]
        head += [End(_unpaid(r, self._wall_clock_ns())) for r in failed]
        self._segment.append(head, synced=True)
        sync_directory(self.directory)
        for request in failed:
            del self._open[request.request_id]
        self._failed.clear()

    def _note(self, record: Record) -> None:
        if isinstance(record, Begin):
            self._open[record.request.request_id] = record.request
        elif isinstance(record, End):
            self._open.pop(record.event.request.request_id, None)

    def _give_up(self, batch: list[_Waiting], error: Exception) -> None:
        """Abandons the segment and tells everyone who waited."""
        self._abandon()
        problem = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        for waiting in batch:
            if isinstance(waiting.record, End):
                request = waiting.record.event.request
                self._open[request.request_id] = request
                self._failed.add(request.request_id)
        text = (
            f"the usage journal cannot be written ({problem}); send again when the worker's"
            " data_directory takes writes"
        )
        _answer([(waiting, UsageJournalFailedError(text)) for waiting in batch])

    def _abandon(self) -> None:
        try:
            self._segment.abandon()
        except OSError as problem:
            log.error("a failed batch stays in the journal", extra={"problem": str(problem)})


Answer = tuple[_Waiting, UsageJournalFailedError | None]


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


def _unpaid(request: AdmittedRequest, now_ns: int) -> UsageEvent:
    return end_request(request, UsageEnd.ERROR, ChargedTokens(), now_ns=now_ns, ttft_ns=None)
