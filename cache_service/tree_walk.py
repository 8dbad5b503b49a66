"""A walk over the prefix tree, parents before children, in slices that hold the loop for a moment.

    roots in row order; below each, depth first; a run of one owner's only children is one node

A walk has no memory but its place: the tree it is in and the hash of the node that comes next. So a
slice can follow the last one whatever happened between; when that node left, the rest of its tree
is left out and the walk says so. Changes nothing. Event loop only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.explain_views import TierShareView, TreeNodeView
from cache_service.index import BlockIndex
from kvtier.blocks import Tier
from kvtier.keys import HASH_BYTES, BlockHash

__all__ = ["LEAVING_MAX", "START", "Place", "Slice", "slice_of"]

NODES_MAX = 256
STEPS_MAX = 4096
"""Of one slice: nodes, and blocks looked at (a few milliseconds)."""
RUN_MAX = 1024
"""Blocks of one node; a longer run is several."""
LEAVING_MAX = 256
ROWS_AT_ONCE = 65_536
ROW_BYTES = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a walk goes on: at a node, or at the next tree."""

    root: int
    """Row of the tree that it is in, or has just left."""
    block_hash: BlockHash | None = None
    """Of the node that comes next; None: the next tree's first."""

    def encode(self) -> bytes:
        return (self.root + 1).to_bytes(ROW_BYTES, "big") + (self.block_hash or b"")

    @classmethod
    def decode(cls, token: bytes) -> "Place":
        """Raises ValueError."""
        if len(token) not in (ROW_BYTES, ROW_BYTES + HASH_BYTES):
            raise ValueError("no place of a walk has that length")
        root = int.from_bytes(token[:ROW_BYTES], "big") - 1
        return cls(root, BlockHash(token[ROW_BYTES:]) if len(token) > ROW_BYTES else None)


START = Place(-1)


@dataclass(frozen=True, slots=True)
class Slice:
    """The next nodes of a walk."""

    nodes: tuple[TreeNodeView, ...]
    place: Place | None
    """Where the next slice begins; None at the end."""
    changed: bool
    """Something before these nodes was left out."""


def slice_of(
    index: BlockIndex, place: Place, kinds: frozenset[int] | None, top: int, nodes_max: int
) -> Slice:
    """Goes on from `place`. `kinds`: only of these; `top`: only this block and what continues it,
    NOWHERE for all."""
    tree = index.tree
    nodes_max = min(nodes_max, NODES_MAX)
    ranks = {row: rank for rank, row in enumerate(index.host_leaving(LEAVING_MAX), 1)}
    nodes: list[TreeNodeView] = []
    steps = 0
    row, root, changed = _resume(index, place)
    roots = iter(()) if top != NOWHERE else _roots(index, root, kinds)
    if top != NOWHERE:
        row, root = top if place == START else row, top
    while True:
        if row == NOWHERE:
            root = row = next(roots, NOWHERE)
            if row == NOWHERE:
                return Slice(tuple(nodes), None, changed)
        if len(nodes) >= nodes_max or steps >= STEPS_MAX:
            return Slice(tuple(nodes), Place(root, tree.block_hash(row)), changed)
        run = _run(index, row)
        nodes.append(_node(index, run, ranks))
        steps += len(run)
        row = _after(index, run[-1], root)


def _resume(index: BlockIndex, place: Place) -> tuple[int, int, bool]:
    """The row that comes next (NOWHERE: the next tree), its tree's, whether something is lost."""
    if place.block_hash is None:
        return NOWHERE, place.root, False
    row = index.tree.find(place.block_hash)
    if row == ABSENT:
        return NOWHERE, place.root, True
    return row, place.root, False


def _roots(index: BlockIndex, after: int, kinds: frozenset[int] | None) -> Iterator[int]:
    """Rows of first blocks behind row `after`, ascending."""
    tree = index.tree
    for start in range(after + 1, tree.directory.row_high, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, tree.directory.row_high))
        first = tree.columns.array("cached")[rows] != 0
        first &= tree.columns.array("parent")[rows] == NOWHERE
        if kinds is not None:
            first &= np.isin(tree.columns.array("kind")[rows], list(kinds))
        yield from (np.flatnonzero(first) + start).tolist()


def _run(index: BlockIndex, row: int) -> list[int]:
    """A block and the only children that follow it, of its kind and owner."""
    columns = index.tree.columns
    run = [row]
    while len(run) < RUN_MAX:
        child = columns.first_child[run[-1]]
        if child == NOWHERE or columns.next_sibling[child] != NOWHERE:
            break
        if columns.kind[child] != columns.kind[row] or columns.owner[child] != columns.owner[row]:
            break
        run.append(child)
    return run


def _after(index: BlockIndex, row: int, root: int) -> int:
    """The row that follows depth first, within the tree of `root`; NOWHERE at its end."""
    columns = index.tree.columns
    child: int = columns.first_child[row]
    if child != NOWHERE:
        return child
    while row not in (root, NOWHERE):
        sibling: int = columns.next_sibling[row]
        if sibling != NOWHERE:
            return sibling
        row = columns.parent[row]
    return NOWHERE


def _node(index: BlockIndex, run: list[int], ranks: dict[int, int]) -> TreeNodeView:
    tree, columns = index.tree, index.tree.columns
    namespace_id, block_bytes = tree.namespaces.kind(tree.kind(run[0]))
    in_host = on_ssd = pinned = ssd_leaving = hits = last = latest = rank = 0
    for row in run:
        held = columns.pins[row] > 0
        pinned += held
        in_host += columns.slab_page[row] != NOWHERE
        if columns.segment[row] != NOWHERE:
            on_ssd += 1
            ssd_leaving += not (held or index.above_line(row))
        if columns.use_count[row] > hits:
            hits = columns.use_count[row]
        if columns.use_second[row] > latest:
            last, latest = row, columns.use_second[row]
        if row in ranks:  # of a run, only its last block in host memory can be
            rank = ranks[row]
    counts = ((Tier.HOST, in_host), (Tier.SSD, on_ssd))
    parent = tree.parent(run[0])
    return TreeNodeView(
        block_hash=tree.block_hash(run[0]),
        last_block_hash=tree.block_hash(run[-1]),
        parent_block_hash=b"" if parent == NOWHERE else tree.block_hash(parent),
        namespace_id=namespace_id,
        block_bytes=block_bytes,
        block_count=len(run),
        shares=tuple(TierShareView(tier, n, n * block_bytes) for tier, n in counts if n),
        hit_count=hits,
        unused_seconds=index.unused_seconds(last) if latest else None,
        pinned_count=pinned,
        child_count=sum(1 for _ in tree.children(run[-1])),
        host_leaving_rank=rank,
        ssd_leaving_count=ssd_leaving,
        owner=index.owners.of(run[0]),
    )
