"""AuditLog: the service's audit log. Fail closed: what cannot be written is not done.

    gate -> call(...): "begun" durable -> the call runs -> "done", "failed" or "stopped" durable

Invariant: a call whose "begun" is on the disk gets its last line, whatever becomes of its task;
only a crash, or a disk that refuses that line, leaves "begun" alone. Lines are written one at a
time on a thread; who waits is bounded by the calls in flight. The files are opened with the first
call, so a log that cannot be written costs operators their calls and engines nothing. Event loop;
`close` once, at the end.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache_service.audit.line import AuditEntry
from cache_service.audit.refusals import RefusalTable, Refused
from cache_service.audit.target import target_of
from cache_service.audit.writer import AuditWriter
from cache_service.errors import AuditUnavailableError
from kvtier.access import NOTES
from kvtier.errors import KvtierError
from kvtier.principals import Principal
from kvtier.serving import ShuttingDownError

__all__ = ["AuditLog"]

log = logging.getLogger(__name__)

Refusal = AuditUnavailableError | None
"""Why a line is not on the disk."""

REFUSAL_SECONDS = 1.0
"""From one writing of refusals to the next: a storm of them must not fill the disk."""
REFUSAL_SECONDS_MAX = 60.0
"""Where the pause, twice as long after each writing that fails, ends to grow."""


class AuditLog:
    """Implements `kvtier.access.AuditSink`."""

    def __init__(
        self,
        directory: Path,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._writer = AuditWriter(directory)
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._closing = self._closed = False
        self._records: set[asyncio.Task[Refusal]] = set()
        """One of each open call; held here, since a loop holds its tasks weakly."""
        self._refusals = RefusalTable()
        self._flush: asyncio.Task[bool] | None = None
        self._flusher: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def call(self, principal: Principal, method: str, request: Any) -> AsyncIterator[None]:
        """Raises AuditUnavailableError, ShuttingDownError."""
        if self._closing:
            raise ShuttingDownError("the service is stopping; try again once it has restarted")
        target = target_of(request)
        notes: list[str] = []
        NOTES.set(notes)

        def write(outcome: str, reason: str) -> Awaitable[Refusal]:
            said = " ".join([target, *notes])
            about = (principal.key, _roles(principal), method, said, outcome, reason)
            return self._write(AuditEntry(self._now(), *about))

        loop = asyncio.get_running_loop()
        begun: asyncio.Future[Refusal] = loop.create_future()
        ended: asyncio.Future[tuple[str, str]] = loop.create_future()
        record = loop.create_task(_record(write, begun, ended))
        self._records.add(record)
        record.add_done_callback(self._records.discard)
        outcome, reason = "stopped", ""
        try:
            _raise(await asyncio.shield(begun))
            yield
            outcome = "done"
        except Exception as error:
            outcome = "failed"
            reason = error.reason if isinstance(error, KvtierError) else "INTERNAL"
            raise
        finally:
            if not ended.done():  # a loop that ends has cancelled it
                ended.set_result((outcome, reason))
            refusal = await asyncio.shield(record)
            if outcome != "stopped":  # else there is nobody to tell
                _raise(refusal)

    async def refused(self, principal: Principal, method: str, reason: str) -> None:
        """The first after a quiet time is on the disk, or cannot be, when this returns."""
        self._refusals.add(Refused(principal.key, _roles(principal), method, reason))
        if self._closing or not (self._flusher is None or self._flusher.done()):
            return
        self._flush = asyncio.create_task(self._write_refusals())
        self._flusher = asyncio.create_task(self._flush_on(self._flush))
        await asyncio.shield(self._flush)

    async def _flush_on(self, flush: "asyncio.Task[bool]") -> None:
        """Writes what was refused in each pause, until one in which nothing was."""
        pause = REFUSAL_SECONDS
        while True:
            written = await asyncio.shield(flush)
            pause = REFUSAL_SECONDS if written else min(2 * pause, REFUSAL_SECONDS_MAX)
            await self._sleep(pause)
            if not self._refusals:
                return
            flush = self._flush = asyncio.create_task(self._write_refusals())

    async def _write_refusals(self) -> bool:
        """Whether all have their lines; those that have not wait on."""
        waiting = self._refusals.take()
        for place, (refused, count) in enumerate(waiting):
            who, roles, method, reason = astuple(refused)
            entry = AuditEntry(self._now(), who, roles, method, "", "refused", reason, count)
            if await self._write(entry) is not None:
                self._refusals.put_back(waiting[place:])
                return False
        return True

    async def _write_last_refusals(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
        if self._flush is not None:
            await asyncio.shield(self._flush)
        await self._write_refusals()

    async def close(self, seconds: float) -> None:
        """Takes no new calls, waits up to `seconds` for the last lines of those that are open, and
        as long again for the disk. Says where the chain ends: kept elsewhere, that proves later
        that no line was cut off."""
        self._closing = True
        if self._records:
            await asyncio.wait(self._records, timeout=seconds)
        if self._records:
            count = len(self._records)
            log.error("the audit log closes without the end of calls", extra={"call_count": count})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        await asyncio.wait([loop.create_task(self._write_last_refusals())], timeout=seconds)
        if self._refusals:
            count = self._refusals.total
            log.error("refusals have no line in the audit log", extra={"refused_count": count})
        self._closed = True
        closing = loop.run_in_executor(self._thread, self._writer.close)
        self._thread.shutdown(wait=False)
        await asyncio.wait([closing], timeout=max(0.0, deadline - loop.time()))
        if not closing.done():
            log.error("the disk holds the audit log up; it is left open")
        elif (head := closing.result()) is not None:
            log.info("audit log closed", extra={"number": head.number, "head_hash": head.hash})

    async def _write(self, entry: AuditEntry) -> Refusal:
        if self._closed:
            return AuditUnavailableError("the audit log is closed, so this call has no line there")
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._writer.append, entry)
        except AuditUnavailableError as error:
            log.error("%s", error)
            return error
        except Exception:
            log.exception("unexpected failure of the audit log")
            return AuditUnavailableError(
                "the audit log failed, so this call is refused; the service's log has the details"
            )
        return None

    def _now(self) -> str:
        moment = datetime.fromtimestamp(self._wall_clock(), UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _roles(principal: Principal) -> tuple[str, ...]:
    return tuple(sorted(principal.roles))


async def _record(
    write: Callable[[str, str], Awaitable[Refusal]],
    begun: "asyncio.Future[Refusal]",
    ended: "asyncio.Future[tuple[str, str]]",
) -> Refusal:
    """A call's lines, written whatever becomes of the call's own task."""
    refusal = await write("begun", "")
    if not begun.done():
        begun.set_result(refusal)
    return refusal or await write(*await ended)


def _raise(refusal: Refusal) -> None:
    if refusal is not None:
        raise refusal
