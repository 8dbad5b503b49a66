"""What engines do in the random lives of a cache: sessions, reads and writes."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
)

from cache_service.chains import Chain
from cache_service.errors import (
    ChecksumMismatchError,
    LeaseExpiredError,
    LeaseUnknownError,
    ReservationExpiredError,
    ReservationUnknownError,
)
from cache_service.hints import NO_HINTS, Hints
from cache_service.tree_walk import START, Place
from cache_service.views import (
    EndView,
    MatchView,
    ReadyView,
)
from kvtier.blocks import Tier
from kvtier.keys import BlockHash, payload_checksum
from storage.tier import PAGE_BYTES, Slab
from tests.cache_state import index_state
from tests.property.cache_world import (
    ALL_PATHS,
    BLOCK_BYTES,
    LIMITS,
    NAMESPACE,
    CacheWorld,
    chain_of,
    hints,
    paths,
    payload_of,
    which,
)


class ClientLife(CacheWorld):
    """Rules of clients."""

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

    @invariant()
    def leased_bytes_stay(self) -> None:
        for _, _, chain, blocks, deadline in self.leases:
            if self.now < deadline:
                self.check_bytes(chain, blocks)
