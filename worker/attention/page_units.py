"""What a step's single queries have to attend to, in units that threads take one after the other.

    entry    a page, or the part of it that a query sees
    unit     some entries and the queries that see all of them, its holders: pages that several
             sequences hold are read once for all of them
    slot     where a unit puts what it gives one query

Pure: made of a step's spans and a window alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from worker.attention.step import AttentionStep, Numbers, SpanPlace

__all__ = ["PageUnits", "page_units"]

UNIT_PAGES_MAX = 16
"""So few that threads end at about the same time; each unit costs a slot, and its first page is
not asked for ahead."""
UNITS_A_THREAD = 4


@dataclass(frozen=True, slots=True)
class PageUnits:
    """All int64 and contiguous."""

    query_rows: Numbers
    """Of each single query, its row in the step."""
    entries: Numbers
    """`[entries, 3]`: page, first token, end."""
    units: Numbers
    """`[units, 5]`: first entry, end; first holder, end; first slot."""
    holders: Numbers
    """Queries; those of a unit stand together."""
    slots: Numbers
    """Each query's, one query after the other."""
    slot_ends: Numbers
    """`[queries + 1]`: where each query's begin in `slots`, and the last one's end."""
    counters: Numbers
    """What the kernel counts by: 0, and of each query in how many units it is."""


def page_units(step: AttentionStep, window: int | None, threads: int) -> PageUnits:
    """Those of the spans of one query in `step`, each to at most `window` tokens."""
    size = step.block_tokens
    spans = [span for span in step.spans if span.query_count == 1]
    seen = [_seen(span, window, size) for span in spans]
    total = sum(len(each) for each in seen)
    pages_max = max(1, min(UNIT_PAGES_MAX, total // (UNITS_A_THREAD * threads)))
    entries, units, holders = [], [], []
    entry_count = holder_count = slot_count = 0
    for owners, of_them in _by_holders(seen, size):
        holders += owners
        entries.append(of_them)
        for first in range(0, len(of_them), pages_max):
            end = min(first + pages_max, len(of_them))
            units.append(
                (
                    entry_count + first,
                    entry_count + end,
                    holder_count,
                    holder_count + len(owners),
                    slot_count,
                )
            )
            slot_count += len(owners)
        entry_count += len(of_them)
        holder_count += len(owners)
    slot_owners = [owner for unit in units for owner in holders[unit[2] : unit[3]]]
    counts = np.bincount(slot_owners, minlength=len(spans))
    return PageUnits(
        query_rows=np.array([span.query_start for span in spans], dtype=np.int64),
        entries=np.concatenate(entries),
        units=np.array(units, dtype=np.int64),
        holders=np.array(holders, dtype=np.int64),
        slots=np.argsort(slot_owners, kind="stable"),
        slot_ends=np.concatenate([[0], np.cumsum(counts)]),
        counters=np.concatenate([[0], counts]),
    )


def _seen(span: SpanPlace, window: int | None, size: int) -> Numbers:
    """The entries of a query."""
    oldest = 0 if window is None else max(0, span.context - window)
    first, last = oldest // size, (span.context - 1) // size
    found = np.empty((last + 1 - first, 3), dtype=np.int64)
    found[:, 0] = span.pages[first : last + 1]
    found[:, 1], found[:, 2] = 0, size
    found[0, 1] = oldest - first * size
    found[-1, 2] = span.context - last * size
    return found


def _by_holders(seen: Sequence[Numbers], size: int) -> Iterator[tuple[list[int], Numbers]]:
    """Queries, and the entries that just they see."""
    every = np.concatenate(seen)
    owners = np.repeat(np.arange(len(seen)), [len(each) for each in seen])
    pages, places, counts = np.unique(every[:, 0], return_inverse=True, return_counts=True)
    if len(pages) == len(every):
        yield from (([owner], each) for owner, each in enumerate(seen))
        return
    # Of a page that is seen in part each has its own: they need not see the same.
    whole = (every[:, 2] - every[:, 1]) == size
    alone = (counts[places] == 1) | ~whole
    for owner in range(len(seen)):
        own = every[alone & (owners == owner)]
        if len(own):
            yield [owner], own
    groups: dict[tuple[int, ...], list[int]] = {}
    order = np.flatnonzero(~alone)
    order = order[np.argsort(every[order, 0], kind="stable")]
    ends = np.flatnonzero(np.diff(every[order, 0], append=-1)) + 1
    begin = 0
    for end in ends.tolist():
        groups.setdefault(tuple(owners[order[begin:end]].tolist()), []).append(int(order[begin]))
        begin = end
    for of_them, at in groups.items():
        yield list(of_them), every[at]
