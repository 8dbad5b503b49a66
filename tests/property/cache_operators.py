"""What operators do in the random lives of a cache: pins and purges."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    rule,
)

from cache_service.errors import (
    BlocksPinnedError,
    PinQuotaError,
)
from cache_service.events.watching import Position
from cache_service.hints import NO_HINTS
from cache_service.owner_runs import within
from cache_service.purge_views import PurgeKind, PurgeTarget, SsdForgetting
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, unpack_hashes
from tests.cache_state import index_state
from tests.property.cache_clients import ClientLife
from tests.property.cache_world import (
    ALL_PATHS,
    NAMESPACE,
    OWNERS,
    chain_of,
    paths,
)


class OperatorLife(ClientLife):
    """Rules of operators."""

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
