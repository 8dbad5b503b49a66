"""The blocks that stay on the device after their request: a tree by parent hash.

A block hash names the block and everything before it, so the tree needs no tokens and no splitting:
a node is a block, its parent the block before. Eviction is leaf-first, so a resident block's whole
prefix is resident; among idle leaves the least worth leaves (GreedyDual: worth = the worth of the
last evicted + uses, capped at 2), the least recent of equals first. A block that only one-off
requests brought and used is worth less than all others, and teaches nothing by leaving.

A block may have an end, after which it is no match; a use that says so puts it off. What is before
it never ends earlier.

Invariant: whoever holds a node's page holds the pages of all its ancestors, so an idle page has
only idle descendants, and all idle pages can be had, leaf by leaf. Owned by the engine's thread.
"""

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtier.keys import BlockHash
from worker.block_table import BlockTable
from worker.kv_pages import PageId
from worker.page_pool import PagePool
from worker.prefix_units import EVERY_BLOCK, PrefixUnits

__all__ = ["NodeView", "PrefixTree"]

USES_MAX = 2
"""A higher cap keeps yesterday's favourites for ever; measured on real traces."""

ONE_OFF_WORTH = -1.0
"""Below every other: those are above the floor, which is never negative."""


@dataclass(slots=True)
class _Node:
    block: BlockHash
    parent: BlockHash | None
    page: PageId
    worth: float
    tick: int
    uses: int = 1
    children: int = 0
    expire_at: float = math.inf
    unit_end: bool = False


@dataclass(frozen=True, slots=True)
class NodeView:
    """A resident block, for who looks on."""

    block: BlockHash
    parent: BlockHash | None
    """None: the first of its chain."""
    holders: int
    """Tables and transfers that hold its page, beside the tree."""


class PrefixTree:
    """Resident blocks of `pool`."""

    def __init__(
        self,
        pool: PagePool,
        clock: Callable[[], float] = time.monotonic,
        units: PrefixUnits = EVERY_BLOCK,
    ) -> None:
        """`clock`: seconds, monotonic."""
        self._pool = pool
        self._clock = clock
        self._units = units
        self._nodes: dict[BlockHash, _Node] = {}
        self._by_page: dict[PageId, _Node] = {}
        self._leaves: list[tuple[float, int, BlockHash]] = []
        self._floor = 0.0
        self._tick = 0
        self.evicted_count = 0
        pool.watch_idle(self._page_became_idle)

    def __len__(self) -> int:
        return len(self._nodes)

    def match(self, chain: Sequence[BlockHash]) -> list[PageId]:
        """Pages of the longest resident prefix of `chain` that is not over, of whole units where
        only those count. Changes nothing."""
        pages, now, whole = [], self._clock(), 0
        for block in chain:
            node = self._nodes.get(block)
            if node is None or node.expire_at <= now:
                break
            pages.append(node.page)
            whole = len(pages) if node.unit_end else whole
        return pages[:whole] if self._units.whole else pages

    def end_units(self, blocks: Sequence[BlockHash]) -> None:
        """Prefix units end at these; who is not resident is passed over."""
        for block in blocks:
            if (node := self._nodes.get(block)) is not None:
                node.unit_end = True

    def use(self, chain: Sequence[BlockHash], until: float = 0.0) -> list[PageId]:
        """As `match`, and the caller becomes a holder of each page; recency is noted. None of them
        ends before `until`."""
        pages = self.hold(chain)
        for block, _ in zip(chain, pages, strict=False):
            self._touch(self._nodes[block])
        if pages:
            self._extend(chain[len(pages) - 1], until)
        return pages

    def hold(self, chain: Sequence[BlockHash]) -> list[PageId]:
        """As `use`, but nothing is noted."""
        pages = self.match(chain)
        for page in pages:
            self._pool.hold(page)
        return pages

    def seal(
        self,
        chain: Sequence[BlockHash],
        table: BlockTable,
        first: int,
        end: int,
        *,
        one_off: bool = False,
        until: float = math.inf,
    ) -> int:
        """Makes blocks `[first, end)` of `chain`, computed in `table`, resident; how many were not.

        A block that is resident already in another page takes that page's place in `table`: equal
        hash means equal KV, and so the table's holder keeps holding every ancestor. `one_off`: what
        is new is worth less than all others, what is there is not noted as used. What is new ends
        at `until`, what was there not before; a one-off's with what it continues.
        """
        new_count = 0
        for index in range(first, end):
            block = chain[index]
            node = self._nodes.get(block)
            if node is None:
                new_count += 1
                parent = chain[index - 1] if index else None
                node = self._insert(block, parent, table.pages[index])
                if one_off:
                    node.uses, node.worth = 0, ONE_OFF_WORTH
                    before = math.inf if parent is None else self._nodes[parent].expire_at
                    node.expire_at = min(until, before)
                else:
                    node.expire_at = until
                    self._extend(parent, until)
            elif node.page != table.pages[index]:
                if not one_off:
                    self._touch(node)
                    self._extend(block, until)
                table.replace(index, node.page)
        return new_count

    def evict(self) -> bool:
        """Frees the idle leaf that is worth least; False when nothing is idle."""
        while self._leaves:
            worth, tick, block = heapq.heappop(self._leaves)
            node = self._nodes.get(block)
            if node is not None and node.tick == tick and self._evictable(node):
                self._floor = max(self._floor, worth)
                self._remove(node)
                return True
        return False

    def snapshot(self) -> tuple[NodeView, ...]:
        """Every resident block, parents before children."""
        return tuple(
            NodeView(node.block, node.parent, self._pool.holders(node.page) - 1)
            for node in self._nodes.values()
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when a node is stranded or an idle leaf cannot be found."""
        children: dict[BlockHash, int] = {}
        for node in self._nodes.values():
            if node.parent is not None:
                assert node.parent in self._nodes, "a node's parent is gone"
                assert node.expire_at <= self._nodes[node.parent].expire_at, (
                    "it outlives its parent"
                )
                children[node.parent] = children.get(node.parent, 0) + 1
        listed = {(tick, block) for _, tick, block in self._leaves}
        for block, node in self._nodes.items():
            assert node.children == children.get(block, 0), "children are miscounted"
            assert self._by_page[node.page] is node, "a page has another node"
            if self._evictable(node):
                assert (node.tick, block) in listed, "an idle leaf is not listed"
        assert len(self._by_page) == len(self._nodes)

    def _insert(self, block: BlockHash, parent: BlockHash | None, page: PageId) -> _Node:
        if parent is not None:
            before = self._nodes[parent]
            before.unit_end |= self._units.marks_forks and before.children > 0
            before.children += 1
        self._tick += 1
        node = _Node(block, parent, page, self._floor + 1, self._tick)
        self._nodes[block] = node
        self._by_page[page] = node
        self._pool.keep(page)
        return node

    def _touch(self, node: _Node) -> None:
        self._tick += 1
        node.uses = min(node.uses + 1, USES_MAX)
        node.worth = self._floor + node.uses
        node.tick = self._tick
        if self._evictable(node):
            self._list(node)

    def _extend(self, block: BlockHash | None, until: float) -> None:
        """The block, and all before it, end then or later."""
        while block is not None and (node := self._nodes[block]).expire_at < until:
            node.expire_at = until
            block = node.parent

    def _evictable(self, node: _Node) -> bool:
        return node.children == 0 and self._pool.holders(node.page) == 1

    def _page_became_idle(self, page: PageId) -> None:
        node = self._by_page[page]
        if node.children == 0:
            self._list(node)

    def _list(self, node: _Node) -> None:
        heapq.heappush(self._leaves, (node.worth, node.tick, node.block))
        if len(self._leaves) > 4 * len(self._nodes) + 64:
            self._leaves = [
                (n.worth, n.tick, n.block) for n in self._nodes.values() if self._evictable(n)
            ]
            heapq.heapify(self._leaves)

    def _remove(self, node: _Node) -> None:
        del self._nodes[node.block]
        del self._by_page[node.page]
        self._pool.drop(node.page)
        self.evicted_count += 1
        if node.parent is not None:
            parent = self._nodes[node.parent]
            parent.children -= 1
            # What is left of a unit is one.
            parent.unit_end |= node.unit_end
            if self._evictable(parent):
                self._list(parent)
