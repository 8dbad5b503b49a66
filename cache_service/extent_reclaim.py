"""Which blocks leave so that a slab of another size fits. Pure: reads the index, changes nothing.

A slab size without a free slab needs a whole extent of another size. Evicting leaf after leaf until
some extent happens to be empty would throw out most of the arena for one slab, and where each
extent holds one leased block it would throw out everything for nothing. So an extent is chosen: of
those in which nothing has to stay, the one whose blocks are worth least together. They leave with
what continues them in host memory; what has a record on the SSD stays cached there.

Has to stay: held and withheld blocks and everything before one, and slabs that are reserved or
being loaded; for an account above its soft quota also what another has within its own.
O(blocks in host memory), in NumPy; rare, because an extent holds many slabs.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cache_service.accounts import Account
from cache_service.block_columns import NOWHERE
from cache_service.index import BlockIndex
from storage.host.arena import HostArena
from storage.tier import PAGE_BYTES, rounded

__all__ = ["leaf_of_size", "rows_of_extent"]


def rows_of_extent(
    index: BlockIndex, arena: HostArena, slab_bytes: int, asker: Account | None = None
) -> list[int] | None:
    """Rows that leave, children before parents, to empty the best extent of another slab size.

    `asker`: the account they leave for. None when every such extent has something that must stay.
    """
    rows, extents = _placed(index, arena)
    candidates = _candidates(index, arena, slab_bytes, rows, extents)
    if not candidates:
        return None
    worths = np.bincount(extents, index.host_worths(rows), minlength=max(candidates) + 1)
    for extent in sorted(candidates, key=lambda extent: (worths[extent], -extent)):
        leaving = _with_what_follows(index, rows[extents == extent].tolist())
        if index.accounts is None or index.accounts.may_leave_for(asker, leaving):
            return leaving
    return None


def leaf_of_size(
    index: BlockIndex, arena: HostArena, slab_bytes: int, asker: Account | None = None
) -> int | None:
    """The leaf of one slab size that is worth least; None when none may leave."""
    tree, columns, accounts = index.tree, index.tree.columns, index.accounts
    rows, _ = _placed(index, arena)
    free = (columns.array("pins")[rows] == 0) & (columns.array("host_children")[rows] == 0)
    on_ssd = columns.array("segment")[rows] != NOWHERE
    free &= on_ssd | (columns.array("first_child")[rows] == NOWHERE)
    leaves = (
        row
        for row in rows[free].tolist()
        if rounded(tree.payload_bytes(row)) == slab_bytes
        and not index.keeping.withheld(row)
        and (accounts is None or accounts.may_leave_for(asker, [row]))
    )
    return min(leaves, key=index.host_standing, default=None)


def _placed(index: BlockIndex, arena: HostArena) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of cached blocks in host memory, and the extent of each."""
    columns, high = index.tree.columns, index.tree.directory.row_high
    pages = columns.array("slab_page")[:high]
    cached = columns.array("cached")[:high].astype(bool)
    rows = np.flatnonzero(cached & (pages != NOWHERE))
    extents: NDArray[np.int64] = pages[rows].astype(np.int64) // (arena.extent_bytes // PAGE_BYTES)
    return rows, extents


def _candidates(
    index: BlockIndex,
    arena: HostArena,
    slab_bytes: int,
    rows: NDArray[np.int64],
    extents: NDArray[np.int64],
) -> list[int]:
    """Extents of other sizes whose every slab is a block that may leave."""
    protected = index.protected()
    may_leave = np.fromiter((row not in protected for row in rows.tolist()), bool, len(rows))
    counts = np.bincount(extents[may_leave], minlength=1)
    return [
        number
        for number, (size, used_count) in arena.extents().items()
        if size != slab_bytes and number < len(counts) and counts[number] == used_count
    ]


def _with_what_follows(index: BlockIndex, rows: Iterable[int]) -> list[int]:
    tree, leaving = index.tree, dict[int, None]()
    for row in rows:
        for each in reversed(tree.subtree(row)):
            if tree.in_host(each):
                leaving[each] = None
    return list(leaving)
