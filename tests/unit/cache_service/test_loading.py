"""An acquire loads what is faster to load than to compute, and thinks again while it waits."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.read_rate import FRESH_SECONDS, ReadRate
from cache_service.views import AcquireEvent, CacheLimits
from kvtier.blocks import MissReason, Tier
from storage.env import Buffer, RealEnv
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

SEGMENT_BYTES = 65 * PAGE_BYTES
COUNT = 12


class GatedEnv(RealEnv):
    """A disk that reads only while the gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.read_count = 0

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.asked.set()
        assert self.gate.wait(30)
        self.read_count += 1
        return super().preadv(fd, buffers, offset)


@pytest.fixture
def env() -> GatedEnv:
    return GatedEnv()


@pytest.fixture
async def warm(
    env: GatedEnv, limits: CacheLimits, clock: Any, connect: Any, chain: Any, tmp_path: Any
) -> AsyncIterator[Cache]:
    """A cache just started, with a chain of twelve blocks on its SSD."""

    def opened() -> Cache:
        ssd = SsdTier.open(
            tmp_path / "ssd",
            capacity_bytes=6 * SEGMENT_BYTES,
            segment_bytes=SEGMENT_BYTES,
            env=env,
        )
        arena = HostArena(32 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        return Cache(arena, ssd, limits, clock, QuietListener())

    cold = opened()
    await connect(cold).store(chain(*range(COUNT)))
    await cold.drain()
    cache = opened()
    env.read_count = 0
    yield cache
    env.gate.set()
    await cache.drain()
    cache.check_integrity()


def measured(cache: Cache, clock: Any, bytes_per_second: float) -> None:
    clock.advance(1)
    cache._parts.promoter.read_rate.landed(int(bytes_per_second), clock.now - 1, clock.now)


async def acquire(cache: Cache, client: Any, chain: Any, recompute: float | None) -> Any:
    events: list[AcquireEvent] = [
        event
        async for event in cache.acquire(
            client.session_id, "r", chain, 5.0, recompute_seconds=recompute
        )
    ]
    return events[-1]


async def test_a_slow_disk_is_not_read_where_computing_is_faster(
    warm: Cache, env: GatedEnv, clock: Any, connect: Any, chain: Any
) -> None:
    client = connect(warm)
    measured(warm, clock, 10_000)  # 0.4 s a block
    end = await acquire(warm, client, chain(*range(COUNT)), 0.01)
    assert (end.ready_count, end.miss_reason) == (0, MissReason.RECOMPUTE_FASTER)
    assert env.read_count == 0
    assert warm.stats().counters["misses_recompute_faster"] == 1
    assert warm.stats().lease_count == 0


async def test_blocks_in_memory_are_served_before_the_cut(
    warm: Cache, env: GatedEnv, clock: Any, connect: Any, chain: Any
) -> None:
    client = connect(warm)
    assert (await client.acquire(chain(0, 1, 2))).ready_count == 3
    before = env.read_count
    measured(warm, clock, 10_000)
    end = await acquire(warm, client, chain(*range(COUNT)), 0.01)
    assert (end.ready_count, end.miss_reason) == (3, MissReason.RECOMPUTE_FASTER)
    assert env.read_count == before


@pytest.mark.parametrize("recompute", [None, 10.0])
async def test_without_a_cost_or_with_a_high_one_all_is_loaded(
    warm: Cache, clock: Any, connect: Any, chain: Any, recompute: float | None
) -> None:
    measured(warm, clock, 10_000)
    end = await acquire(warm, connect(warm), chain(*range(COUNT)), recompute)
    assert (end.ready_count, end.miss_reason) == (COUNT, MissReason.NONE)


async def test_before_anything_was_measured_all_is_loaded(
    warm: Cache, connect: Any, chain: Any
) -> None:
    end = await acquire(warm, connect(warm), chain(*range(COUNT)), 1e-9)
    assert (end.ready_count, end.miss_reason) == (COUNT, MissReason.NONE)


async def test_an_old_rate_does_not_keep_from_the_disk_for_ever(
    warm: Cache, clock: Any, connect: Any, chain: Any
) -> None:
    client = connect(warm)
    measured(warm, clock, 10_000)
    blocks = chain(*range(COUNT))
    assert (await acquire(warm, client, blocks, 0.01)).ready_count == 0
    clock.advance(FRESH_SECONDS + 1)
    assert (await acquire(warm, client, blocks, 0.01)).ready_count == COUNT


async def test_a_disk_that_stops_under_way_ends_the_acquire_and_its_reads_go_on_for_others(
    warm: Cache, env: GatedEnv, clock: Any, connect: Any, chain: Any
) -> None:
    client = connect(warm)
    blocks = chain(*range(COUNT))
    env.gate.clear()
    waiting = asyncio.ensure_future(acquire(warm, client, blocks, 0.01))
    assert await asyncio.to_thread(env.asked.wait, 30)
    patient = asyncio.ensure_future(acquire(warm, client, blocks, None))
    assert not waiting.done()
    clock.advance(3)
    end = await asyncio.wait_for(waiting, 4)
    assert (end.ready_count, end.miss_reason) == (0, MissReason.RECOMPUTE_FASTER)
    # Whoever comes now need not wait to know.
    end = await acquire(warm, client, blocks, 0.01)
    assert (end.ready_count, end.miss_reason) == (0, MissReason.RECOMPUTE_FASTER)
    env.gate.set()
    assert (await patient).ready_count == COUNT
    assert warm.lookup(client.session_id, blocks).tiers == bytes([Tier.HOST] * COUNT)


def test_silence_while_something_is_read_counts_as_time() -> None:
    rate = ReadRate()
    assert rate.judged(0.0, None) is None
    rate.landed(1000, 0.0, 1.0)
    assert rate.judged(1.0, 1.0) == pytest.approx(1000)
    assert rate.judged(1.0 + FRESH_SECONDS, None) == pytest.approx(1000)
    assert rate.judged(1.1 + FRESH_SECONDS, None) is None
    told = [rate.judged(1.0 + t, 0.5) for t in (0.0, 0.5, 1.0, 4.0)]
    assert all(a > b for a, b in itertools.pairwise(told) if a and b)
    assert rate.silent_seconds(5.0, 0.5) == 4.0
    assert rate.silent_seconds(5.0, None) == 0.0


def test_reads_without_company_count_until_others_did() -> None:
    rate = ReadRate()
    rate.landed(10, 0.0, 1.0, busy=False)
    assert (rate.bytes_per_second, rate.judged(1.0, None)) == (10, None)
    rate.landed(1000, 1.0, 2.0)
    rate.landed(10, 2.0, 3.0, busy=False)
    assert (rate.bytes_per_second, rate.judged(3.0, None)) == (1000, 1000)
