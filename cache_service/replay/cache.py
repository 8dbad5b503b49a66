"""ReplayCache: the tiers of the service, and a request's way through them.

    1  the leading blocks that some tier has are hits; each counts a use in every tier that has it
    2  hits that only the SSD has are promoted to host memory
    3  the request's other full blocks enter host memory
    4  blocks go to the SSD, parents first: at once ("committed") or when they leave host memory
       ("leaving"), if admission and budget let them

The request's prefix is held meanwhile. What host memory has no room for is not cached, nor is what
follows it, so both tiers hold whole prefixes only. Leaving in leaf-first order writes what is
before the leaf along with it: the SSD would have nothing to hang it on.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cache_service.replay.leaf_tier import LeafTier
from cache_service.replay.trace import NO_BLOCK, Request
from cache_service.replay.tree import Tree
from storage.policy.admission import AdmissionRule
from storage.policy.order import EvictionOrder
from storage.policy.write_budget import WriteBudget

__all__ = ["ReplayCache", "Served", "SsdTier", "WriteWhen", "Writing"]


class WriteWhen(Enum):
    """When a block is written to the SSD."""

    COMMITTED = "committed"
    LEAVING = "leaving"


class SsdTier(Protocol):
    """The SSD as single blocks or as segments."""

    @property
    def order(self) -> EvictionOrder: ...
    @property
    def present(self) -> bytearray: ...
    @property
    def write_count(self) -> int: ...
    @property
    def relogged_count(self) -> int: ...
    @property
    def evicted_count(self) -> int: ...
    def use(self, block: int) -> None: ...
    def hold(self, block: int) -> None: ...
    def release(self, block: int) -> None: ...
    def extend(self, block: int, uses: int) -> bool: ...
    def check_integrity(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Writing:
    """What decides about a write to the SSD."""

    when: WriteWhen
    admission: AdmissionRule
    budget: WriteBudget | None
    block_bytes: int


@dataclass(frozen=True, slots=True)
class Served:
    """How many of a request's blocks were hits; of these, how many host memory had."""

    hits: int
    host_hits: int


class ReplayCache:
    """Host memory and, where there is one, the SSD. `serve` takes the requests in order."""

    def __init__(
        self, tree: Tree, host_order: EvictionOrder, host_capacity: int, writing: Writing
    ) -> None:
        self.cached = bytearray(len(tree))
        """In some tier."""
        self.host = LeafTier(tree, host_order, host_capacity, self._leave_host, self._left_host)
        self.ssd: SsdTier | None = None
        self._tree = tree
        self._writing = writing
        self._admitted = bytearray(len(tree))
        self._now = 0.0

    def attach(self, ssd: SsdTier) -> None:
        """The SSD, which calls `ssd_left` for blocks that leave it."""
        self.ssd = ssd

    def serve(self, request: Request) -> Served:
        """Plays one request."""
        self._now = request.time_seconds
        path = request.blocks
        hits = bisect_left(path, True, key=lambda block: not self.cached[block])
        self._miss(path[hits:])
        on_ssd = self._use_ssd(path, hits)
        in_host = self._use_host(path, hits)
        stored = self._store(path, in_host)
        if self.ssd is not None:
            if self._writing.when is WriteWhen.COMMITTED:
                self._write_path(path[on_ssd:stored])
            self.ssd.release(path[on_ssd - 1] if on_ssd else NO_BLOCK)
        self.host.release(path[stored - 1] if stored else NO_BLOCK)
        return Served(hits, in_host)

    def _miss(self, missed: Sequence[int]) -> None:
        """Settles what may be written later of blocks that are nowhere."""
        if self.ssd is None:
            return
        names, budget, admission = self._tree.names, self._writing.budget, self._writing.admission
        for new_before, block in enumerate(missed):
            if budget is not None:
                budget.missed(names[block])
            self._admitted[block] = admission.admits(names[block], new_before)

    def _use_ssd(self, path: Sequence[int], hits: int) -> int:
        """Counts uses on the SSD; returns how many leading blocks are there, the last one held."""
        if self.ssd is None:
            return 0
        count = _leading(path, hits, self.ssd.present)
        use = self.ssd.use
        for block in path[:count]:
            use(block)
        self.ssd.hold(path[count - 1] if count else NO_BLOCK)
        return count

    def _use_host(self, path: Sequence[int], hits: int) -> int:
        """The same in host memory."""
        count = _leading(path, hits, self.host.present)
        use = self.host.order.use
        for block in path[:count]:
            use(block)
        self.host.hold(path[count - 1] if count else NO_BLOCK)
        return count

    def _store(self, path: Sequence[int], in_host: int) -> int:
        """Promotes and stores what host memory lacks; returns how much of the path it has then,
        the last block held."""
        for at in range(in_host, len(path)):
            block = path[at]
            on_ssd = self.ssd is not None and self.ssd.present[block]
            uses = self.ssd.order.uses(block) if on_ssd and self.ssd is not None else 1
            if not self.host.extend(block, uses):
                return at
            self.cached[block] = 1
        return len(path)

    # -- to the SSD ----------------------------------------------------------------------------

    def _leave_host(self, block: int, uses: int) -> None:
        """A block is about to leave host memory."""
        leaving = self._writing.when is WriteWhen.LEAVING
        if leaving and self._wanted(block) and self.ssd is not None and not self.ssd.present[block]:
            self._write_chain(block)

    def _left_host(self, block: int) -> None:
        self.cached[block] = self.ssd is not None and self.ssd.present[block]

    def ssd_left(self, block: int) -> None:
        """A block left the SSD."""
        self.cached[block] = self.host.present[block]

    def _wanted(self, block: int) -> bool:
        return self.ssd is not None and (
            self._admitted[block] > 0 or self.host.order.uses(block) > 1
        )

    def _write_chain(self, block: int) -> None:
        """Writes a block and what the SSD lacks before it; nothing, where the budget has no bytes
        for the block itself."""
        assert self.ssd is not None
        if not self._affordable(block):
            self._turn_away([block])
            return
        chain = []
        while block != NO_BLOCK and not self.ssd.present[block]:
            chain.append(block)
            block = self._tree.parents[block]
        self._write_path(chain[::-1], wanted=True)

    def _write_path(self, blocks: Sequence[int], wanted: bool = False) -> None:
        """Writes blocks that follow each other until one may not be; the SSD has what is before."""
        assert self.ssd is not None
        tip = self._tree.parents[blocks[0]] if blocks else NO_BLOCK
        self.ssd.hold(tip)
        for at, block in enumerate(blocks):
            if not (wanted or self._wanted(block)):
                break
            if not self._spend(block):
                self._turn_away(blocks[-1:] if wanted else blocks[at:])
                break
            if not self.ssd.extend(block, self.host.order.uses(block)):
                break
            tip = block
        self.ssd.release(tip)

    def _affordable(self, block: int) -> bool:
        budget, again = self._writing.budget, self.host.order.uses(block) > 1
        return budget is None or budget.allows(self._writing.block_bytes, self._now, again)

    def _spend(self, block: int) -> bool:
        budget = self._writing.budget
        if budget is None or not self._affordable(block):
            return budget is None
        again = self.host.order.uses(block) > 1
        return budget.spend(self._tree.names[block], self._writing.block_bytes, self._now, again)

    def _turn_away(self, blocks: Sequence[int]) -> None:
        """For want of budget. Of a chain that is written for its last block only that one is lost:
        the others are in host memory still."""
        if self._writing.budget is not None:
            for block in blocks:
                if self._wanted(block):
                    name = self._tree.names[block]
                    self._writing.budget.turn_away(name, self._writing.block_bytes)

    def stranded(self) -> int:
        """Blocks that are somewhere while their parent is not where it must be."""
        count = self._tree.stranded(self.cached) + self._tree.stranded(self.host.present)
        return count + (self._tree.stranded(self.ssd.present) if self.ssd is not None else 0)

    def check_integrity(self) -> None:
        on_ssd = self.ssd.present if self.ssd is not None else bytes(len(self.cached))
        for block, cached in enumerate(self.cached):
            assert cached == (self.host.present[block] or on_ssd[block]), block
        assert not self.stranded()
        self.host.check_integrity()
        if self.ssd is not None:
            self.ssd.check_integrity()


def _leading(path: Sequence[int], hits: int, present: bytearray) -> int:
    """How many leading blocks of the hits a tier has. A tier holds whole prefixes."""
    return bisect_left(path, True, hi=hits, key=lambda block: not present[block])
