"""Clients that vanish at any step, all at once, over a small SSD: no byte of a live lease is wrong.

Every client is a task that is cancelled at a random await. What it holds then is left lying: a
reservation it may still be writing into, a lease, an acquire in the middle of its stream, a commit
on its way. Time jumps over deadlines meanwhile.
"""

import asyncio
import contextlib
import hashlib
import random
from pathlib import Path

import pytest

from cache_service.cache import Cache
from cache_service.errors import CacheError
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits, CachePolicies, MatchView, ReadyView, Transport
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, Slab

BLOCK_BYTES = PAGE_BYTES - 100
SEGMENT_BYTES = 17 * PAGE_BYTES
SLABS = 24
CLIENTS = 6
STEPS = 60
LIMITS = CacheLimits(
    session_ttl_seconds=50,
    lease_ttl_seconds=6,
    reservation_ttl_seconds=6,
    reservation_grace_seconds=5,
    room_wait_seconds=0.02,
    read_ahead_blocks=3,
    write_batch_blocks=4,
)


def chain_of(numbers: list[int]) -> list[BlockHash]:
    hashes, parent = [], b""
    for number in numbers:
        parent = hashlib.sha256(parent + bytes([number])).digest()
        hashes.append(BlockHash(parent))
    return hashes


def payload_of(block_hash: BlockHash) -> bytes:
    return hashlib.shake_128(block_hash).digest(BLOCK_BYTES)


def checksum_of(block_hash: BlockHash) -> int:
    return payload_checksum(block_hash, payload_of(block_hash))


class Crowd:
    """A cache and the clients that come and go."""

    def __init__(self, folder: Path, seed: int, write_when: str) -> None:
        self.policies = CachePolicies(ssd_write_when=write_when)
        self.rng = random.Random(seed)
        self.now = 0.0
        self.folder = folder
        self.arena = HostArena(SLABS * PAGE_BYTES, extent_bytes=6 * PAGE_BYTES)
        self.cache = self.open()
        self.late_writes: list[tuple[float, str, Slab]] = []
        """Until when which session's process may still write into which slab."""
        self.ready_count = 0

    def open(self) -> Cache:
        ssd = SsdTier.open(
            self.folder / "ssd", capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
        )
        return Cache(self.arena, ssd, LIMITS, lambda: self.now, QuietListener(), self.policies)

    def open_session(self) -> str:
        return self.cache.open_session(
            NamespaceId(bytes(32)), BLOCK_BYTES, 64, "crowd", Transport.SHARED_MEMORY
        ).session_id

    def chain(self) -> list[BlockHash]:
        return chain_of([self.rng.randrange(3) for _ in range(self.rng.randrange(1, 7))])

    async def client(self) -> None:
        session_id = self.open_session()
        try:
            while True:
                with contextlib.suppress(CacheError):
                    if self.rng.random() < 0.5:
                        await self.store(session_id)
                    else:
                        await self.read(session_id)
                await asyncio.sleep(0)
        finally:
            # One in two says goodbye; the others are found out by their deadline.
            if self.rng.random() < 0.5:
                self.cache.close_session(session_id)
                end_at = self.now + LIMITS.reservation_grace_seconds
                self.late_writes = [
                    (min(until, end_at) if owner == session_id else until, owner, slab)
                    for until, owner, slab in self.late_writes
                ]

    async def store(self, session_id: str) -> None:
        chain = self.chain()
        request_id = self.rng.choice(["", "one", "two"])
        view = await self.cache.reserve(session_id, request_id, chain)
        if not view.reservation_id:
            return
        expire_at = self.now + view.expire_seconds
        sums: list[int] = []
        try:
            for position, slab in zip(view.missing, view.slabs, strict=True):
                if self.rng.random() < 0.3:
                    await asyncio.sleep(0)
                if self.now >= expire_at:
                    return
                payload = payload_of(chain[position])
                self.arena.view(slab)[:BLOCK_BYTES] = payload
                sums.append(checksum_of(chain[position]))
        finally:
            if len(sums) < len(view.slabs):
                until = expire_at + LIMITS.reservation_grace_seconds
                self.late_writes += [(until, session_id, slab) for slab in view.slabs]
        if self.rng.random() < 0.1:
            self.cache.abort(session_id, view.reservation_id)
        else:
            verify = self.rng.random() < 0.5
            await self.cache.commit(session_id, view.reservation_id, sums, verify)

    async def read(self, session_id: str) -> None:
        chain = self.chain()[self.rng.randrange(2) :] or self.chain()
        ready: list[Slab] = []
        lease_id, expire_at = "", 0.0
        stream = self.cache.acquire(session_id, "r", chain, None)
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                if isinstance(event, MatchView):
                    lease_id, expire_at = event.lease_id, self.now + event.expire_seconds
                elif isinstance(event, ReadyView):
                    named = chain[len(ready) : len(ready) + len(event.slabs)]
                    # Also when the lease has ended: a client would believe it.
                    assert [checksum_of(block_hash) for block_hash in named] == [*event.checksums]
                    ready += event.slabs
                if self.now < expire_at:
                    self.check(chain, ready)
                await asyncio.sleep(self.rng.choice([0, 0, 0.002]))
        await asyncio.sleep(self.rng.choice([0, 0, 0.001]))
        if self.now < expire_at:
            self.check(chain, ready)
        lie = chain if self.rng.random() < 0.2 else []
        self.cache.release(session_id, lease_id, lie)

    def check(self, chain: list[BlockHash], ready: list[Slab]) -> None:
        self.ready_count += len(ready)
        for block_hash, slab in zip(chain, ready, strict=False):
            assert bytes(self.arena.view(slab)[:BLOCK_BYTES]) == payload_of(block_hash)

    def write_late(self) -> None:
        """Those who are gone, or were too slow, scribble where they still may."""
        self.late_writes = [each for each in self.late_writes if each[0] > self.now]
        for _, _, slab in self.late_writes:
            if self.rng.random() < 0.3:
                self.arena.view(slab)[: BLOCK_BYTES // 2] = bytes(BLOCK_BYTES // 2)

    async def run(self) -> None:
        tasks: list[asyncio.Task[None]] = []
        for _ in range(STEPS):
            while len(tasks) < CLIENTS:
                tasks.append(asyncio.create_task(self.client()))
            for _ in range(self.rng.randrange(1, 12)):
                await asyncio.sleep(self.rng.choice([0, 0.0005]))
                self.cache.check_integrity()
            self.write_late()
            self.now += self.rng.choice([0, 0, 0, 1, 7])
            self.cache.tick()
            gone = tasks.pop(self.rng.randrange(len(tasks)))
            await self.end(gone)
        for task in tasks:
            await self.end(task)

    async def end(self, task: "asyncio.Task[None]") -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self.cache.check_integrity()


@pytest.mark.parametrize("write_when", ["committed", "leaving"])
@pytest.mark.parametrize("seed", range(3))
async def test_clients_that_vanish_at_any_step_leave_right_bytes_and_whole_sums(
    tmp_path: Path, seed: int, write_when: str
) -> None:
    crowd = Crowd(tmp_path, seed, write_when)
    await crowd.run()
    assert crowd.ready_count > 100, "the crowd read nothing"
    # Everything that was held ends at its deadline, and nothing else is left.
    crowd.now += 1000
    crowd.cache.tick()
    await crowd.cache.drain()
    crowd.now += 1000
    crowd.cache.tick()
    crowd.cache.check_integrity()
    stats = crowd.cache.stats()
    assert (stats.session_count, stats.lease_count, stats.reservation_count) == (0, 0, 0)
    assert stats.quarantined_slab_count == 0
    assert crowd.arena.slab_count == stats.tiers[0].block_count, "a slab leaked"
    written = stats.tiers[1].block_count
    crowd.arena.close()
    crowd.arena = HostArena(SLABS * PAGE_BYTES, extent_bytes=6 * PAGE_BYTES)
    crowd.cache = crowd.open()
    crowd.cache.check_integrity()
    assert crowd.cache.stats().tiers[1].block_count == written
    session_id = crowd.open_session()
    for _ in range(30):
        await crowd.read(session_id)
    await crowd.cache.drain()
    crowd.arena.close()
