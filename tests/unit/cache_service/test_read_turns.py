"""Reads of the SSD take turns: what an acquire needs first goes before what others need later."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits
from storage.env import Buffer, RealEnv
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

LONG = 12


class CountedEnv(RealEnv):
    """A disk that does as many reads as it is allowed."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(1000)
        self.asked = threading.Event()
        self.read_count = 0

    def hold(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.read_count = 0

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.asked.set()
        assert self.allowed.acquire(timeout=30)
        self.read_count += 1
        return super().preadv(fd, buffers, offset)


@pytest.fixture
def env() -> CountedEnv:
    return CountedEnv()


@pytest.fixture
async def warm(
    env: CountedEnv, limits: CacheLimits, clock: Any, connect: Any, chain: Any, tmp_path: Any
) -> AsyncIterator[Cache]:
    """Just started, one reader thread; on the SSD a long chain, and single blocks between its
    records, so that each needs a read of its own."""

    def opened() -> Cache:
        size = 65 * PAGE_BYTES
        ssd = SsdTier.open(
            tmp_path / "ssd",
            capacity_bytes=6 * size,
            segment_bytes=size,
            reader_threads=1,
            env=env,
        )
        arena = HostArena(64 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        return Cache(arena, ssd, limits, clock, QuietListener())

    cold = opened()
    client = connect(cold)
    for n in range(LONG):
        await client.store(chain(*range(n + 1)))
        await client.store(chain(f"one {n}"))
        while cold.stats().pending_write_count:
            await asyncio.sleep(0.001)
    await cold.drain()
    cache = opened()
    env.hold()
    yield cache
    env.allowed.release(1000)
    await cache.drain()
    cache.check_integrity()


async def test_one_block_passes_what_a_long_prefix_reads_ahead(
    warm: Cache, env: CountedEnv, connect: Any, chain: Any
) -> None:
    client = connect(warm)
    long = asyncio.ensure_future(client.acquire(chain(*range(LONG))))
    assert await asyncio.to_thread(env.asked.wait, 30)
    one = asyncio.ensure_future(client.acquire(chain("one 3")))
    await asyncio.sleep(0)
    env.allowed.release(2)
    acquired = await one
    assert acquired.ready_count == 1
    client.check_payloads(chain("one 3"), acquired)
    assert env.read_count == 2
    assert not long.done()
    env.allowed.release(LONG)
    acquired = await long
    client.check_payloads(chain(*range(LONG)), acquired)
    assert acquired.ready_count == LONG


async def test_a_block_that_another_needs_sooner_is_read_once_and_sooner(
    warm: Cache, env: CountedEnv, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(warm)
    blocks = chain(*range(LONG))
    long = asyncio.ensure_future(client.acquire(blocks))
    assert await asyncio.to_thread(env.asked.wait, 30)
    # Another session has the beginning in pages of its own and needs the last block now.
    tail = asyncio.ensure_future(client.acquire(blocks[-1:]))
    await asyncio.sleep(0)
    env.allowed.release(2)
    assert (await tail).ready_count == 1
    assert env.read_count == 2
    assert not long.done()
    env.allowed.release(LONG)
    acquired = await long
    client.check_payloads(blocks, acquired)
    assert acquired.ready_count == LONG
    assert env.read_count == LONG
    assert warm.stats().counters["blocks_promoted"] == LONG
