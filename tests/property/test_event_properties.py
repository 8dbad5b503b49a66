"""An index rebuilt from events is the tree, whatever happened: dense random lives of the index.

The real index, log, watches and client's index; only bytes and disk are left out, so that one
example makes hundreds of copies come and go.
"""

import asyncio
import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.edge.event_calls import watch_message
from cache_service.errors import EventsLostError
from cache_service.events.log import EventLog
from cache_service.events.watching import Position, Watching
from cache_service.index import BlockIndex
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits
from kvtier.block_places import BlockPlaces
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, NamespaceId
from kvtier.v1 import events_pb2 as pb
from storage.host.arena import HostArena
from storage.policy.choice import eviction_order
from storage.tier import PAGE_BYTES, SegmentId, Slab, SsdLocation

BLOCK_BYTES = 900
SLABS = 8
LIMITS = CacheLimits(events_retained=40, events_per_message=5, event_batch_seconds=0.0001)

paths = st.lists(st.integers(0, 2), min_size=1, max_size=5)


def chain_of(namespace: int, path: list[int]) -> list[BlockHash]:
    parent, hashes = bytes([namespace]), []
    for name in path:
        parent = hashlib.sha256(parent + bytes([name])).digest()
        hashes.append(BlockHash(parent))
    return hashes


class IndexLife(RuleBasedStateMachine):
    """Blocks of two namespaces come, are written, promoted, evicted and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.arena = HostArena(SLABS * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        order = eviction_order("lru")
        self.index = BlockIndex(self.arena, order, eviction_order("lru"), 16)
        self.log = EventLog(self.index, LIMITS)
        self.now = 0.0
        self.watching = Watching(self.log, "this start", LIMITS, lambda: self.now, QuietListener())
        self.parents: dict[bytes, bytes] = {}
        """Of every block that was ever added."""
        self.records = 0
        self.eager, self.slow = BlockPlaces(), BlockPlaces()
        self.eager_views, self.slow_views = self.opened(self.eager), self.opened(self.slow)

    def opened(self, places: BlockPlaces) -> Any:
        request = places.begin()
        after = Position(request.after.instance_id, request.after.sequence)
        return self.watching.watch(after if request.HasField("after") else None, request.snapshot)

    def read(self, places: BlockPlaces, views: Any) -> None:
        async def message() -> pb.WatchEventsResponse:
            return watch_message(await anext(views))

        said = self.loop.run_until_complete(message())
        for run in (*said.events, *said.blocks):
            hashes, parents = run.block_hashes, run.parent_hashes
            for at in range(0, len(hashes), 32):
                assert parents[at : at + 32] == self.parents[hashes[at : at + 32]]
            assert run.block_bytes == BLOCK_BYTES
        places.apply(said)

    # -- rules -------------------------------------------------------------------------------------

    def slab(self) -> Slab | None:
        slab = self.arena.allocate(BLOCK_BYTES)
        if slab is None and self.index.host_victim() is not None:
            return self.index.evict_host(self.index.host_victim())  # type: ignore[arg-type]
        return slab

    def rows(self) -> list[int]:
        return list(self.index.tree)

    @rule(path=paths, namespace=st.integers(0, 1))
    def store(self, path: list[int], namespace: int) -> None:
        """As a commit does: slabs first, then all missing blocks at once."""
        chain = chain_of(namespace, path)
        taken = [self.slab() for _ in path]
        slabs = [slab for slab in taken if slab is not None]
        copies, parent, before = [], NOWHERE, bytes(32)
        for block_hash, slab in zip(chain, slabs, strict=False):
            row = self.index.tree.find(block_hash)
            if row == ABSENT:
                name = NamespaceId(bytes([namespace]) * 32)
                row = self.index.add(block_hash, parent, name, BLOCK_BYTES)
                self.parents[block_hash] = before
            if self.index.tree.in_host(row):
                self.arena.free(slab)
            else:
                copies.append((row, slab, 7))
            parent, before = row, block_hash
        self.index.put_host_many(copies)

    @rule(count=st.integers(1, 6))
    def write(self, count: int) -> None:
        """As the writer does: parents first."""
        tree = self.index.tree
        for row in self.rows():
            parent = tree.parent(row)
            if not tree.on_ssd(row) and (parent == NOWHERE or tree.on_ssd(parent)) and count:
                self.records += 1
                tree.generations[SegmentId(0)] = 1
                location = SsdLocation(
                    SegmentId(0), 1, self.records * PAGE_BYTES, BLOCK_BYTES, 7, BLOCK_BYTES
                )
                self.index.put_ssd(row, location)
                count -= 1

    @rule(data=st.data())
    def promote(self, data: Any) -> None:
        tree = self.index.tree
        rows = [row for row in self.rows() if not tree.in_host(row)]
        if rows:
            row = data.draw(st.sampled_from(rows))
            self.index.pin(row)
            slab = self.slab()
            if slab is not None:
                self.index.put_host(row, slab, 7)
            self.index.unpin(row)

    @rule(data=st.data(), ssd_alone=st.booleans(), pinned=st.booleans())
    def drop(self, data: Any, ssd_alone: bool, pinned: bool) -> None:
        rows = [row for row in self.rows() if not ssd_alone or self.index.tree.on_ssd(row)]
        if not rows:
            return
        row = data.draw(st.sampled_from(rows))
        if pinned:
            self.index.pin(row)
        if ssd_alone:
            self.index.drop_ssd(row, MissReason.UNAVAILABLE)
        else:
            self.index.drop(row, MissReason.CORRUPT)
        if pinned:
            self.index.unpin(row)

    @rule()
    def tick(self) -> None:
        self.log.tick()

    @rule(count=st.integers(1, 8))
    def the_slow_watcher_reads(self, count: int) -> None:
        """Now and then, from wherever it is; when it lost its place, from a snapshot."""
        for _ in range(count):
            if not self.behind(self.slow):
                self.check(self.slow)
                return
            try:
                self.read(self.slow, self.slow_views)
            except EventsLostError:
                self.slow.lost()
                self.slow_views = self.opened(self.slow)

    @rule(keep=st.booleans())
    def the_slow_watcher_connects_anew(self, keep: bool) -> None:
        self.loop.run_until_complete(self.slow_views.aclose())
        if not keep:
            self.slow.lost()
        self.slow_views = self.opened(self.slow)

    # -- what always holds -------------------------------------------------------------------------

    def behind(self, places: BlockPlaces) -> bool:
        position = places.position
        return position is None or position.sequence < self.watching.last_sequence

    def check(self, places: BlockPlaces) -> None:
        tree = self.index.tree
        expected = {
            tree.block_hash(row): (Tier.HOST,) * tree.in_host(row) + (Tier.SSD,) * tree.on_ssd(row)
            for row in self.rows()
        }
        assert {each: places.tiers(each) for each in places} == expected

    @invariant()
    def events_are_enough_to_know_what_is_cached(self) -> None:
        if self.watching.last_sequence - self.sequence(self.eager) > LIMITS.events_retained:
            self.eager.lost()
            self.loop.run_until_complete(self.eager_views.aclose())
            self.eager_views = self.opened(self.eager)
        while self.behind(self.eager):
            self.read(self.eager, self.eager_views)
        self.check(self.eager)

    def sequence(self, places: BlockPlaces) -> int:
        return 0 if places.position is None else places.position.sequence

    def teardown(self) -> None:
        for views in (self.eager_views, self.slow_views):
            self.loop.run_until_complete(views.aclose())
        assert self.watching.watcher_count == 0
        self.index.check_integrity()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self.arena.close()


@pytest.mark.timeout(120)
def test_an_index_rebuilt_from_events_is_the_tree() -> None:
    run_state_machine_as_test(
        IndexLife,
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
