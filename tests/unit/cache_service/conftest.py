"""A cache's core on a small arena with a clock that tests move."""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.hints import NO_HINTS, Hints
from cache_service.listener import QuietListener
from cache_service.views import (
    AcquireEvent,
    CacheLimits,
    EndView,
    MatchView,
    ReadyView,
    ReservationView,
    SessionView,
    Transport,
)
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.host.arena import HostArena
from storage.tier import PAGE_BYTES
from tests.shared.hosts import Host

BLOCK_BYTES = PAGE_BYTES - 96
NAMESPACE = NamespaceId(hashlib.sha256(b"a namespace").digest())


class HandClock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Acquired:
    """All events of one acquire."""

    match: MatchView
    ready: list[ReadyView] = field(default_factory=list)
    end: EndView | None = None

    @property
    def ready_count(self) -> int:
        assert self.end is not None
        return self.end.ready_count


class Client:
    """One session that stores and reads payloads as a shared-memory client does."""

    def __init__(self, cache: Cache, view: SessionView) -> None:
        self.cache = cache
        self.session_id = view.session_id
        self.ticket = view.ticket

    async def reserve(
        self, chain: list[BlockHash], request_id: str = "", hints: Hints = NO_HINTS
    ) -> ReservationView:
        view = await self.cache.reserve(self.session_id, request_id, chain, hints)
        self.cache.check_integrity()
        return view

    def write(self, chain: list[BlockHash], view: ReservationView) -> list[int]:
        """Copies each missing block's payload into its slab; returns the checksums."""
        sums = []
        for position, slab in zip(view.missing, view.slabs, strict=True):
            payload = payload_of(chain[position])
            self.cache.arena.view(slab)[: len(payload)] = payload
            sums.append(payload_checksum(chain[position], payload))
        return sums

    async def commit(self, view: ReservationView, sums: list[int], verify: bool = False) -> int:
        count = await self.cache.commit(self.session_id, view.reservation_id, sums, verify)
        self.cache.check_integrity()
        return count

    async def store(self, chain: list[BlockHash], hints: Hints = NO_HINTS) -> int:
        """Reserve, write and commit what is missing; returns how many blocks were committed."""
        view = await self.reserve(chain, hints=hints)
        if not view.reservation_id:
            return 0
        return await self.commit(view, self.write(chain, view))

    async def acquire(self, chain: list[BlockHash], timeout: float | None = None) -> Acquired:
        events: list[AcquireEvent] = []
        async for event in self.cache.acquire(self.session_id, "r", chain, timeout):
            self.cache.check_integrity()
            events.append(event)
        match, end = events[0], events[-1]
        assert isinstance(match, MatchView)
        assert isinstance(end, EndView)
        ready = [event for event in events[1:-1] if isinstance(event, ReadyView)]
        assert len(ready) == len(events) - 2
        return Acquired(match, ready, end)

    def check_payloads(self, chain: list[BlockHash], acquired: Acquired) -> None:
        """Every ready block holds exactly the bytes that were stored under its hash."""
        position = 0
        for view in acquired.ready:
            assert view.first_index == position
            for slab, checksum in zip(view.slabs, view.checksums, strict=True):
                payload = payload_of(chain[position])
                assert bytes(self.cache.arena.view(slab)[: len(payload)]) == payload
                assert checksum == payload_checksum(chain[position], payload)
                position += 1
        assert position == acquired.ready_count

    def release(self, acquired: Acquired, corrupt: list[BlockHash] | None = None) -> None:
        self.cache.release(self.session_id, acquired.match.lease_id, corrupt or [])
        self.cache.check_integrity()

    def present(self, chain: list[BlockHash]) -> int:
        return self.cache.lookup(self.session_id, chain).present_count


def chain_of(*names: object) -> list[BlockHash]:
    """A chain whose block i is named by all names up to i, as real hashes are."""
    hashes = []
    parent = b""
    for name in names:
        parent = hashlib.sha256(parent + str(name).encode()).digest()
        hashes.append(BlockHash(parent))
    return hashes


def payload_of(block_hash: BlockHash) -> bytes:
    return hashlib.shake_128(block_hash).digest(BLOCK_BYTES)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def arena() -> Iterator[HostArena]:
    """Room for sixteen blocks in four extents."""
    arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    yield arena
    arena.close()


@pytest.fixture
def limits() -> CacheLimits:
    return CacheLimits(
        session_ttl_seconds=60,
        lease_ttl_seconds=10,
        reservation_ttl_seconds=10,
        reservation_grace_seconds=5,
        room_wait_seconds=0.2,
        max_sessions=3,
        max_blocks_per_call=64,
        max_leases_per_session=4,
        max_reservations_per_session=4,
        evicted_memory_count=8,
    )


@pytest.fixture
def cache(arena: HostArena, limits: CacheLimits, clock: HandClock) -> Cache:
    """Without an SSD tier."""
    return Cache(arena, None, limits, clock, QuietListener())


@pytest.fixture
def connect() -> Callable[..., Client]:
    """Opens a session on a cache."""

    def opened(
        cache: Cache, namespace: NamespaceId = NAMESPACE, transport: Transport | None = None
    ) -> Client:
        chosen = transport or Transport.SHARED_MEMORY
        return Client(cache, cache.open_session(namespace, BLOCK_BYTES, 64, "test", chosen))

    return opened


@pytest.fixture
def client(cache: Cache, connect: Callable[..., Client]) -> Client:
    return connect(cache)


@pytest.fixture
def chain() -> Callable[..., list[BlockHash]]:
    return chain_of


@pytest.fixture
async def host(
    tmp_path: Path, limits: CacheLimits, clock: HandClock
) -> AsyncIterator[Callable[..., Host]]:
    """Makes cache services that have one shared tier."""
    opened: list[Host] = []

    def build(slabs: int = 64, **what: Any) -> Host:
        opened.append(Host(tmp_path / "shared", limits, clock, slabs, **what))
        return opened[-1]

    yield build
    for each in opened:
        await each.close()
