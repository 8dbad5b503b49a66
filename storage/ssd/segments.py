"""The state of every segment: free, open or sealed, and how far it is filled.

    free --open_for_writing--> open --seal--> sealed --recycled--> free (generation + 1)

Invariant: at most one segment is open; `view` always is a consistent copy. Written by the writer
thread only (and by recovery, before there is one); `view` is one reference, replaced as a whole, so
the event loop and the readers look at it without a lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from storage.ssd.format import SegmentHeader
from storage.tier import PAGE_BYTES, SegmentId, SegmentState

__all__ = [
    "FREE",
    "OPEN",
    "SEALED",
    "Segment",
    "SegmentTable",
    "filled",
    "freed",
    "opened",
    "sealed",
    "used_bytes",
]

FREE, OPEN, SEALED = "free", "open", "sealed"


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as of now."""

    segment_id: SegmentId
    fd: int
    generation: int
    state: str
    tail: int
    """Offset of the next record; all before it is durable."""
    seed: int
    """0 while free."""
    prewritten_bytes: int
    """From the start of the file, how much was physically written at any time in its life."""


class SegmentTable:
    """All segments by id, 0 to n-1."""

    def __init__(self, segments: Sequence[Segment], segment_bytes: int) -> None:
        self.segment_bytes = segment_bytes
        self.view: tuple[Segment, ...] = tuple(segments)

    def put(self, *changed: Segment) -> None:
        """Replaces segments, all at once."""
        segments = list(self.view)
        for segment in changed:
            segments[segment.segment_id] = segment
        self.view = tuple(segments)

    def get(self, segment_id: SegmentId) -> Segment | None:
        view = self.view
        return view[segment_id] if 0 <= segment_id < len(view) else None

    def open_segment(self) -> Segment | None:
        return next((s for s in self.view if s.state == OPEN), None)

    def free_segments(self) -> list[Segment]:
        """Best first: pre-written ones, then the ones nearest to it, then by id."""
        free = [s for s in self.view if s.state == FREE]
        return sorted(free, key=lambda s: (-s.prewritten_bytes, s.segment_id))

    def free_count(self) -> int:
        return sum(s.state == FREE for s in self.view)

    def header_of(self, segment: Segment) -> SegmentHeader:
        return SegmentHeader(
            segment.segment_id, segment.generation, self.segment_bytes, segment.seed
        )

    def states(self) -> list[SegmentState]:
        return [
            SegmentState(s.segment_id, s.generation, s.state, used_bytes(s), self.segment_bytes)
            for s in self.view
        ]

    def used_bytes(self) -> int:
        return sum(used_bytes(s) for s in self.view)

    def check_integrity(self) -> None:
        """Asserts the invariants that hold between any two operations."""
        view = self.view
        assert [s.segment_id for s in view] == list(range(len(view)))
        assert sum(s.state == OPEN for s in view) <= 1, "two segments are open"
        for s in view:
            assert s.state in (FREE, OPEN, SEALED), s
            assert s.generation >= 1, s
            assert s.tail % PAGE_BYTES == 0, s
            assert PAGE_BYTES <= s.tail <= self.segment_bytes, s
            assert (s.seed == 0) == (s.state == FREE), s
            assert s.state != FREE or s.tail == PAGE_BYTES, s


def used_bytes(segment: Segment) -> int:
    """Bytes that hold the header page and records; 0 for a free segment."""
    return 0 if segment.state == FREE else segment.tail


def opened(segment: Segment, seed: int) -> Segment:
    assert segment.state == FREE, segment
    return replace(segment, state=OPEN, seed=seed, tail=PAGE_BYTES)


def filled(segment: Segment, tail: int) -> Segment:
    assert segment.state == OPEN, segment
    return replace(segment, tail=tail, prewritten_bytes=max(segment.prewritten_bytes, tail))


def sealed(segment: Segment) -> Segment:
    assert segment.state == OPEN, segment
    return replace(segment, state=SEALED)


def freed(segment: Segment, generation: int) -> Segment:
    assert generation > segment.generation, segment
    return replace(segment, state=FREE, generation=generation, seed=0, tail=PAGE_BYTES)
