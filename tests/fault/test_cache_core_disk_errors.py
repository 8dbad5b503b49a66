"""A disk that fails under the cache is an absent tier: a miss, never an error or a wrong byte."""

import asyncio
import errno
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits, CachePolicies, EndView, MatchView, ReadyView, Transport
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, NamespaceId, payload_checksum
from storage.env import Buffer, RealEnv
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

BLOCK_BYTES = PAGE_BYTES
SEGMENT_BYTES = 17 * PAGE_BYTES
LIMITS = CacheLimits(ssd_retry_seconds=10, room_wait_seconds=0.1)


class FailingEnv(RealEnv):
    """Fails segment reads or writes with EIO while told to; keeps count."""

    def __init__(self) -> None:
        self.reads_fail = False
        self.writes_fail = False
        self.syncs_fail = False
        self.failed_count = 0
        self.bad_place = b""
        """Reading a record whose hash this is fails: one bad place on a good disk."""

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._fail(self.reads_fail)
        count = super().preadv(fd, buffers, offset)
        # Records that lie behind each other may be read at one go.
        pages = [bytes(buffer[:PAGE_BYTES]) for buffer in buffers]
        self._fail(bool(self.bad_place) and any(self.bad_place in page for page in pages))
        return count

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._fail(self.writes_fail)
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._fail(self.syncs_fail)
        super().fdatasync(fd)

    def _fail(self, now: bool) -> None:
        if now:
            self.failed_count += 1
            raise OSError(errno.EIO, "the disk is gone")


class Bench:
    """A cache over a disk that can fail, and one client."""

    def __init__(self, folder: Path, env: FailingEnv, write_when: str = "committed") -> None:
        self.env = env
        self.policies = CachePolicies(ssd_write_when=write_when)
        # A taker whose patience ends while a slow disk writes lets blocks leave unwritten.
        self.limits = replace(LIMITS, room_wait_seconds=60) if write_when == "leaving" else LIMITS
        self.now = 0.0
        self.folder = folder
        self.start()

    def start(self) -> None:
        self.arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        ssd = SsdTier.open(
            self.folder / "ssd",
            capacity_bytes=6 * SEGMENT_BYTES,
            segment_bytes=SEGMENT_BYTES,
            env=self.env,
        )
        parts = (self.arena, ssd, self.limits, lambda: self.now, QuietListener(), self.policies)
        self.cache = Cache(*parts)
        self.session_id = self.cache.open_session(
            NamespaceId(bytes(32)), BLOCK_BYTES, 64, "bench", Transport.SHARED_MEMORY
        ).session_id

    async def restart(self) -> None:
        await self.cache.drain()
        self.cache.check_integrity()
        self.arena.close()
        self.start()

    async def store(self, chain: list[BlockHash]) -> int:
        view = await self.cache.reserve(self.session_id, "", chain)
        sums = []
        for position, slab in zip(view.missing, view.slabs, strict=True):
            payload = payload_of(chain[position])
            self.arena.view(slab)[:] = payload
            sums.append(payload_checksum(chain[position], payload))
        if not view.reservation_id:
            return 0
        return await self.cache.commit(self.session_id, view.reservation_id, sums, False)

    async def settle(self) -> None:
        while self.cache.stats().pending_write_count:
            await asyncio.sleep(0.001)
        self.cache.check_integrity()

    async def read(self, chain: list[BlockHash]) -> EndView:
        """Reads and releases; checks every byte that was said to be ready."""
        events = [e async for e in self.cache.acquire(self.session_id, "r", chain, None)]
        for view in events[1:-1]:
            assert isinstance(view, ReadyView)
            for i, slab in enumerate(view.slabs):
                assert bytes(self.arena.view(slab)) == payload_of(chain[view.first_index + i])
        match, end = events[0], events[-1]
        assert isinstance(match, MatchView)
        assert isinstance(end, EndView)
        self.cache.release(self.session_id, match.lease_id, [])
        self.cache.check_integrity()
        return end

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.cache.stats().counters)


def chain_of(*names: object) -> list[BlockHash]:
    hashes, parent = [], b""
    for name in names:
        parent = hashlib.sha256(parent + str(name).encode()).digest()
        hashes.append(BlockHash(parent))
    return hashes


def payload_of(block_hash: BlockHash) -> bytes:
    return hashlib.shake_128(block_hash).digest(BLOCK_BYTES)


@pytest.fixture
async def bench(tmp_path: Path, request: Any) -> Any:
    bench = Bench(tmp_path, FailingEnv(), getattr(request, "param", "committed"))
    yield bench
    bench.env.reads_fail = bench.env.writes_fail = bench.env.syncs_fail = False
    await bench.cache.drain()
    bench.cache.check_integrity()
    bench.arena.close()


@pytest.mark.parametrize("what", ["writes_fail", "syncs_fail"])
async def test_a_disk_that_takes_no_writes_leaves_a_working_memory_cache(
    bench: Bench, what: str
) -> None:
    setattr(bench.env, what, True)
    for i in range(40):
        assert await bench.store(chain_of("c", i)) >= 1
        await bench.settle()
    assert bench.env.failed_count > 0
    assert (await bench.read(chain_of("c", 39))).ready_count == 2
    assert bench.cache.stats().tiers[1].block_count == 0
    assert bench.counters["ssd_failures"] >= 3


@pytest.mark.parametrize("bench", ["leaving"], indirect=True)
async def test_a_disk_that_takes_no_writes_lets_blocks_leave_unwritten(bench: Bench) -> None:
    bench.env.writes_fail = True
    for i in range(40):
        assert await bench.store(chain_of("c", i, "tail")) >= 2
        bench.cache.check_integrity()
    await bench.settle()
    assert bench.counters["ssd_failures"] == 3
    assert (await bench.read(chain_of("c", 39, "tail"))).ready_count == 3
    assert bench.cache.stats().tiers[1].block_count == 0
    bench.env.writes_fail = False
    bench.now += 10
    for i in range(40, 60):
        assert await bench.store(chain_of("c", i, "tail")) >= 2
    await bench.settle()
    assert (await bench.read(chain_of("c", 42, "tail"))).ready_count == 3


@pytest.mark.parametrize("bench", ["leaving"], indirect=True)
async def test_an_orderly_end_on_a_disk_that_takes_no_writes_ends(bench: Bench) -> None:
    for i in range(5):
        await bench.store(chain_of("c", i))
    bench.env.writes_fail = True
    await bench.cache.drain()
    bench.cache.check_integrity()
    bench.env.writes_fail = False
    bench.arena.close()
    bench.start()
    assert bench.cache.stats().tiers[1].block_count == 0


async def test_after_repeated_failures_the_disk_is_left_alone_until_the_retry(
    bench: Bench,
) -> None:
    bench.env.writes_fail = True
    for i in range(10):
        await bench.store(chain_of(i))
        await bench.settle()
    failed = bench.env.failed_count
    assert bench.counters["ssd_failures"] == 3
    bench.env.writes_fail = False
    await bench.store(chain_of("still absent"))
    await bench.settle()
    assert bench.env.failed_count == failed
    assert bench.cache.stats().tiers[1].block_count == 0
    bench.now += 10
    await bench.store(chain_of("back"))
    await bench.settle()
    assert bench.cache.stats().tiers[1].block_count == 1


async def test_a_block_that_was_not_written_is_offered_again_when_it_is_hit(bench: Bench) -> None:
    chain = chain_of(1, 2, 3)
    bench.env.writes_fail = True
    await bench.store(chain)
    await bench.settle()
    bench.env.writes_fail = False
    assert (await bench.read(chain)).ready_count == 3
    await bench.settle()
    assert bench.cache.stats().tiers[1].block_count == 3


async def test_one_read_error_is_a_miss_of_the_moment(bench: Bench) -> None:
    chain = chain_of(1, 2, 3)
    await bench.store(chain)
    await bench.restart()
    assert (await bench.read(chain[:1])).ready_count == 1
    bench.env.reads_fail = True
    end = await bench.read(chain)
    assert end.ready_count == 1
    assert end.miss_reason is MissReason.UNAVAILABLE
    bench.env.reads_fail = False
    assert (await bench.read(chain)).ready_count == 3


async def test_a_bad_place_on_a_good_disk_is_given_up_and_can_be_stored_again(
    bench: Bench,
) -> None:
    chain = chain_of(1, 2, 3)
    await bench.store(chain)
    await bench.restart()
    bench.env.bad_place = chain[1]
    for _ in range(2):
        end = await bench.read(chain)
        assert end.ready_count == 1
        assert end.miss_reason is MissReason.UNAVAILABLE
        await bench.store(chain_of("the disk", "works otherwise", bench.env.failed_count))
        await bench.settle()
    assert bench.cache.lookup(bench.session_id, chain).present_count == 1
    assert await bench.store(chain) == 2
    assert (await bench.read(chain)).ready_count == 3


async def test_a_bad_place_in_the_segment_to_recycle_does_not_stop_recycling(
    bench: Bench,
) -> None:
    hot = chain_of("hot", 1, 2)
    await bench.store(hot)
    await bench.settle()
    for _ in range(3):
        assert (await bench.read(hot)).ready_count == 3
    bench.env.bad_place = hot[2]
    for i in range(80):
        await bench.store(chain_of("cold", i))
        await bench.settle()
        bench.now += 20
        await bench.read(hot[:2])
    assert bench.counters["segments_recycled"] > 4
    bench.env.bad_place = b""
    assert (await bench.read(hot)).ready_count >= 2


async def test_a_disk_that_reads_nothing_counts_as_absent_and_comes_back(bench: Bench) -> None:
    chains = [chain_of("c", i) for i in range(8)]
    for chain in chains:
        await bench.store(chain)
        await bench.settle()
    await bench.restart()
    bench.env.reads_fail = True
    for chain in chains[:4]:
        assert (await bench.read(chain)).ready_count == 0
    found = bench.cache.lookup(bench.session_id, chains[6])
    assert found.miss_reason is MissReason.UNAVAILABLE
    bench.env.reads_fail = False
    bench.now += 10
    assert [(await bench.read(chain)).ready_count for chain in chains] == [2] * 8


async def test_while_the_disk_is_absent_its_blocks_can_be_stored_and_read_again(
    bench: Bench,
) -> None:
    chain = chain_of("a", 1, 2)
    await bench.store(chain)
    await bench.restart()
    bench.env.writes_fail = True
    for i in range(3):
        await bench.store(chain_of("other", i))
        await bench.settle()
    assert bench.cache.lookup(bench.session_id, chain).present_count == 0
    assert await bench.store(chain) == 3
    assert (await bench.read(chain)).ready_count == 3
    bench.env.writes_fail = False
    bench.now += 10
    found = bench.cache.lookup(bench.session_id, chain)
    assert found.tiers == bytes([Tier.HOST] * 3)


async def test_while_the_disk_is_absent_another_namespace_cannot_take_a_block_over(
    bench: Bench,
) -> None:
    chain = chain_of("a", 1, 2)
    await bench.store(chain)
    await bench.restart()
    bench.env.writes_fail = True
    for i in range(3):
        await bench.store(chain_of("other", i))
        await bench.settle()
    stranger = bench.cache.open_session(
        NamespaceId(bytes([1] * 32)), 2 * BLOCK_BYTES, 64, "stranger", Transport.SHARED_MEMORY
    ).session_id
    view = await bench.cache.reserve(stranger, "", chain)
    assert (view.missing, view.refused_count) == ((), 3)
    assert view.refused_reason is MissReason.OTHER_NAMESPACE
    assert await bench.store(chain) == 3
    assert (await bench.read(chain)).ready_count == 3


class SlowEnv(FailingEnv):
    """Every sync takes a while."""

    def fdatasync(self, fd: int) -> None:
        time.sleep(0.02)
        super().fdatasync(fd)


async def test_a_reserve_waits_once_for_a_slow_disk_not_for_every_slab(tmp_path: Path) -> None:
    arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    ssd = SsdTier.open(
        tmp_path / "ssd",
        capacity_bytes=6 * SEGMENT_BYTES,
        segment_bytes=SEGMENT_BYTES,
        env=SlowEnv(),
    )
    limits = CacheLimits(room_wait_seconds=0.1, write_batch_blocks=1, pending_write_share_max=2)
    cache = Cache(arena, ssd, limits, time.monotonic, QuietListener())
    session_id = cache.open_session(
        NamespaceId(bytes(32)), BLOCK_BYTES, 64, "bench", Transport.SHARED_MEMORY
    ).session_id
    first = await cache.reserve(session_id, "", chain_of(*range(16)))
    for slab, block_hash in zip(first.slabs, chain_of(*range(16)), strict=True):
        arena.view(slab)[:] = payload_of(block_hash)
    sums = [payload_checksum(h, payload_of(h)) for h in chain_of(*range(16))]
    assert await cache.commit(session_id, first.reservation_id, sums, False) == 16
    # Sixteen slabs, each made free by a write of its own: all of them would take three waits.
    second = await cache.reserve(session_id, "", chain_of("b", *range(15)))
    assert second.refused_count > 0
    assert second.refused_reason is MissReason.ARENA_FULL
    cache.check_integrity()
    await cache.drain()
    arena.close()


async def test_a_flipped_bit_on_the_disk_is_a_miss_called_corrupt(bench: Bench) -> None:
    chain = chain_of(1, 2, 3)
    await bench.store(chain)
    await bench.cache.drain()
    for segment in sorted((bench.folder / "ssd" / "segments").iterdir()):
        content = bytearray(segment.read_bytes())
        place = content.find(payload_of(chain[1]))
        if place >= 0:
            content[place + 100] ^= 1
            segment.write_bytes(content)
    bench.arena.close()
    bench.start()
    end = await bench.read(chain)
    assert end.ready_count == 1
    assert end.miss_reason in (MissReason.CORRUPT, MissReason.NEVER_STORED)
    assert bench.cache.lookup(bench.session_id, chain).present_count == 1
    assert await bench.store(chain) == 2
    assert (await bench.read(chain)).ready_count == 3


async def test_errors_in_the_middle_of_recycling_lose_blocks_and_nothing_else(
    bench: Bench,
) -> None:
    for i in range(60):
        bench.env.writes_fail = i % 7 == 3
        bench.env.reads_fail = i % 11 == 5
        bench.now += 4
        assert await bench.store(chain_of("c", i, "tail")) >= 0
        await bench.settle()
        await bench.read(chain_of("c", max(0, i - 3), "tail"))
    bench.env.writes_fail = bench.env.reads_fail = False
    bench.now += 10
    assert bench.counters["segments_recycled"] > 0
    for i in range(60):
        await bench.read(chain_of("c", i, "tail"))
