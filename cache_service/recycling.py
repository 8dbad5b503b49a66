"""Which segment to recycle and what of it to keep. Pure: reads the index, changes nothing.

The victim is the sealed segment whose live blocks are worth least under the eviction policy. Of its
blocks stay, and are written again elsewhere:

    must      held blocks (leased, waiting to be written, being read) and everything before one;
              blocks that pins name
    may       blocks used again and still above the clock, dearest first, with what they need
              before them, while kept bytes are within `relog_share_max` of the segment; none
              on an account above its soft quota for the SSD

The others leave, with everything after them on the SSD. A segment whose "must" passes the share is
taken only if no other is left and it still gives room, so recycling always makes progress.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cache_service.index import BlockIndex
from storage.policy.order import USES_MAX
from storage.tier import SegmentId, SegmentState

__all__ = ["RecyclePlan", "plan_recycling"]

RecordBytes = Callable[[int], int]
"""Stored bytes -> bytes of its record in a segment."""


@dataclass(frozen=True, slots=True)
class RecyclePlan:
    """`keep` and `drop` are rows of the segment's live blocks, parents before children."""

    segment_id: SegmentId
    keep: tuple[int, ...]
    drop: tuple[int, ...]
    age_to: int
    """Where the clock of the SSD moves: the worth of what leaves for being worth least."""


def plan_recycling(
    index: BlockIndex,
    segments: Iterable[SegmentState],
    record_bytes: RecordBytes,
    relog_share_max: float,
) -> RecyclePlan | None:
    """A plan, or None when no sealed segment can give room."""
    tree, protected = index.tree, index.protected()
    must_bytes = index.keeping.segment_bytes()
    for row in protected:
        if tree.on_ssd(row) and not index.keeping.kept(row):
            segment_id = SegmentId(tree.segment(row))
            size = record_bytes(tree.columns.stored_bytes[row])
            must_bytes[segment_id] = must_bytes.get(segment_id, 0) + size
    victim = _choose(index, segments, must_bytes, relog_share_max)
    if victim is None:
        return None
    rows = index.segments.rows(victim.segment_id)
    room = int(relog_share_max * victim.capacity_bytes) - must_bytes.get(victim.segment_id, 0)
    must = {row for row in rows if row in protected or index.keeping.kept(row)}
    keep = must | _worth_keeping(index, rows, must, record_bytes, room)
    drop = tuple(row for row in rows if row not in keep)
    return RecyclePlan(
        victim.segment_id,
        tuple(row for row in rows if row in keep),
        drop,
        _age_to(index, drop),
    )


def _choose(
    index: BlockIndex,
    segments: Iterable[SegmentState],
    must_bytes: dict[SegmentId, int],
    relog_share_max: float,
) -> SegmentState | None:
    """The sealed segment worth least among those with little that must stay."""

    def cost(segment: SegmentState) -> tuple[bool, int, int]:
        must = must_bytes.get(segment.segment_id, 0)
        too_much = must > relog_share_max * segment.capacity_bytes
        worth = index.segments.worth(segment.segment_id)
        return too_much, must if too_much else worth, segment.generation

    sealed = [segment for segment in segments if segment.state == "sealed"]
    if not sealed:
        return None
    best = min(sealed, key=cost)
    gives_room = must_bytes.get(best.segment_id, 0) < best.used_bytes
    return best if gives_room or not best.used_bytes else None


def _worth_keeping(
    index: BlockIndex,
    rows: Sequence[int],
    must: set[int],
    record_bytes: RecordBytes,
    room: int,
) -> set[int]:
    """Blocks above the eviction line that fit into `room` bytes, with what goes before them."""
    tree, here = index.tree, set(rows)
    kept: set[int] = set()
    hit = [row for row in rows if row not in must and index.above_line(row)]
    accounts = index.accounts
    if accounts is not None:
        hit = [row for row in hit if not accounts.over_ssd_soft(row)]
    for row in sorted(hit, key=index.ssd_standing, reverse=True):
        needed = []
        each = row
        while each in here and each not in must and each not in kept:
            needed.append(each)
            each = tree.parent(each)
        size = sum(record_bytes(tree.columns.stored_bytes[row]) for row in needed)
        if size <= room:
            room -= size
            kept.update(needed)
    return kept


def _age_to(index: BlockIndex, drop: Sequence[int]) -> int:
    """The worth of blocks used once that leave: dearer ones left for want of room in the share."""
    worths = [index.ssd_worth(row) for row in drop if not index.above_line(row)]
    if not worths and drop:
        worths = [min(index.ssd_worth(row) for row in drop) - USES_MAX + 1]
    return max(worths, default=0)
