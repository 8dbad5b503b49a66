"""What comes and leaves in runs leaves the index as if it had been block by block."""

import hashlib
from functools import partial
from typing import Any

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import cache_service.index
from cache_service.block_tree import ABSENT, NOWHERE, BlockTree
from cache_service.chains import Chain
from cache_service.events.changes import Changes, EventColumns
from cache_service.index import BlockIndex
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.host.arena import HostArena
from storage.policy.choice import POLICIES, eviction_order
from storage.tier import NEVER, PAGE_BYTES, SegmentId, SsdLocation

SLABS = 14
paths = st.lists(st.integers(0, 1), min_size=1, max_size=7)
SIZES = (PAGE_BYTES - 50, PAGE_BYTES + 50)


class Told:
    """All events, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[int, bytes, bytes, bytes, int]] = []

    def append(self, events: EventColumns) -> None:
        for i in range(len(events)):
            self.append_one(
                int(events.codes[i]),
                events.hashes[i].tobytes(),
                events.parents[i].tobytes(),
                events.namespaces[i].tobytes(),
                int(events.block_bytes[i]),
            )

    def append_one(
        self, code: int, block_hash: bytes, parent: bytes, namespace_id: bytes, block_bytes: int
    ) -> None:
        self.events.append((code, block_hash, parent, namespace_id, block_bytes))


class Side:
    """An index in an arena of its own."""

    def __init__(self, policy: str, departures: bool) -> None:
        self.arena = HostArena(SLABS * PAGE_BYTES, extent_bytes=SLABS * PAGE_BYTES // 2)
        self.index = BlockIndex(
            self.arena, eviction_order(policy), eviction_order("lru"), 6, lambda: 5.0
        )
        self.told = Told()
        self.changes = Changes(self.index.tree, self.told)
        self.index.follow_changes(self.changes)
        self.departures = self.index.follow_departures() if departures else None

    def facts(self) -> dict[bytes, Any]:
        tree, index = self.index.tree, self.index
        return {
            tree.block_hash(row): (
                tree.parent(row) != NOWHERE and tree.block_hash(tree.parent(row)),
                tree.in_host(row) and (tree.checksum(row), index.host_standing(row)),
                tree.on_ssd(row),
                tree.pins(row),
                index.unused_seconds(row),
                index.expiries.of(row),
                tree.columns.use_count[row],
                tree.columns.stored_by[row],
            )
            for row in tree
        }


def hashes_of(path: list[int], size: int) -> list[BlockHash]:
    parent, hashes = bytes([size % 256]), []
    for name in path:
        parent = hashlib.sha256(parent + bytes([name])).digest()
        hashes.append(BlockHash(parent))
    return hashes


def depth(tree: BlockTree, row: int) -> tuple[int, bytes]:
    return len(list(tree.ancestors(row))), tree.block_hash(row)


class TwinLife(RuleBasedStateMachine):
    """The same happens to both; `runs` does it in runs, `each` block by block."""

    @initialize(policy=st.sampled_from(sorted(POLICIES)), departures=st.booleans())
    def begin(self, policy: str, departures: bool) -> None:
        self.vector_min, cache_service.index._VECTOR_MIN = cache_service.index._VECTOR_MIN, 2
        self.runs, self.each = Side(policy, departures), Side(policy, departures)
        self.offset = 0
        self.pinned: list[list[BlockHash]] = []

    def row(self, side: Side, block_hash: BlockHash) -> int:
        return side.index.tree.find(block_hash)

    def make_room(self, count: int, size: int) -> None:
        """Until so many more slabs of that size are free, or nobody may leave."""
        trials = [self.runs.arena.allocate(size) for _ in range(count)]
        for slab in trials:
            if slab is not None:
                self.runs.arena.free(slab)
        missing = trials.count(None)
        while missing > 0 and (left := self.evict(missing, size)):
            missing -= left

    @rule(path=paths, size=st.sampled_from(SIZES), until=st.sampled_from([NEVER, NEVER, 70, 90]))
    def store(self, path: list[int], size: int, until: int) -> None:
        hashes = hashes_of(path, size)
        first = next(
            (i for i, h in enumerate(hashes) if self.row(self.runs, h) == ABSENT), len(hashes)
        )
        tail = hashes[first:]
        if not tail:
            return
        if first:
            for side in (self.runs, self.each):
                side.index.pin(self.row(side, hashes[first - 1]))
        self.make_room(len(tail), size)
        slabs = [(self.runs.arena.allocate(size), self.each.arena.allocate(size)) for _ in tail]
        usable = [pair for pair in slabs if pair[0] is not None and pair[1] is not None]
        for one, other in slabs[len(usable) :]:
            for side, slab in ((self.runs, one), (self.each, other)):
                if slab is not None:
                    side.arena.free(slab)
        tail = tail[: len(usable)]
        if tail:
            name = NamespaceId(bytes([size % 256]) * 32)
            sums = [int.from_bytes(h[:8], "little") for h in tail]
            parent = self.row(self.runs, hashes[first - 1]) if first else NOWHERE
            mine = [pair[0] for pair in usable if pair[0] is not None]
            entered = self.runs.index.add_run(Chain.of(tail), parent, name, size, 3, mine, sums)
            self.runs.index.expiries.enter_run(entered, until)
            parent = self.row(self.each, hashes[first - 1]) if first else NOWHERE
            copies = []
            for block_hash, (_, slab), checksum in zip(tail, usable, sums, strict=True):
                parent = self.each.index.add(block_hash, parent, name, size, 3)
                self.each.index.expiries.enter(parent, until)
                assert slab is not None
                copies.append((parent, slab, checksum))
            self.each.index.put_host_many(copies)
        if first:
            for side in (self.runs, self.each):
                side.index.unpin(self.row(side, hashes[first - 1]))

    @rule(count=st.integers(1, 9), size=st.sampled_from(SIZES))
    def evict_some(self, count: int, size: int) -> None:
        self.evict(count, size)

    def evict(self, count: int, size: int) -> int:
        self.each.index.host_victim()  # some policies move blocks on when they are asked
        slabs = self.runs.index.evict_host_run(self.runs.arena.slab_bytes(size), count)
        assert len(slabs) <= count
        for slab in slabs:
            self.runs.arena.free(slab)
            victim = self.each.index.host_victim()
            assert victim is not None
            assert self.each.arena.slab_bytes(self.each.index.tree.payload_bytes(victim)) == (
                slab.size_bytes
            )
            self.each.arena.free(self.each.index.evict_host(victim))
        event(f"run of {len(slabs)}")
        return len(slabs)

    @rule(count=st.integers(1, 8))
    def write(self, count: int) -> None:
        """As the writer does: parents first."""
        for side in (self.runs, self.each):
            tree, left, offset = side.index.tree, count, self.offset
            for row in sorted(tree, key=partial(depth, tree)):
                parent = tree.parent(row)
                if not tree.on_ssd(row) and (parent == NOWHERE or tree.on_ssd(parent)) and left:
                    size = tree.payload_bytes(row)
                    offset += 3 * PAGE_BYTES
                    place = SsdLocation(SegmentId(0), 1, offset, size, 7, size)
                    side.index.put_ssd(row, place)
                    left -= 1
        self.offset = offset

    @rule(path=paths, size=st.sampled_from(SIZES), counted=st.booleans())
    def want(self, path: list[int], size: int, counted: bool) -> None:
        for side in (self.runs, self.each):
            found = [self.row(side, h) for h in hashes_of(path, size)]
            rows = [row for row in found if row != ABSENT]
            want = side.index.use if counted else side.index.refresh
            for part in [rows[::-1]] if side is self.runs else [[row] for row in rows[::-1]]:
                want(part)

    @rule(path=paths, size=st.sampled_from(SIZES))
    def pin(self, path: list[int], size: int) -> None:
        """As a lease does: all that is there, from the beginning on."""
        hashes = [h for h in hashes_of(path, size) if self.row(self.runs, h) != ABSENT]
        self.pinned.append(hashes)
        self.runs.index.pin_run([self.row(self.runs, each) for each in hashes])
        for each in hashes:
            self.each.index.pin(self.row(self.each, each))

    @rule()
    def unpin(self) -> None:
        if self.pinned:
            hashes = self.pinned.pop()
            self.runs.index.unpin_run([self.row(self.runs, each) for each in hashes])
            for each in hashes:
                self.each.index.unpin(self.row(self.each, each))

    @rule(path=paths, size=st.sampled_from(SIZES))
    def drop_from_the_ssd(self, path: list[int], size: int) -> None:
        block_hash = hashes_of(path, size)[-1]
        if any(block_hash in each for each in self.pinned):
            return
        for side in (self.runs, self.each):
            row = self.row(side, block_hash)
            if row != ABSENT and side.index.tree.on_ssd(row) and side.index.tree.in_host(row):
                side.index.drop_ssd(row, MissReason.CORRUPT)

    @invariant()
    def both_are_the_same(self) -> None:
        if not hasattr(self, "runs"):
            return
        runs, each = self.runs, self.each
        for side in (runs, each):
            side.index.check_integrity()
            side.changes.settle()
        assert runs.facts() == each.facts()
        assert runs.told.events == each.told.events
        assert runs.index.absences._reasons == each.index.absences._reasons
        assert runs.arena.used_bytes == each.arena.used_bytes
        tree = runs.index.tree
        leaving = [tree.block_hash(row) for row in runs.index.host_leaving(SLABS)]
        tree = each.index.tree
        assert leaving == [tree.block_hash(row) for row in each.index.host_leaving(SLABS)]

    def teardown(self) -> None:
        if hasattr(self, "runs"):
            cache_service.index._VECTOR_MIN = self.vector_min
            self.runs.arena.close()
            self.each.arena.close()


TestTwinLife = TwinLife.TestCase
TestTwinLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
