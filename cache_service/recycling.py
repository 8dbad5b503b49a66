"""Which segment to recycle and what of it to keep. Pure: reads the index, changes nothing.

The victim is the sealed segment whose live blocks are worth least under the eviction policy. Of its
blocks stay, and are written again elsewhere:

    must      pinned blocks (leased, waiting to be written, being read) and everything before one
    may       blocks used again and still above the clock, dearest first, with what they need
              before them, while kept bytes are within `relog_share_max` of the segment

The others leave, with everything after them on the SSD. A segment whose "must" passes the share is
taken only if no other is left and it still gives room, so recycling always makes progress.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cache_service.block import Block
from cache_service.index import BlockIndex
from storage.eviction import USES_MAX
from storage.tier import SegmentId, SegmentState

__all__ = ["RecyclePlan", "plan_recycling"]

RecordBytes = Callable[[int], int]
"""Payload bytes -> bytes of its record in a segment."""


@dataclass(frozen=True, slots=True)
class RecyclePlan:
    """`keep` and `drop` are the segment's live blocks, parents before children."""

    segment_id: SegmentId
    keep: tuple[Block, ...]
    drop: tuple[Block, ...]
    age_to: int
    """Where the clock of the SSD moves: the worth of what leaves for being worth least."""


def plan_recycling(
    index: BlockIndex,
    segments: Iterable[SegmentState],
    record_bytes: RecordBytes,
    relog_share_max: float,
) -> RecyclePlan | None:
    """A plan, or None when no sealed segment can give room."""
    protected = index.protected()
    must_bytes: dict[SegmentId, int] = {}
    for block in protected:
        if block.location is not None:
            segment_id = block.location.segment_id
            size = record_bytes(block.payload_bytes)
            must_bytes[segment_id] = must_bytes.get(segment_id, 0) + size
    victim = _choose(index, segments, must_bytes, relog_share_max)
    if victim is None:
        return None
    blocks = index.segment_blocks(victim.segment_id)
    room = int(relog_share_max * victim.capacity_bytes) - must_bytes.get(victim.segment_id, 0)
    must = {block for block in blocks if block in protected}
    keep = must | _worth_keeping(index, blocks, must, record_bytes, room)
    drop = tuple(block for block in blocks if block not in keep)
    return RecyclePlan(
        victim.segment_id,
        tuple(block for block in blocks if block in keep),
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
        worth = index.segment_worth(segment.segment_id)
        return too_much, must if too_much else worth, segment.generation

    sealed = [segment for segment in segments if segment.state == "sealed"]
    if not sealed:
        return None
    best = min(sealed, key=cost)
    gives_room = must_bytes.get(best.segment_id, 0) < best.used_bytes
    return best if gives_room or not best.used_bytes else None


def _worth_keeping(
    index: BlockIndex,
    blocks: Sequence[Block],
    must: set[Block],
    record_bytes: RecordBytes,
    room: int,
) -> set[Block]:
    """Blocks above the eviction line that fit into `room` bytes, with what goes before them."""
    here = set(blocks)
    kept: set[Block] = set()
    hit = [block for block in blocks if block not in must and index.above_line(block)]
    for block in sorted(hit, key=index.ssd_standing, reverse=True):
        needed = []
        each: Block | None = block
        while each is not None and each in here and each not in must and each not in kept:
            needed.append(each)
            each = each.parent
        size = sum(record_bytes(block.payload_bytes) for block in needed)
        if size <= room:
            room -= size
            kept.update(needed)
    return kept


def _age_to(index: BlockIndex, drop: Sequence[Block]) -> int:
    """The worth of blocks used once that leave: dearer ones left for want of room in the share."""
    worths = [index.ssd_standing(block)[0] for block in drop if not index.above_line(block)]
    if not worths and drop:
        worths = [min(index.ssd_standing(block)[0] for block in drop) - USES_MAX + 1]
    return max(worths, default=0)
