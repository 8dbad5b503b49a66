"""Scrub: read and verify every live record, in the order in which they lie, before a reader does.

    for each segment: ask the owner what lives there -> for each record: wait for the budget, wait
    until nobody reads, verify, say what was found

Mechanism only: what a finding means is the owner's decision. Invariant: at most one record is read
at a time, on a thread of its own; readers go first, but not for ever; a record that left its place
while it was looked at is no finding. One event loop; clock and sleep are injected.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from storage.errors import CorruptBlockError, TierIOError
from storage.ssd.format import record_bytes
from storage.tier import BlockRecord, SegmentId, SsdLocation

__all__ = ["LiveBlocks", "Pace", "ScrubStep", "Scrubber", "VerifyingTier"]

Placed = tuple[BlockRecord, SsdLocation]

_YIELD_SECONDS = 0.01
_YIELDS_MAX = 50
"""After half a second of constant reading one record is looked at all the same."""


class LiveBlocks(Protocol):
    """What the owner of the blocks knows. Asked between records, so it must be quick."""

    def segment_ids(self) -> Sequence[SegmentId]:
        """Segments that hold live blocks, in the order in which to walk them."""
        ...

    def in_segment(self, segment_id: SegmentId) -> Iterable[Placed]:
        """Live blocks of a segment, in rising order of offset."""
        ...

    def holds(self, record: BlockRecord, location: SsdLocation) -> bool:
        """True while the block lives at that very place."""
        ...


class VerifyingTier(Protocol):
    """The part of an SSD tier that a scrub needs."""

    @property
    def reads_under_way(self) -> int: ...

    async def verify(self, record: BlockRecord, location: SsdLocation) -> None:
        """Raises CorruptBlockError, TierIOError."""
        ...


@dataclass(frozen=True, slots=True)
class ScrubStep:
    """One record was looked at."""

    record: BlockRecord
    location: SsdLocation
    problem: CorruptBlockError | TierIOError | None

    @property
    def size_bytes(self) -> int:
        """Read from the disk for it."""
        return record_bytes(self.location.stored_bytes)


class Pace:
    """At most so many bytes a second, smoothed over one record; None for no limit."""

    def __init__(self, bytes_per_second: float | None, clock: Callable[[], float]) -> None:
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._free_at = clock()

    def wait_seconds(self, size_bytes: int) -> float:
        """Takes `size_bytes` out of the budget; how long to wait before reading the next ones.

        Never longer than these bytes are worth, so that a clock that jumps back costs nothing.
        """
        if self._bytes_per_second is None:
            return 0.0
        now, worth = self._clock(), size_bytes / self._bytes_per_second
        wait = min(max(0.0, self._free_at - now), worth)
        self._free_at = now + wait + worth
        return wait


class Scrubber:
    """Walks a tier's live blocks, any number of times, one walk at a time or several."""

    def __init__(
        self,
        tier: VerifyingTier,
        live: LiveBlocks,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._tier = tier
        self._live = live
        self._clock = clock
        self._sleep = sleep

    async def walk(self, bytes_per_second: float | None) -> AsyncGenerator[ScrubStep, None]:
        """One pass over what lives now; what is stored meanwhile may be left out.

        Close it to end early; do so before the tier is closed.
        """
        pace = Pace(bytes_per_second, self._clock)
        for segment_id in self._live.segment_ids():
            for record, location in self._live.in_segment(segment_id):
                if not self._live.holds(record, location):
                    continue
                await self._turn(pace.wait_seconds(record_bytes(location.stored_bytes)))
                problem = await self._problem(record, location)
                if problem is None or self._live.holds(record, location):
                    yield ScrubStep(record, location, problem)

    async def _turn(self, wait_seconds: float) -> None:
        """Returns when the budget allows and nobody else reads, or did for too long."""
        if wait_seconds > 0:
            await self._sleep(wait_seconds)
        for _ in range(_YIELDS_MAX):
            if not self._tier.reads_under_way:
                return
            await self._sleep(_YIELD_SECONDS)

    async def _problem(
        self, record: BlockRecord, location: SsdLocation
    ) -> CorruptBlockError | TierIOError | None:
        try:
            await self._tier.verify(record, location)
        except (CorruptBlockError, TierIOError) as error:
            return error
        return None
