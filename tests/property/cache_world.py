"""The cache and the model of its random lives: the core on a real arena and a real SSD tier."""

import asyncio
import hashlib
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
)

from cache_service.cache import Cache
from cache_service.edge.event_calls import watch_message
from cache_service.events.watching import Position
from cache_service.hints import NO_HINTS, Hints
from cache_service.listener import QuietListener
from cache_service.metering.meter import StorageMeter
from cache_service.metering.models import ModelNames
from cache_service.metering.rows import RowMeter
from cache_service.owner_runs import OwnerRuns
from cache_service.purge_views import PurgeKind
from cache_service.quotas import NO_QUOTAS, Quota, Quotas
from cache_service.views import (
    CacheLimits,
    CachePolicies,
    Transport,
)
from kvtier.block_places import BlockPlaces
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.host.arena import HostArena
from storage.policy.choice import POLICIES
from storage.ssd.tier import SsdTier
from storage.tier import NEVER, PAGE_BYTES

BLOCK_BYTES = 900
NAMESPACE = NamespaceId(bytes(range(32)))
SEGMENT_BYTES = 9 * PAGE_BYTES
SEGMENTS = 6
SLABS = 12

LIMITS = CacheLimits(
    session_ttl_seconds=100,
    lease_ttl_seconds=10,
    reservation_ttl_seconds=10,
    reservation_grace_seconds=5,
    room_wait_seconds=0.05,
    read_ahead_blocks=2,
    write_batch_blocks=3,
    evicted_memory_count=16,
    purge_slice_blocks=5,
    events_per_message=5,
    event_batch_seconds=0.0001,
)

Result = TypeVar("Result")

paths = st.lists(st.integers(0, 1), min_size=1, max_size=5)
"""A path in a small tree, so that chains share prefixes and fork."""
kinds = st.sampled_from(PurgeKind)
which = st.integers(0, 11)
"""Of what there is: how much that is depends on the disk's moods, and what is drawn must not."""

TIGHT = Quotas(
    {
        "acme": Quota(2 * BLOCK_BYTES, 4 * BLOCK_BYTES, 3 * BLOCK_BYTES, 5 * BLOCK_BYTES),
        "gamma/x": Quota(host_hard_bytes=BLOCK_BYTES, ssd_hard_bytes=BLOCK_BYTES),
        "*": Quota(host_soft_bytes=BLOCK_BYTES, ssd_hard_bytes=4 * BLOCK_BYTES),
    }
)
SOFT = Quotas({"*": Quota(host_soft_bytes=2 * BLOCK_BYTES, ssd_soft_bytes=2 * BLOCK_BYTES)})

TTL = 7
hints = st.sampled_from(
    [NO_HINTS, NO_HINTS, Hints(one_off=True), Hints(ttl_seconds=TTL), Hints(True, TTL)]
)


def chain_of(path: list[int]) -> list[BlockHash]:
    parent, hashes = b"", []
    for name in path:
        parent = hashlib.sha256(parent + bytes([name])).digest()
        hashes.append(BlockHash(parent))
    return hashes


def owner_of_block(path: list[int]) -> str:
    """Whose the last block of a path is: a chain begins with a public block or with beta's, and
    goes down a ladder."""
    if path[0]:
        return "beta"
    if len(path) == 1:
        return ""
    organisation = ("acme", "gamma")[path[1]]
    return organisation if len(path) < 4 else f"{organisation}/x"


def runs_of(chain: list[BlockHash]) -> OwnerRuns:
    paths = [OWNERS[block_hash] for block_hash in chain]
    ends = [i + 1 for i, path in enumerate(paths) if [*paths, None][i + 1] != path]
    return OwnerRuns(tuple(paths[end - 1] for end in ends), tuple(ends))


ALL_PATHS = [[number >> bit & 1 for bit in range(5)] for number in range(32)]
"""Whatever is cached lies on one of them."""
OWNERS = {
    chain_of(path[:count])[-1]: owner_of_block(path[:count])
    for path in ALL_PATHS
    for count in range(1, 6)
}


class Watcher:
    """An index of the cache from its events alone; `slow` ones read a message now and then."""

    def __init__(self, cache: Cache) -> None:
        self.places = BlockPlaces()
        self.cache = cache
        self.open()

    def open(self) -> None:
        request = self.places.begin()
        after = Position(request.after.instance_id, request.after.sequence)
        self.views = self.cache.watching.watch(
            after if request.HasField("after") else None, request.snapshot
        )

    async def read(self) -> None:
        self.places.apply(watch_message(await anext(self.views)))

    def behind(self) -> bool:
        position = self.places.position
        return position is None or position.sequence < self.cache.watching.last_sequence


def payload_of(block_hash: BlockHash) -> bytes:
    return hashlib.shake_128(block_hash).digest(BLOCK_BYTES)


class CacheWorld(RuleBasedStateMachine):
    """One cache over many starts on the same directory, and what the model knows of it."""

    write_when = "committed"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 0.0
        self.flipped = False
        self.committed: set[BlockHash] = set()
        """Every hash that was committed and not purged since: nothing else may be found."""
        self.ever: set[BlockHash] = set()
        """The same, purged or not: a lease outlives a purge."""
        self.policies = CachePolicies()
        self.pins: dict[str, tuple[float, set[BlockHash]]] = {}
        """Pin -> its end, and what of it must be cached until then."""
        self.mortal = False
        """Nothing is stored or used but for `TTL` seconds."""
        self.touched: dict[BlockHash, float] = {}
        """When each block was last stored or used, or may have been."""

    @initialize(
        host=st.sampled_from(sorted(POLICIES)),
        ssd=st.sampled_from(sorted(POLICIES)),
        admission=st.sampled_from(["all", "first_new"]),
        records_per_hour=st.sampled_from([0, 20]),
        mortal=st.booleans(),
        quotas=st.sampled_from([NO_QUOTAS, TIGHT, SOFT]),
    )
    def begin(
        self,
        host: str,
        ssd: str,
        admission: str,
        records_per_hour: int,
        mortal: bool,
        quotas: Quotas,
    ) -> None:
        self.mortal = mortal
        self.policies = CachePolicies(
            host,
            ssd,
            ssd_admission=admission,
            ssd_new_blocks_max=2,
            ssd_write_bytes_per_day=24 * records_per_hour * 2 * PAGE_BYTES,
            ssd_write_when=self.write_when,
            quotas=quotas,
        )
        self.start()

    def start(self) -> None:
        self.arena = HostArena(SLABS * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        self.ssd = SsdTier.open(
            Path(self.folder.name) / "ssd",
            capacity_bytes=SEGMENTS * SEGMENT_BYTES,
            segment_bytes=SEGMENT_BYTES,
        )
        self.cache = Cache(
            self.arena,
            self.ssd,
            LIMITS,
            lambda: self.now,
            QuietListener(),
            self.policies,
            lambda: self.now,
        )
        self.meter = self.metered()
        self.sessions: list[str] = []
        self.leases: list[tuple[str, str, list[BlockHash], list[tuple[int, int]], float]] = []
        self.lost: list[tuple[str, float]] = []
        """Leases whose answer never arrived: session, deadline."""
        self.reservations: list[tuple[str, list[BlockHash], Any]] = []
        self.watcher, self.slow = Watcher(self.cache), Watcher(self.cache)
        self.open_session()

    def metered(self) -> RowMeter:
        """Meters what is stored, what a start found too."""
        index = self.cache._parts.index
        names = ModelNames(Path(self.folder.name) / "models.json")
        names.note(NAMESPACE, "m", 64)
        meter = StorageMeter(lambda: round(self.now * 1e9))
        index.owners.meter = rows = RowMeter(index.tree, meter, names, index.owners.tenant)
        rows.enter_all()
        return rows

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(work)

    def open_session(self) -> None:
        async def opened() -> str:
            return self.cache.open_session(
                NAMESPACE, BLOCK_BYTES, 64, "machine", Transport.SHARED_MEMORY
            ).session_id

        self.sessions.append(self.run(opened()))

    def session(self, number: int) -> str:
        return self.sessions[number % len(self.sessions)]

    def store_hashes(self, hashes: list[BlockHash]) -> None:
        self.committed.update(hashes)
        self.ever.update(hashes)

    def write(self, chain: list[BlockHash], view: Any) -> list[int]:
        sums = []
        for position, slab in zip(view.missing, view.slabs, strict=True):
            payload = payload_of(chain[position])
            self.arena.view(slab)[: len(payload)] = payload
            sums.append(payload_checksum(chain[position], payload))
        return sums

    def hinted(self, hints: Hints, chain: list[BlockHash]) -> Hints:
        """`chain`: from its first block on."""
        ttl = TTL if self.mortal else hints.ttl_seconds
        return replace(hints, ttl_seconds=ttl, owners=runs_of(chain))

    def touch(self, chain: list[BlockHash]) -> None:
        self.touched.update(dict.fromkeys(chain, self.now))

    def check_good(self, found: list[BlockHash]) -> None:
        if self.mortal:
            assert all(self.now < self.touched[block_hash] + TTL for block_hash in found)

    async def the_disk_is_idle(self) -> None:
        cold = self.cache._parts.cold
        assert cold is not None
        await cold.promoter.drain()
        await cold.writer.drain()

    def mortals(self) -> set[BlockHash]:
        """Blocks that have an end of their own, which a pin does not move."""
        index = self.cache._parts.index
        ends = index.expiries.of
        return {index.tree.block_hash(row) for row in index.tree if ends(row) != NEVER}

    def cached(self) -> set[BlockHash]:
        tree = self.cache._parts.index.tree
        return {tree.block_hash(row) for row in tree}

    def on_the_ssd(self) -> set[BlockHash]:
        tree = self.cache._parts.index.tree
        return {tree.block_hash(row) for row in tree if tree.on_ssd(row)}

    def only_what_the_ssd_has_must_be_there(self) -> None:
        there = self.on_the_ssd()
        for pin_id, (expires, must) in self.pins.items():
            self.pins[pin_id] = (expires, must & there)

    def what_has_an_end_may_leave(self) -> None:
        """A crash may have left an earlier end of a block on the disk."""
        ends = self.mortals()
        for pin_id, (expires, must) in self.pins.items():
            self.pins[pin_id] = (expires, must - ends)

    def check_index(self, places: BlockPlaces) -> None:
        """`places` says what the cache says, block by block and in sum."""
        session_id = self.session(0)
        for path in ALL_PATHS:
            chain = chain_of(path)
            found = self.cache.lookup(session_id, chain)
            told = bytes(places.prefix(chain))
            # What expired is a miss at once, and told of when it is taken out.
            over = found.miss_reason is MissReason.EXPIRED
            assert told[: len(found.tiers)] == found.tiers
            assert over or len(told) == len(found.tiers)
        for tier in self.cache.stats().tiers:
            held = sum(tier.tier in places.tiers(each) for each in places)
            assert held == tier.block_count
        assert all(places.tiers(each) for each in places)
        assert {tier for each in places for tier in places.tiers(each)} <= {Tier.HOST, Tier.SSD}

    def all_is_written_out(self) -> None:
        """With every block wanted and affordable, an SSD with room has all of them."""

    def ssd_block_count(self) -> int:
        self.cache.check_integrity()
        self.meter.check_integrity()
        return self.cache.stats().tiers[1].block_count

    def teardown(self) -> None:
        try:
            if hasattr(self, "cache"):
                self.check_the_end()
        finally:
            # Also of a life that Hypothesis gave up on, whose checks' errors it swallows.
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.folder.cleanup()

    def check_the_end(self) -> None:
        async def ended() -> None:
            await self.watcher.views.aclose()
            await self.slow.views.aclose()
            for session_id in self.sessions:
                self.cache.close_session(session_id)
            await self.cache.drain()
            self.now += 1000
            self.cache.tick()

        self.run(ended())
        self.cache.check_integrity()
        self.meter.check_integrity()
        stats = self.cache.stats()
        assert (stats.session_count, stats.lease_count, stats.reservation_count) == (0, 0, 0)
        assert stats.quarantined_slab_count == 0
        assert stats.pending_write_count == 0
        assert self.arena.slab_count == stats.tiers[0].block_count, "a slab leaked"
        self.arena.close()
