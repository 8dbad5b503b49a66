"""Scrubbing: finds what rotted on the SSD before a reader does, all the time or on demand.

    background pass, within a budget --\
                                        walk -> finding -> drop from the index, count, log
    `kvtier cache verify`, at once   --/

A corrupt block is dropped at once, with all that continues it. One that cannot be read is a suspect
first, as for readers: the disk may only have a bad moment. Invariant: at most one background pass
and one verify run; both stop before the tier is closed. State belongs to the event loop.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from cache_service.errors import VerifyRunningError
from cache_service.listener import CacheListener
from cache_service.ssd_health import SsdHealth
from cache_service.suspects import Suspects
from cache_service.views import PassView, ScrubView
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from storage.errors import CorruptBlockError
from storage.ssd.scrub import LiveBlocks, Scrubber, ScrubStep

__all__ = ["Scrubbing", "SsdBlocks"]

log = logging.getLogger(__name__)

REST_SECONDS = 60.0
"""Between two background passes, so that a small tier is not read over and over."""

FINDINGS_TOLD_MAX = 10
"""Of one pass, one by one; the counts tell the rest."""

PROGRESS_SECONDS = 0.1
"""Between two words about a verify."""


_COUNTS = ("checked_count", "checked_bytes", "corrupt_count", "unreadable_count", "dropped_count")


class SsdBlocks(LiveBlocks, Protocol):
    """The live blocks of the SSD tier, and the way to take one out."""

    def total(self) -> tuple[int, int]:
        """How many live now, and their bytes on the disk, at most."""
        ...

    def drop(self, block_hash: BlockHash, reason: MissReason) -> int:
        """Takes a block and what continues it off the SSD; how many left."""
        ...


@dataclass(slots=True)
class _Pass:
    """A pass under way."""

    started: float
    total_count: int
    total_bytes: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))

    def view(self, now: float, *, done: bool = False) -> PassView:
        # Blocks stored since the start are looked at too: the end is never before what was done.
        return PassView(
            **self.counts,
            total_count=max(self.total_count, self.counts["checked_count"]),
            total_bytes=max(self.total_bytes, self.counts["checked_bytes"]),
            seconds=max(0.0, now - self.started),
            done=done,
        )


class Scrubbing:
    """The service's scrubber."""

    def __init__(
        self,
        scrubber: Scrubber,
        blocks: SsdBlocks,
        health: SsdHealth,
        suspects: Suspects,
        listener: CacheListener,
        clock: Callable[[], float],
        budget_bytes_per_second: int,
    ) -> None:
        self._scrubber = scrubber
        self._blocks = blocks
        self._health = health
        self._suspects = suspects
        self._listener = listener
        self._clock = clock
        self._budget = budget_bytes_per_second
        self._background: asyncio.Task[None] | None = None
        self._verifying = False
        self._stopped = False
        self._running: _Pass | None = None
        self._last: PassView | None = None
        self._pass_count = 0

    def start(self) -> None:
        """Begins background passes, where there is a budget for them."""
        if self._budget and self._background is None:
            self._background = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ends all passes; a verify under way ends with what it found. Idempotent."""
        self._stopped = True
        if self._background is not None:
            self._background.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._background

    def view(self) -> ScrubView:
        now = self._clock()
        running = self._running.view(now) if self._running is not None else None
        return ScrubView(self._budget, self._pass_count, running, self._last)

    async def verify(self, bytes_per_second: int) -> AsyncGenerator[PassView, None]:
        """One pass now, 0 for as fast as the disk gives; a view now and then, the last is `done`
        unless the service stops. Closing it ends the pass. Raises VerifyRunningError.
        """
        if self._verifying:
            raise VerifyRunningError(
                "another verify of this cache is running: wait for its end, or stop it (Ctrl-C)"
            )
        self._verifying = True
        try:
            each = self._begin()
            yield each.view(self._clock())
            told = self._clock()
            async with aclosing(self._walk(each, bytes_per_second or None)) as steps:
                async for _ in steps:
                    if self._clock() - told >= PROGRESS_SECONDS:
                        told = self._clock()
                        yield each.view(told)
            yield each.view(self._clock(), done=not self._stopped)
        finally:
            self._verifying = False

    # -- below -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if self._health.available:
                await self._background_pass()
            await asyncio.sleep(REST_SECONDS)

    async def _background_pass(self) -> None:
        each = self._begin()
        if not each.total_count:
            return  # an empty tier is no news
        self._running = each
        try:
            async with aclosing(self._walk(each, float(self._budget))) as steps:
                async for _ in steps:
                    if not self._health.available:
                        return
            self._last = each.view(self._clock(), done=True)
            self._pass_count += 1
            self._listener.scrub_passed(self._last)
        finally:
            self._running = None

    def _begin(self) -> _Pass:
        return _Pass(self._clock(), *self._blocks.total())

    async def _walk(
        self, each: _Pass, bytes_per_second: float | None
    ) -> AsyncGenerator[ScrubStep, None]:
        async with aclosing(self._scrubber.walk(bytes_per_second)) as steps:
            async for step in steps:
                if self._stopped:
                    return
                each.counts["checked_count"] += 1
                each.counts["checked_bytes"] += step.size_bytes
                self._listener.block_scrubbed(step.size_bytes)
                if step.problem is None:
                    self._health.succeeded()
                    self._suspects.cleared(step.record.block_hash)
                else:
                    self._settle(each, step)
                yield step

    def _settle(self, each: _Pass, step: ScrubStep) -> None:
        """Decides about a finding; the walk has made sure that the block is still there."""
        block_hash = step.record.block_hash
        if isinstance(step.problem, CorruptBlockError):
            kind, reason = "corrupt", MissReason.CORRUPT
            gone = True
        else:
            kind, reason = "unreadable", MissReason.UNAVAILABLE
            self._health.failed()
            gone = self._suspects.failed(block_hash)
        dropped = self._blocks.drop(block_hash, reason) if gone else 0
        each.counts[f"{kind}_count"] += 1
        each.counts["dropped_count"] += dropped
        self._listener.scrub_found(kind, dropped)
        findings = each.counts["corrupt_count"] + each.counts["unreadable_count"]
        log.log(
            logging.WARNING if findings <= FINDINGS_TOLD_MAX else logging.DEBUG,
            "scrub: %s",
            step.problem,
            extra={
                "segment_id": step.location.segment_id,
                "offset": step.location.offset,
                "dropped_count": dropped,
            },
        )
