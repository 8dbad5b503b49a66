"""What is true of a segment when its file and its index row may disagree.

    row says        file says                  outcome
    ------------    -----------------------    ------------------------------------------------
    open, sealed    same generation and seed   as the row says
    open, sealed    damaged header page        as the row says; header to be written again
    open, sealed    higher generation          a recycle was not finished: free at the file's
    open, sealed    anything else              not the file the row knew: free, row's + 1
    free            same or lower, or blank    free at the row's
    free            higher generation          free at the file's
    none            blank                      free at 1: a new segment
    none            anything else              not known: free at the file's + 1

Invariant: a generation never goes down, and a segment is never free at a generation under which
acknowledged records may lie in its file with the seed of a later opening. Pure, any thread.
"""

from dataclasses import dataclass

from storage.ssd.format import SegmentHeader
from storage.ssd.index import SegmentRow
from storage.ssd.segments import FREE
from storage.tier import PAGE_BYTES, SegmentId

__all__ = ["Found", "Settled", "settle"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a segment's file says."""

    header: SegmentHeader | None = None
    """None for a blank page, or when damaged."""
    damage: str = ""
    """Why the header page is unusable; empty when it is not."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The truth, and what has to be done about it."""

    row: SegmentRow
    rewrite_header: bool = False
    problem: str = ""


def settle(segment_id: SegmentId, row: SegmentRow | None, found: Found) -> Settled:
    """Applies the table above."""
    if row is None:
        return _unknown(segment_id, found)
    if row.state == FREE:
        header = found.header
        generation = max(row.generation, header.generation if header else 0)
        return Settled(_free(row, generation), rewrite_header=bool(found.damage))
    if found.damage:
        return Settled(
            row,
            rewrite_header=True,
            problem=f"segment {segment_id}: {found.damage}; written again from the index",
        )
    header = found.header
    if header is not None and header.generation > row.generation:
        # Recycled (seed 0), or even opened again by a write that the index never heard of.
        generation = header.generation + (header.seed != 0)
        return Settled(_free(row, generation))
    if header is None or (header.generation, header.seed) != (row.generation, row.seed):
        return Settled(
            _free(row, row.generation + 1),
            rewrite_header=True,
            problem=f"segment {segment_id}: its file is blank or older than the index;"
            " its blocks are dropped",
        )
    return Settled(row)


def _unknown(segment_id: SegmentId, found: Found) -> Settled:
    fresh = SegmentRow(segment_id, 1, FREE, PAGE_BYTES, 0, 0)
    if found.header is None and not found.damage:
        return Settled(fresh)
    generation = found.header.generation + 1 if found.header else 1
    return Settled(
        _free(fresh, generation),
        rewrite_header=True,
        problem=f"segment {segment_id}: {found.damage or 'unknown to the index'}; it is used anew",
    )


def _free(row: SegmentRow, generation: int) -> SegmentRow:
    return SegmentRow(row.segment_id, generation, FREE, PAGE_BYTES, 0, row.prewritten_bytes)
