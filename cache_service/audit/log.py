"""AuditLog: the service's audit log. Fail closed: what cannot be written is not done.

    gate -> call(...): "begun" durable -> the call runs -> "done", "failed" or "stopped" durable

Lines are written one at a time on a thread; who waits is bounded by the calls in flight. The files
are opened with the first call, so a log that cannot be written costs operators their calls and
engines nothing. Event loop; `close` once, at the end.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache_service.audit.line import AuditEntry
from cache_service.audit.target import target_of
from cache_service.audit.writer import AuditWriter
from cache_service.errors import AuditUnavailableError
from kvtier.errors import KvtierError
from kvtier.principals import Principal

__all__ = ["AuditLog"]

log = logging.getLogger(__name__)

REFUSAL_SECONDS = 1.0
"""One line for all refusals in so long: a storm of them must not fill the disk."""


class AuditLog:
    """Implements `kvtier.access.AuditSink`."""

    def __init__(self, directory: Path, wall_clock: Callable[[], float] = time.time) -> None:
        self._writer = AuditWriter(directory)
        self._wall_clock = wall_clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._refused_count = 0
        self._refused_at = float("-inf")

    @contextlib.asynccontextmanager
    async def call(self, principal: Principal, method: str, request: Any) -> AsyncIterator[None]:
        """Raises AuditUnavailableError."""
        target = target_of(request)

        async def write(outcome: str, reason: str = "") -> None:
            await self._write(self._entry(principal, method, target, outcome, reason))

        await write("begun")
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            # The caller went away; the line must be there whatever becomes of this task.
            await asyncio.shield(write("stopped"))
            raise
        except Exception as error:
            await write("failed", error.reason if isinstance(error, KvtierError) else "INTERNAL")
            raise
        await write("done")

    async def refused(self, principal: Principal, method: str, reason: str) -> None:
        self._refused_count += 1
        now = self._wall_clock()
        if now < self._refused_at + REFUSAL_SECONDS:
            return
        count, self._refused_count, self._refused_at = self._refused_count, 0, now
        entry = self._entry(principal, method, "", "refused", reason, count)
        with contextlib.suppress(AuditUnavailableError):  # refused it is, either way
            await self._write(entry)

    def close(self) -> None:
        """Says where the chain ends: kept elsewhere, that proves later that no line was cut off."""
        self._thread.shutdown()
        head = self._writer.close()
        if head is not None:
            log.info("audit log closed", extra={"number": head.number, "head_hash": head.hash})

    async def _write(self, entry: AuditEntry) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._writer.append, entry)
        except AuditUnavailableError as error:
            log.error("%s", error)
            raise

    def _entry(
        self,
        principal: Principal,
        method: str,
        target: str,
        outcome: str,
        reason: str,
        count: int = 1,
    ) -> AuditEntry:
        moment = datetime.fromtimestamp(self._wall_clock(), UTC)
        return AuditEntry(
            moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            principal.key,
            tuple(sorted(principal.roles)),
            method,
            target,
            outcome,
            reason,
            count,
        )
