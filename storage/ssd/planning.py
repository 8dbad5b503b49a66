"""Where a batch would go: which run of it into which segment, and those segments as they will be.

Invariant: planning changes nothing, so a batch that does not fit is refused before a byte is
written. Pure but for the seeds it draws; called by the writer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.errors import SegmentsFullError
from storage.ssd.encoding import StoredBlock
from storage.ssd.segments import Segment, SegmentTable, filled, opened, sealed
from storage.tier import PAGE_BYTES

__all__ = ["AppendPlan", "Part", "plan_append"]


@dataclass(frozen=True, slots=True)
class Part:
    """The run of a batch that goes into one segment."""

    segment: Segment
    """As it is once opened; its tail is where the first item goes."""
    items: Sequence[StoredBlock]

    @property
    def end(self) -> int:
        return self.segment.tail + sum(block.record_bytes for block in self.items)


@dataclass(frozen=True, slots=True)
class AppendPlan:
    """In order of writing."""

    parts: Sequence[Part]
    changed: Sequence[Segment]
    """Segments as they are once all parts are durable."""

    @property
    def written_bytes(self) -> int:
        """Records, and a header for each segment that is opened for them."""
        opened = sum(part.segment.tail == PAGE_BYTES for part in self.parts)
        return opened * PAGE_BYTES + sum(part.end - part.segment.tail for part in self.parts)


def plan_append(
    table: SegmentTable, batch: Sequence[StoredBlock], draw_seed: Callable[[], int]
) -> AppendPlan:
    """Raises SegmentsFullError when the free segments do not hold all of it."""
    current = table.open_segment()
    free = iter(table.free_segments())
    parts: list[Part] = []
    changed: list[Segment] = []
    start = 0
    while start < len(batch):
        end = _fitting(batch, start, current, table.segment_bytes)
        if current is not None and end > start:
            parts.append(Part(current, batch[start:end]))
            current = filled(current, parts[-1].end)
            start = end
            continue
        if current is not None:
            changed.append(sealed(current))
        chosen = next(free, None)
        if chosen is None:
            raise SegmentsFullError("no free segment is left; recycle one first")
        current = opened(chosen, draw_seed())
    if current is not None:
        changed.append(current)
    return AppendPlan(parts, changed)


def _fitting(
    batch: Sequence[StoredBlock], start: int, segment: Segment | None, segment_bytes: int
) -> int:
    """Index after the last item from `start` on that still fits `segment`."""
    if segment is None:
        return start
    tail = segment.tail
    for i in range(start, len(batch)):
        tail += batch[i].record_bytes
        if tail > segment_bytes:
            return i
    return len(batch)
