"""Levels: which runs of a chain's blocks are one object, and where to look for them. Pure.

    blocks   0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20 21
    level 2  [---------------------- 16 -----------------------]
    level 1                                                     [--- 4 ---]
    level 0                                                                 [1][1]

An extent is an aligned run of 1, 4 or 16 blocks, counted from the chain's first, and is named by
the hash of its last block: that hash names all before it as well, so whoever knows a chain knows
the names of all its extents. What is written is never written again, whatever a chain grows to.

A chain that parts from another within an extent finds nothing of that one. So where chains are
known to part (a scope ends, a second chain was seen) the blocks before are in smaller ones too.

A level's extents are written in the order of the chain, so where one is, those before it are too,
as a rule: the last one is found by search and not by asking for each. Where the rule is broken (an
engine let one go) the prefix is shorter. Invariant: hosts agree on all of this, or find nothing.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

__all__ = ["EXTENT_BYTES", "Extent", "begins", "completed", "level_sizes"]

EXTENT_BYTES = 16 * 1024 * 1024
"""What an extent holds at most, a single block aside: with that much an object store is at its
bandwidth, and a reader has several under way."""

FAN = 4
BLOCKS_MAX = 16
"""A thousand tokens of usual blocks: what a chain loses, at most, that parts from another one."""


class Extent(NamedTuple):
    """Blocks `start` to `end - 1` of a chain, counted from its first block."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def level_sizes(block_bytes: int) -> tuple[int, ...]:
    """Blocks of an extent at each level, small to large."""
    sizes, size = [1], FAN
    while size <= BLOCKS_MAX and size * block_bytes <= EXTENT_BYTES:
        sizes.append(size)
        size *= FAN
    return tuple(sizes)


def completed(
    sizes: tuple[int, ...],
    first: int,
    end: int,
    whole: Callable[[int, int], bool],
    stops: Collection[int] = (),
) -> list[Extent]:
    """The extents to write when blocks `first` to `end - 1` came, in the order of the chain.

    Each new block is in the largest extent that ends with or after `first`, is complete by `end`
    and is `whole`: all of it can be read now. What is not whole falls into smaller ones. `stops`:
    where other chains may part, at most `end`; all that leads there is in extents that end by it,
    as far as they are whole.
    """
    top, found = sizes[-1], dict[Extent, None]()
    for stop in sorted({*stops, end}):
        last = stop - stop % top if stop < end else first - first % top
        begin = first if stop == end else min(first, last)
        for at in range(last, stop, top):
            for each in _completed(sizes, at, len(sizes) - 1, begin, stop, whole):
                found[each] = None
    return sorted(found)


def _completed(
    sizes: tuple[int, ...],
    at: int,
    level: int,
    first: int,
    end: int,
    whole: Callable[[int, int], bool],
) -> Iterator[Extent]:
    stop = at + sizes[level]
    if stop <= first or at >= end:
        return
    if stop <= end and whole(at, stop):
        yield Extent(at, stop)
    elif level:
        for below in range(at, stop, sizes[level - 1]):
            yield from _completed(sizes, below, level - 1, first, end, whole)


def _starts(size: int, position: int, end: int) -> range:
    """Where extents of that size begin that hold `position` or a later block, and end by `end`."""
    first = position - position % size
    return range(first, max(first, end - size + 1), size)


def begins(sizes: tuple[int, ...], level: int, position: int, end: int) -> range:
    """Where extents of a level may begin that continue a prefix of `position` blocks and end by
    `end`. Below the largest level only those within one extent of the next one: had that been
    there, it would be it."""
    if level + 1 < len(sizes):
        above = sizes[level + 1]
        end = min(end, position - position % above + above)
    return _starts(sizes[level], position, end)
