"""Random lives of the cache's core against a dict model, on a real arena and a real SSD tier.

The model knows which payload belongs to which hash, nothing else: what is cached may leave at any
time, but what is handed out must be the bytes that were stored, and every owner's sums must add up
after every step.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cache_service.cache import Cache
from cache_service.chains import Chain
from cache_service.edge.event_calls import watch_message
from cache_service.errors import (
    BlocksPinnedError,
    ChecksumMismatchError,
    LeaseExpiredError,
    LeaseUnknownError,
    PinQuotaError,
    ReservationExpiredError,
    ReservationUnknownError,
)
from cache_service.events.watching import Position
from cache_service.hints import NO_HINTS, Hints
from cache_service.listener import QuietListener
from cache_service.owner_runs import OwnerRuns, within
from cache_service.purge_views import PurgeKind, PurgeTarget, SsdForgetting
from cache_service.quotas import NO_QUOTAS, Quota, Quotas
from cache_service.tree_walk import START, Place
from cache_service.views import (
    CacheLimits,
    CachePolicies,
    EndView,
    MatchView,
    ReadyView,
    Transport,
)
from kvtier.block_places import BlockPlaces
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, NamespaceId, payload_checksum, unpack_hashes
from storage.host.arena import HostArena
from storage.policy.choice import POLICIES
from storage.ssd.tier import SsdTier
from storage.tier import NEVER, PAGE_BYTES, Slab
from tests.cache_state import index_state

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


class CacheLife(RuleBasedStateMachine):
    """One cache over many starts on the same directory."""

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
        self.sessions: list[str] = []
        self.leases: list[tuple[str, str, list[BlockHash], list[tuple[int, int]], float]] = []
        self.lost: list[tuple[str, float]] = []
        """Leases whose answer never arrived: session, deadline."""
        self.reservations: list[tuple[str, list[BlockHash], Any]] = []
        self.watcher, self.slow = Watcher(self.cache), Watcher(self.cache)
        self.open_session()

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

    # -- rules -------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.sessions) < 3)
    @rule()
    def another_session(self) -> None:
        self.open_session()

    @rule(number=st.integers(0, 2))
    def close_a_session(self, number: int) -> None:
        session_id = self.session(number)

        async def closed() -> None:
            self.cache.close_session(session_id)

        self.run(closed())
        self.sessions.remove(session_id)
        self.leases = [each for each in self.leases if each[0] != session_id]
        self.lost = [each for each in self.lost if each[0] != session_id]
        self.reservations = [each for each in self.reservations if each[0] != session_id]
        if not self.sessions:
            self.open_session()

    @rule(path=paths, number=st.integers(0, 2))
    def lookup(self, path: list[int], number: int) -> None:
        chain = chain_of(path)
        session_id = self.session(number)

        async def looked() -> Any:
            return self.cache.lookup(session_id, chain)

        found = self.run(looked())
        assert set(chain[: found.present_count]) <= self.committed
        self.check_good(chain[: found.present_count])
        assert len(found.tiers) == found.present_count
        assert (found.miss_reason == 0) == (found.present_count == len(chain))

    @rule(path=paths, number=st.integers(0, 2))
    def explain_then_acquire(self, path: list[int], number: int) -> None:
        """What is explained is what is then found, and explaining leaves no trace."""
        chain, session_id = chain_of(path), self.session(number)
        said, events = self.run(self.explained(session_id, chain))
        match = events[0]
        assert isinstance(match, MatchView)
        assert (said.present_count, said.tiers) == (match.matched_count, match.tiers)
        assert said.miss_reason == match.miss_reason
        assert (said.divergence is None) == (said.present_count == len(chain))
        if said.divergence is not None and said.divergence.nearest is not None:
            assert said.divergence.nearest.hash_prefix != chain[said.present_count][:8]
        (view, *_) = self.cache.explaining.found("r", "", None)
        assert (view.matched_count, view.match_reason) == (match.matched_count, match.miss_reason)

    async def explained(self, session_id: str, chain: list[BlockHash]) -> tuple[Any, list[Any]]:
        """What is said, and the match that follows with nothing in between."""
        before = index_state(self.cache)
        said = self.cache.explaining.prefix(NAMESPACE, BLOCK_BYTES, Chain.of(chain))
        walked = self.walk_the_tree()
        assert index_state(self.cache) == before
        tree = self.cache._parts.index.tree
        assert walked == [tree.block_hash(tree.find(block_hash)) for block_hash in walked]
        assert len(set(walked)) == len(walked) <= len(tree)
        events, _ = await self.take_events(session_id, chain, 1)
        return said, events

    def walk_the_tree(self) -> list[BlockHash]:
        """First blocks of all nodes; their sums are the whole index."""
        nodes: list[Any] = []
        place: Place | None = START
        while place is not None:
            part = self.cache.explaining.tree(place, None, None, 2)
            nodes += part.nodes
            place = part.place
        stats = self.cache.stats()
        counts = {Tier.HOST: 0, Tier.SSD: 0}
        for share in (share for node in nodes for share in node.shares):
            counts[share.tier] += share.block_count
        assert list(counts.values()) == [tier.block_count for tier in stats.tiers]
        return [node.block_hash for node in nodes]

    @rule(
        path=paths,
        start=st.integers(0, 3),
        number=st.integers(0, 2),
        taken=st.integers(1, 9),
        hints=hints,
    )
    def acquire(self, path: list[int], start: int, number: int, taken: int, hints: Hints) -> None:
        """Reads a chain, sometimes from its middle, sometimes giving up early."""
        chain = chain_of(path)[min(start, len(path) - 1) :]
        session_id = self.session(number)
        hints = self.hinted(hints, chain_of(path))
        events, complete = self.run(self.take_events(session_id, chain, taken, hints))
        match = events[0]
        assert isinstance(match, MatchView)
        self.check_good(chain[: match.matched_count])
        if match.matched_count and not hints.one_off:
            self.touch(chain_of(path))
        assert set(chain[: match.matched_count]) <= self.committed
        blocks = [
            (slab.offset, checksum)
            for view in events
            if isinstance(view, ReadyView)
            for slab, checksum in zip(view.slabs, view.checksums, strict=True)
        ]
        self.check_bytes(chain, blocks)
        if complete:
            end = events[-1]
            assert isinstance(end, EndView)
            assert end.ready_count == len(blocks) <= match.matched_count
            if blocks:
                deadline = self.now + LIMITS.lease_ttl_seconds
                self.leases.append((session_id, match.lease_id, chain, blocks, deadline))

    def what_acquires_change(self) -> Any:
        """Not all sums: the writer's thread counts bytes in its own time."""
        stats = self.cache.stats()
        return index_state(self.cache), stats.counters, stats.lease_count

    @rule(path=paths, start=st.integers(0, 3), number=st.integers(0, 2), lost=st.booleans())
    def acquire_at_once(self, path: list[int], start: int, number: int, lost: bool) -> None:
        """The same in one answer, where nothing has to be loaded. `lost`: it never arrives."""
        chain = chain_of(path)[min(start, len(path) - 1) :]
        session_id = self.session(number)

        async def acquired() -> tuple[Any, list[Any], bool]:
            """Nothing of the service runs in between."""
            looked, before = self.cache.lookup(session_id, chain), self.what_acquires_change()
            events = self.cache.acquire_resident(session_id, "r", Chain.of(chain))
            return looked, events, self.what_acquires_change() == before

        looked, events, unchanged = self.run(acquired())
        if Tier.SSD in looked.tiers:
            assert events == []
            assert unchanged
            return
        match, *ready, end = events
        assert match.matched_count == end.ready_count == looked.present_count
        assert (match.tiers, end.miss_reason) == (looked.tiers, looked.miss_reason)
        blocks = [
            (slab.offset, checksum)
            for view in ready
            for slab, checksum in zip(view.slabs, view.checksums, strict=True)
        ]
        self.check_bytes(chain, blocks)
        deadline = self.now + LIMITS.lease_ttl_seconds
        if blocks and lost:
            self.lost.append((session_id, deadline))
        elif blocks:
            self.leases.append((session_id, match.lease_id, chain, blocks, deadline))

    @rule(number=st.integers(0, 2), count=st.integers(1, 3))
    def give_back(self, number: int, count: int) -> None:
        """Leases that go along with another call; foreign ones among them stay."""
        session_id = self.session(number)
        taken, self.leases = self.leases[:count], self.leases[count:]
        self.leases += [each for each in taken if each[0] != session_id]

        async def given() -> None:
            self.cache.give_back(session_id, [lease_id for _, lease_id, *_ in taken])
            for owner, lease_id, *_, deadline in taken:
                if owner == session_id:
                    with pytest.raises((LeaseUnknownError, LeaseExpiredError)):
                        self.cache.leased_block(owner, lease_id, 0)
                elif self.now < deadline:
                    self.cache.leased_block(owner, lease_id, 0)

        self.run(given())

    async def take_events(
        self, session_id: str, chain: list[BlockHash], taken: int, hints: Hints = NO_HINTS
    ) -> tuple[list[Any], bool]:
        stream = self.cache.acquire(session_id, "r", chain, None, hints)
        events: list[Any] = []
        async for event in stream:
            events.append(event)
            self.cache.check_integrity()
            if len(events) == taken:
                break
        await stream.aclose()
        return events, isinstance(events[-1], EndView)

    def check_bytes(self, chain: list[BlockHash], blocks: list[tuple[int, int]]) -> None:
        for block_hash, (offset, checksum) in zip(chain, blocks, strict=False):
            slab = self.arena.view(Slab(offset, PAGE_BYTES))[:BLOCK_BYTES]
            assert block_hash in self.ever
            assert bytes(slab) == payload_of(block_hash), "a wrong byte"
            assert checksum == payload_checksum(block_hash, slab)

    @rule(which=which, lies=st.booleans())
    def release(self, which: int, lies: bool) -> None:
        if not self.leases:
            return
        lease = self.leases.pop(which % len(self.leases))
        session_id, lease_id, chain, blocks, deadline = lease
        if self.now < deadline:
            self.check_bytes(chain, blocks)
        lie = [chain[0]] if lies else []

        async def released() -> None:
            self.cache.release(session_id, lease_id, lie)

        self.run(released())

    @rule(path=paths, number=st.integers(0, 2), hints=hints)
    def reserve(self, path: list[int], number: int, hints: Hints) -> None:
        chain = chain_of(path)
        session_id = self.session(number)
        view = self.run(self.cache.reserve(session_id, "", chain, self.hinted(hints, chain)))
        self.touch(chain)
        assert len(view.missing) == len(view.slabs)
        if view.reservation_id:
            self.reservations.append((session_id, chain, view))

    @rule(which=which, verify=st.booleans(), spoil=st.booleans())
    def commit(self, which: int, verify: bool, spoil: bool) -> None:
        if not self.reservations:
            return
        session_id, chain, view = self.reservations.pop(which % len(self.reservations))
        hashes = [chain[i] for i in view.missing]
        self.touch(chain)
        sums = self.write(chain, view)
        if spoil and verify:
            sums[-1] ^= 1
        # What a commit might make visible; a refused one leaves the set a little too large.
        self.store_hashes(hashes)
        try:
            count = self.run(self.cache.commit(session_id, view.reservation_id, sums, verify))
        except ReservationExpiredError:
            return
        except ReservationUnknownError:
            return
        except ChecksumMismatchError:
            assert spoil
            return
        assert not (spoil and verify)
        assert count in (0, len(hashes))
        again = self.run(self.cache.commit(session_id, view.reservation_id, sums, verify))
        assert again == count

    @rule(which=which)
    def abort(self, which: int) -> None:
        if not self.reservations:
            return
        session_id, _, view = self.reservations.pop(which % len(self.reservations))

        async def aborted() -> None:
            self.cache.abort(session_id, view.reservation_id)

        self.run(aborted())

    @rule(path=paths, number=st.integers(0, 2), hints=hints)
    def store(self, path: list[int], number: int, hints: Hints) -> None:
        """The usual way: reserve, write, commit in one go."""
        self.store_chain(chain_of(path), self.session(number), f"store-{number}/1", hints)

    @rule(paths=st.lists(st.sampled_from(ALL_PATHS), min_size=2, max_size=6))
    def store_more_than_fits(self, paths: list[list[int]]) -> None:
        for path in paths:
            self.store_chain(chain_of(path), self.session(0))

    def store_chain(
        self,
        chain: list[BlockHash],
        session_id: str,
        request_id: str = "",
        hints: Hints = NO_HINTS,
    ) -> None:
        view = self.run(
            self.cache.reserve(session_id, request_id, chain, self.hinted(hints, chain))
        )
        self.touch(chain)
        if view.reservation_id:
            self.store_hashes([chain[i] for i in view.missing])
            sums = self.write(chain, view)
            self.run(self.cache.commit(session_id, view.reservation_id, sums, False))

    @rule(path=paths, seconds=st.sampled_from([5, 100]), owner=st.sampled_from("ab"))
    def pin(self, path: list[int], seconds: int, owner: str) -> None:
        """What is pinned stays in its last tier, whatever is stored, read, written or recycled."""
        chain = chain_of(path)

        async def pinned() -> Any:
            # Without a step of the loop between: in one a block may leave.
            if chain[-1] not in self.cached():
                return None
            return await self.cache.pins.pin(NAMESPACE, chain[-1], owner, seconds)

        try:
            view = self.run(pinned())
        except PinQuotaError:
            return
        if view is None:
            return
        assert list(view.pin.chain) == chain
        assert view.cached_count == len(chain)
        _, must = self.pins.get(view.pin.pin_id, (0.0, set()))
        self.pins[view.pin.pin_id] = (self.now + seconds, must | (set(chain) - self.mortals()))

    @rule(
        path=paths,
        others=st.lists(st.sampled_from(ALL_PATHS), min_size=3, max_size=7),
        writes=st.booleans(),
    )
    def pin_in_a_crowd(self, path: list[int], others: list[list[int]], writes: bool) -> None:
        """`writes`: what waits is written, and so segments are recycled."""
        self.store_chain(chain_of(path), self.session(0))
        self.pin(path, 100, "a")
        for other in others:
            self.store_chain(chain_of(other), self.session(0))
            self.pinned_blocks_stay()
        if writes:
            self.run(self.the_disk_is_idle())

    @rule(number=st.integers(0, 3))
    def unpin(self, number: int) -> None:
        if not self.pins:
            return
        pin_id = list(self.pins)[number % len(self.pins)]
        expires, _ = self.pins.pop(pin_id)
        if expires > self.now:
            self.run(self.cache.pins.unpin(pin_id))

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

    @invariant()
    def pinned_blocks_stay(self) -> None:
        self.pins = {
            pin_id: (expires, must)
            for pin_id, (expires, must) in self.pins.items()
            if expires > self.now
        }
        assert self.pins.keys() <= self.cache.pins._pins.keys()
        if not self.flipped:
            for _, must in self.pins.values():
                assert must <= self.cached()

    @rule()
    def there_is_room_whatever_is_pinned(self) -> None:
        """Nothing else in the way, a block of any size finds a slab, and the SSD a segment."""
        stats = self.cache.stats()
        if stats.lease_count or stats.reservation_count or stats.quarantined_slab_count:
            return
        session_id = self.session(0)

        async def reserved() -> Any:
            await self.the_disk_is_idle()
            view = await self.cache.reserve(session_id, "", [BlockHash(bytes(31) + b"x")])
            self.cache.abort(session_id, view.reservation_id)
            await self.the_disk_is_idle()
            return view

        assert self.run(reserved()).refused_count == 0
        assert self.flipped or self.ssd.free_segment_count >= 1

    @rule(
        path=paths, kind=st.sampled_from(PurgeKind), number=st.integers(0, 2), store=st.booleans()
    )
    def purge(self, path: list[int], kind: PurgeKind, number: int, store: bool) -> None:
        """What was taken out is not found until it is stored again, whatever happens: reads and
        writes under way, leases, restarts. `store`: somebody stores meanwhile."""
        target = self.target(path, kind, number)
        if target is None:
            return
        purged = self.run(self.purged(target, chain_of(path) if store else None, number))
        if not store:
            self.committed -= purged

    def target(self, path: list[int], kind: PurgeKind, number: int) -> PurgeTarget | None:
        if kind is PurgeKind.PREFIX:
            return PurgeTarget(kind, NAMESPACE, chain_of(path)[-1])
        if kind is PurgeKind.REQUEST:
            known = self.cache._parts.stores.firsts(f"store-{number}")
            return PurgeTarget(kind, request_id=f"store-{number}") if known else None
        if kind is PurgeKind.SESSION:
            return PurgeTarget(kind, session_id=self.session(number))
        if kind is PurgeKind.OWNER:
            return PurgeTarget(kind, owner=OWNERS[chain_of(path)[-1]] or "acme")
        return PurgeTarget(kind, NAMESPACE if kind is PurgeKind.NAMESPACE else None)

    def named(self, target: PurgeTarget) -> set[BlockHash]:
        """What the target is of what is cached now."""
        parts, tree = self.cache._parts, self.cache._parts.index.tree
        session = parts.sessions.number(target.session_id)
        firsts = [block_hash for _, block_hash in parts.stores.firsts(target.request_id)]
        rules: dict[PurgeKind, Callable[[int], bool]] = {
            PurgeKind.PREFIX: lambda row: tree.block_hash(row) == target.block_hash,
            PurgeKind.REQUEST: lambda row: tree.block_hash(row) in firsts,
            PurgeKind.SESSION: lambda row: bool(tree.columns.stored_by[row] == session),
            PurgeKind.OWNER: lambda row: within(OWNERS[tree.block_hash(row)], target.owner),
        }
        named = rules.get(target.kind)
        tops = [row for row in tree if named is None or named(row)]
        below = {each for row in tops for each in tree.subtree(row)}
        return {tree.block_hash(row) for row in below}

    async def purged(
        self, target: PurgeTarget, stored: list[BlockHash] | None, number: int
    ) -> set[BlockHash]:
        """What a purge took out, as the events say, and its receipt and the index too."""
        named, state = self.named(target), index_state(self.cache)
        dry = await self.cache.purging.start(target, dry_run=True)
        ended = {p for p, (_, must) in self.pins.items() if must & named}
        if ended:
            with pytest.raises(BlocksPinnedError):
                self.cache.purging.start(target, dry_run=False)
        assert dry.pin_count >= len(ended)
        if index_state(self.cache) == state:
            assert dry.hashes_sha256 == hashlib.sha256(b"".join(sorted(named))).digest()
        position = Position(self.cache.instance_id, self.cache.watching.last_sequence)
        purge = self.cache.purging.start(target, dry_run=False, force=True)
        if stored is not None:
            hints = self.hinted(NO_HINTS, stored)
            view = await self.cache.reserve(self.session(number), "", stored, hints)
            self.touch(stored)
            if view.reservation_id:
                self.store_hashes([stored[i] for i in view.missing])
                sums = self.write(stored, view)
                await self.cache.commit(self.session(number), view.reservation_id, sums, False)
        while not purge.done():
            await asyncio.sleep(0)
            self.cache.check_integrity()
        receipt = await purge
        kept = self.cache.pins._pins
        assert not ended & kept.keys()
        self.pins = {p: each for p, each in self.pins.items() if p in kept}
        assert receipt.ssd_forgetting is SsdForgetting.DURABLE
        if stored is None:
            assert not self.named(target), "something was left"
        gone = await self.events_of_purges(position)
        for copies in receipt.copies:
            assert copies.copy_count == len(gone[copies.tier])
        blocks = set(gone[Tier.HOST]) | set(gone[Tier.SSD])
        assert receipt.block_count == len(blocks)
        assert receipt.hashes_sha256 == hashlib.sha256(b"".join(sorted(blocks))).digest()
        return blocks

    async def events_of_purges(self, position: Position) -> dict[Tier, list[BlockHash]]:
        """Copies that left by a purge since `position`."""
        gone: dict[Tier, list[BlockHash]] = {Tier.HOST: [], Tier.SSD: []}
        views = self.cache.watching.watch(position, False)
        while position.sequence < self.cache.watching.last_sequence:
            view = await anext(views)
            position = view.position
            for run in view.events:
                if run.reason is MissReason.PURGED:
                    gone[run.tier] += unpack_hashes(run.hashes)
        await views.aclose()
        return gone

    @rule(seconds=st.sampled_from([1, 6, 11]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

        async def ticked() -> None:
            self.cache.tick()
            for session_id in self.sessions:
                self.cache.renew(session_id, [])

        self.run(ticked())
        deadlines = [each[-1] for each in self.leases] + [at for _, at in self.lost]
        assert self.cache.stats().lease_count <= sum(at >= self.now for at in deadlines)

    @rule(turns=st.integers(1, 30))
    def the_writer_gets_on(self, turns: int) -> None:
        async def waited() -> None:
            for _ in range(turns):
                await asyncio.sleep(0.0005)
                self.cache.check_integrity()

        self.run(waited())

    @rule(count=st.integers(1, 3))
    def the_slow_watcher_reads(self, count: int) -> None:
        for _ in range(count):
            if self.slow.behind():
                self.run(self.slow.read())
        if not self.slow.behind():
            self.check_index(self.slow.places)

    @rule(resume=st.booleans())
    def the_slow_watcher_connects_anew(self, resume: bool) -> None:
        self.run(self.slow.views.aclose())
        if not resume:
            self.slow.places.lost()
        self.slow.open()

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

    @rule()
    def restart(self) -> None:
        """A clean end: everything on the SSD is there again, nothing else."""
        self.run(self.cache.drain())
        written = self.ssd_block_count()
        self.only_what_the_ssd_has_must_be_there()
        self.all_is_written_out()
        self.arena.close()
        self.start()
        self.what_has_an_end_may_leave()
        assert self.flipped or self.ssd_block_count() == written

    @rule(quotas=st.sampled_from([NO_QUOTAS, TIGHT, SOFT]))
    def restart_with_other_quotas(self, quotas: Quotas) -> None:
        """What is above a lower one is not there again, pinned or not; no more than it goes."""
        self.run(self.cache.drain())
        written = self.ssd_block_count()
        self.only_what_the_ssd_has_must_be_there()
        self.arena.close()
        self.policies = replace(self.policies, quotas=quotas)
        self.start()
        assert self.flipped or quotas is TIGHT or self.ssd_block_count() == written
        if quotas is TIGHT:
            self.only_what_the_ssd_has_must_be_there()

    @rule()
    def crash(self) -> None:
        """The disk is taken away under the cache; what was durable is there again."""
        self.run(self.ssd.close())
        self.run(self.cache.drain())
        written = self.ssd_block_count()
        self.only_what_the_ssd_has_must_be_there()
        self.arena.close()
        self.start()
        self.what_has_an_end_may_leave()
        assert self.flipped or self.ssd_block_count() >= written

    @rule(number=st.integers(0, SEGMENTS - 1), offset=st.integers(PAGE_BYTES, SEGMENT_BYTES - 1))
    def a_bit_flips_on_the_disk(self, number: int, offset: int) -> None:
        """From here on blocks may be missing that were written; none may be wrong."""
        self.flipped = True
        files = sorted((Path(self.folder.name) / "ssd" / "segments").iterdir())
        with files[number].open("r+b") as segment:
            segment.seek(offset)
            byte = segment.read(1)
            segment.seek(offset)
            segment.write(bytes([byte[0] ^ 4]))

    def all_is_written_out(self) -> None:
        """With every block wanted and affordable, an SSD with room has all of them."""

    def ssd_block_count(self) -> int:
        self.cache.check_integrity()
        return self.cache.stats().tiers[1].block_count

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def sums_add_up(self) -> None:
        self.cache.check_integrity()
        stats = self.cache.stats()
        for tier in stats.tiers:
            assert 0 <= tier.used_bytes <= tier.capacity_bytes

    @invariant()
    def every_block_is_its_owners(self) -> None:
        index = self.cache._parts.index
        for row in index.tree:
            assert index.owners.of(row) == OWNERS[index.tree.block_hash(row)]

    @invariant()
    def leased_bytes_stay(self) -> None:
        for _, _, chain, blocks, deadline in self.leases:
            if self.now < deadline:
                self.check_bytes(chain, blocks)

    @invariant()
    def events_are_enough_to_know_what_is_cached(self) -> None:
        while self.watcher.behind():
            self.run(self.watcher.read())
        self.check_index(self.watcher.places)

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
        stats = self.cache.stats()
        assert (stats.session_count, stats.lease_count, stats.reservation_count) == (0, 0, 0)
        assert stats.quarantined_slab_count == 0
        assert stats.pending_write_count == 0
        assert self.arena.slab_count == stats.tiers[0].block_count, "a slab leaked"
        self.arena.close()


class LeavingLife(CacheLife):
    """The same for a cache that writes a block when it leaves host memory."""

    write_when = "leaving"

    def all_is_written_out(self) -> None:
        policies = self.policies
        bounded = policies.ssd_write_bytes_per_day or policies.quotas is TIGHT
        if policies.ssd_admission == "all" and not bounded:
            counters = self.cache.stats().counters
            recycled = counters.get("segments_recycled", 0)
            one_off_count = len(self.cache._parts.index.one_offs)
            left_count = self.cache.stats().host_only_count - one_off_count
            assert recycled or self.flipped or left_count == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("life", [CacheLife, LeavingLife])
def test_any_life_of_the_cache_keeps_bytes_sums_and_chains_whole(life: type[CacheLife]) -> None:
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[__import__("hypothesis").Phase.generate],
        ),
    )
