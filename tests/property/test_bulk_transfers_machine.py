"""Random lives of the bulk lane's transfers: threads that read and write slabs while what named
those ends around them.

The model: a thread that holds a load sees the bytes of its blocks until it gives them back; one
that holds a store writes its own bytes, and only they can become blocks. Every owner's sums add up
after every step.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache_service.bulk.transfers import LaneEntry, LoadTransfer, StoreTransfer
from cache_service.cache import Cache
from cache_service.errors import CacheError
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits, EndView, MatchView, ReservationView, Transport
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.host.arena import HostArena
from storage.tier import PAGE_BYTES

BLOCK_BYTES = 900
NAMESPACE = NamespaceId(bytes(range(32)))
SLABS = 6

LIMITS = CacheLimits(
    session_ttl_seconds=100,
    lease_ttl_seconds=10,
    reservation_ttl_seconds=10,
    reservation_grace_seconds=5,
    room_wait_seconds=0.01,
)

Result = TypeVar("Result")

names = st.lists(st.integers(0, 2), min_size=1, max_size=4)
picks = st.integers(0, 99)


def chain_of(path: list[int]) -> list[BlockHash]:
    parent, hashes = b"", []
    for name in path:
        parent = hashlib.sha256(parent + bytes([name])).digest()
        hashes.append(BlockHash(parent))
    return hashes


def payload_of(block_hash: BlockHash) -> bytes:
    return hashlib.shake_128(block_hash).digest(BLOCK_BYTES)


def address_of(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)


class TransferLife(RuleBasedStateMachine):
    """One cache without an SSD, one session after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.arena = HostArena(SLABS * PAGE_BYTES, extent_bytes=2 * PAGE_BYTES)
        self.cache = Cache(self.arena, None, LIMITS, lambda: self.now, QuietListener())
        self.reservations: list[ReservationView] = []
        self.sums: dict[str, dict[int, int]] = {}
        self.leases: list[tuple[str, list[BlockHash], int]] = []
        self.loads: list[tuple[LoadTransfer, list[BlockHash]]] = []
        self.stores: list[StoreTransfer] = []
        self.open()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(work)

    def open(self) -> None:
        view = self.cache.open_session(NAMESPACE, BLOCK_BYTES, 4, "c", Transport.BULK, "me")
        self.session_id = view.session_id
        self.lane: LaneEntry = self.cache.bulk.enter(
            self.cache.bulk.ticket(self.session_id, "me"), "me", lambda: None
        )

    @rule(path=names)
    def reserve(self, path: list[int]) -> None:
        with contextlib.suppress(CacheError):
            view = self.run(self.cache.reserve(self.session_id, "", chain_of(path)))
            given = {address_of(self.arena.view(slab)) for slab in view.slabs}
            held = [view for load, _ in self.loads for view in load.views]
            held += [view for store in self.stores for view in store.views]
            assert given.isdisjoint(map(address_of, held)), "a thread still has this slab"
            if view.reservation_id:
                self.reservations.append(view)
                self.sums[view.reservation_id] = {
                    i: payload_checksum(chain_of(path)[i], payload_of(chain_of(path)[i]))
                    for i in view.missing
                }

    @rule(path=names)
    def store_whole(self, path: list[int]) -> None:
        before, stores = len(self.reservations), len(self.stores)
        self.reserve(path)
        if len(self.reservations) > before:
            self.begin_store(before)
            if len(self.stores) > stores:
                self.end_store(stores, 4)
            self.commit(before)

    @rule(path=names, released=st.booleans())
    def load_whole(self, path: list[int], released: bool) -> None:
        before = len(self.leases)
        self.acquire(path)
        if len(self.leases) > before:
            self.begin_load(before, 0)
            if released:
                self.release(before, False)

    @precondition(lambda self: self.reservations)
    @rule(pick=picks)
    def begin_store(self, pick: int) -> None:
        view = self.reservations[pick % len(self.reservations)]
        if any(s.reservation.reservation_id == view.reservation_id for s in self.stores):
            return
        with contextlib.suppress(CacheError):
            begun = self.run(self.cache.bulk.begin_store(self.lane, view.reservation_id))
            self.stores.append(begun)

    @precondition(lambda self: self.stores)
    @rule(pick=picks, whole=st.integers(0, 4))
    def end_store(self, pick: int, whole: int) -> None:
        """The thread wrote `whole` blocks, and half of the next one."""
        transfer = self.stores.pop(pick % len(self.stores))
        rest = list(zip(transfer.hashes, transfer.views, strict=True))
        for number, (block_hash, view) in enumerate(rest[transfer.standing :]):
            if number >= whole:
                view[: BLOCK_BYTES // 2] = bytes(BLOCK_BYTES // 2)
                break
            view[:] = payload_of(block_hash)
            transfer.standing += 1
        self.cache.bulk.end_store(transfer)

    @precondition(lambda self: self.reservations)
    @rule(pick=picks)
    def commit(self, pick: int) -> None:
        view = self.reservations[pick % len(self.reservations)]
        sums = self.sums[view.reservation_id]
        with contextlib.suppress(CacheError):
            self.run(
                self.cache.commit(
                    self.session_id, view.reservation_id, [sums[i] for i in view.missing], False
                )
            )

    @precondition(lambda self: self.reservations)
    @rule(pick=picks)
    def abort(self, pick: int) -> None:
        view = self.reservations.pop(pick % len(self.reservations))
        with contextlib.suppress(CacheError):
            self.cache.abort(self.session_id, view.reservation_id)

    @rule(path=names)
    def acquire(self, path: list[int]) -> None:
        async def events() -> list[Any]:
            return [e async for e in self.cache.acquire(self.session_id, "", chain_of(path), 1.0)]

        with contextlib.suppress(CacheError):
            seen = self.run(events())
            match, end = seen[0], seen[-1]
            assert isinstance(match, MatchView)
            assert isinstance(end, EndView)
            if match.lease_id:
                self.leases.append((match.lease_id, chain_of(path), end.ready_count))

    @precondition(lambda self: self.leases)
    @rule(pick=picks, first=st.integers(0, 3))
    def begin_load(self, pick: int, first: int) -> None:
        lease_id, chain, count = self.leases[pick % len(self.leases)]
        with contextlib.suppress(CacheError):
            begun = self.cache.bulk.begin_load(self.lane, lease_id, first, count - first)
            self.loads.append((begun, chain[first:count]))

    @precondition(lambda self: self.loads)
    @rule(pick=picks)
    def end_load(self, pick: int) -> None:
        transfer, _ = self.loads.pop(pick % len(self.loads))
        self.cache.bulk.end_load(transfer)

    @precondition(lambda self: self.leases)
    @rule(pick=picks, corrupt=st.booleans())
    def release(self, pick: int, corrupt: bool) -> None:
        lease_id, chain, _ = self.leases.pop(pick % len(self.leases))

        async def release() -> None:
            self.cache.release(self.session_id, lease_id, chain[:1] if corrupt else [])

        with contextlib.suppress(CacheError):
            self.run(release())

    @rule(seconds=st.sampled_from([0.3, 4, 11, 120]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.cache.tick()

    @rule()
    def close_session(self) -> None:
        """Its threads are still at work; the next session comes while they are."""
        self.cache.close_session(self.session_id)
        self.leases.clear()
        self.reservations.clear()
        self.open()

    @rule()
    def open_anew(self) -> None:
        """After the session expired, say."""
        if self.cache.session_owner(self.session_id) is None:
            self.leases.clear()
            self.reservations.clear()
            self.open()

    @invariant()
    def loads_see_their_own_bytes(self) -> None:
        for transfer, hashes in self.loads:
            assert [bytes(view) for view in transfer.views] == [payload_of(h) for h in hashes]

    @invariant()
    def sums_add_up(self) -> None:
        self.cache.check_integrity()

    def teardown(self) -> None:
        for load, _ in self.loads:
            self.cache.bulk.end_load(load)
        for store in self.stores:
            self.cache.bulk.end_store(store)
        self.loads.clear()
        self.stores.clear()
        self.cache.close_session(self.session_id)
        self.now += 1000
        self.cache.tick()
        self.run(self.cache.drain())
        self.cache.check_integrity()
        assert self.cache.bulk.transfer_count == 0
        assert self.cache.stats().reservation_count == 0
        self.loop.close()
        self.arena.close()


TestTransferLife = TransferLife.TestCase
TestTransferLife.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
