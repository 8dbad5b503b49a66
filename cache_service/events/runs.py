"""Runs: neighbours that are alike but for their blocks, told once. Pure, any thread."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from cache_service.events.changes import EventColumns, EventKind, read_code
from kvtier.blocks import MissReason, Tier

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BlockRun", "EventRun", "event_runs", "spans"]


@dataclass(frozen=True, slots=True)
class EventRun:
    """Events that follow each other. Hashes are packed, 32 bytes each."""

    kind: EventKind
    tier: Tier
    reason: MissReason
    namespace_id: bytes
    block_bytes: int
    hashes: bytes
    parents: bytes
    """As many; zeros for the first block of a chain."""

    @property
    def count(self) -> int:
        return len(self.hashes) // 32


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks that are cached, in these tiers and no other."""

    tiers: tuple[Tier, ...]
    namespace_id: bytes
    block_bytes: int
    hashes: bytes
    parents: bytes

    @property
    def count(self) -> int:
        return len(self.hashes) // 32


def event_runs(events: EventColumns, count_max: int) -> tuple[EventRun, ...]:
    """The first ones, in order: all events, or those of so many runs."""
    count = len(events)
    if not count:
        return ()
    same = (
        (events.codes[1:] == events.codes[:-1])
        & (events.block_bytes[1:] == events.block_bytes[:-1])
        & (events.namespaces[1:] == events.namespaces[:-1]).all(axis=1)
    )
    return tuple(_run(events, start, end) for start, end in islice(spans(same), count_max))


def _run(events: EventColumns, start: int, end: int) -> EventRun:
    kind, tier, reason = read_code(int(events.codes[start]))
    return EventRun(
        kind,
        tier,
        reason,
        events.namespaces[start].tobytes(),
        int(events.block_bytes[start]),
        events.hashes[start:end].tobytes(),
        events.parents[start:end].tobytes(),
    )


def spans(same: "NDArray[np.bool_]") -> Iterator[tuple[int, int]]:
    """Starts and ends of runs, where `same` says whether each is like the one before it."""
    ends = [*(np.flatnonzero(~same) + 1).tolist(), len(same) + 1]
    start = 0
    for end in ends:
        yield start, end
        start = end
