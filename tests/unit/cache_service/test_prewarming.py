"""Prewarming in the core: one at a time, and what happens when the ground moves under it."""

import asyncio
from typing import Any

import pytest

import cache_service.prewarming
from cache_service.cache import Cache
from cache_service.errors import PrewarmRunningError
from cache_service.listener import QuietListener
from cache_service.prewarming import PrewarmView
from cache_service.purge_views import PurgeKind, PurgeTarget
from cache_service.views import CacheLimits
from kvtier.blocks import MissReason
from kvtier.keys import NamespaceId
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

SEGMENT_BYTES = 33 * PAGE_BYTES


@pytest.fixture
def opened(tmp_path: Any, limits: CacheLimits, clock: Any) -> Any:
    """`opened(slabs)`: the cache on the same directory again, with so much memory."""

    def opened(slabs: int) -> Cache:
        ssd = SsdTier.open(
            tmp_path / "ssd", capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
        )
        arena = HostArena(slabs * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        return Cache(arena, ssd, limits, clock, QuietListener())

    return opened


def namespace_of(client: Any) -> NamespaceId:
    parts = client.cache._parts
    found: NamespaceId = parts.sessions.find(client.session_id, parts.clock()).namespace_id
    return found


async def views(cache: Cache, client: Any, block_hash: Any) -> list[PrewarmView]:
    size = cache.arena.capacity_bytes
    return [view async for view in cache.prewarming.prewarm(namespace_of(client), block_hash, size)]


async def test_one_runs_at_a_time_and_a_caller_that_goes_away_ends_it(
    opened: Any, connect: Any, chain: Any
) -> None:
    cache = opened(16)
    client = connect(cache)
    await client.store(chain(1, 2))
    first = cache.prewarming.prewarm(namespace_of(client), chain(1, 2)[-1], 0)
    assert (await anext(first)).host_count == 2
    with pytest.raises(PrewarmRunningError):
        await views(cache, client, chain(1, 2)[-1])
    await first.aclose()
    assert (await views(cache, client, chain(1, 2)[-1]))[-1].done
    await cache.drain()


async def test_more_than_memory_holds_ends_with_what_fits(
    opened: Any, connect: Any, chain: Any
) -> None:
    cache = opened(16)
    client = connect(cache)
    long = chain(*range(12))
    await client.store(long)
    await cache.drain()
    cache = opened(8)
    client = connect(cache)
    last = (await views(cache, client, long[-1]))[-1]
    assert last.done
    assert (last.block_count, last.wanted_count, last.loaded_count) == (12, 8, 8)
    assert [cache._parts.index.tree.in_host(cache._parts.index.tree.find(b)) for b in long] == [
        True
    ] * 8 + [False] * 4
    cache.check_integrity()
    await cache.drain()


async def test_blocks_that_are_purged_meanwhile_end_it_with_that_reason(
    opened: Any, connect: Any, chain: Any
) -> None:
    cache = opened(16)
    client = connect(cache)
    long = chain(*range(6))
    await client.store(long)
    await cache.drain()
    cache = opened(16)
    client = connect(cache)
    running = cache.prewarming.prewarm(namespace_of(client), long[-1], 0)
    assert (await anext(running)).wanted_count == 4, "a quarter of memory"
    await cache.purging.start(PurgeTarget(PurgeKind.EVERYTHING), dry_run=False)
    last = [view async for view in running][-1]
    assert (last.done, last.reason, last.loaded_count) == (True, MissReason.PURGED, 0)
    cache.check_integrity()
    await cache.drain()


async def test_a_service_that_ends_ends_it(opened: Any, connect: Any, chain: Any) -> None:
    cache = opened(16)
    client = connect(cache)
    await client.store(chain(1, 2, 3))
    await cache.drain()
    cache = opened(16)
    client = connect(cache)
    running = cache.prewarming.prewarm(namespace_of(client), chain(1, 2, 3)[-1], 0)
    await anext(running)
    cache.prewarming.stop()
    assert [view async for view in running][-1].reason is MissReason.UNAVAILABLE
    await cache.drain()


async def test_a_disk_that_hangs_is_waited_for_so_long_and_no_longer(
    opened: Any, connect: Any, chain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(16)
    client = connect(cache)
    await client.store(chain(1, 2))
    await cache.drain()
    cache = opened(16)
    client = connect(cache)
    never: asyncio.Future[MissReason] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(cache._parts.promoter, "load", lambda rows, flow: never)
    monkeypatch.setattr(cache_service.prewarming, "LOAD_SECONDS_MAX", 0.01)
    last = (await views(cache, client, chain(1, 2)[-1]))[-1]
    assert (last.done, last.reason, last.loaded_count) == (True, MissReason.DEADLINE, 0)
    monkeypatch.undo()
    assert (await views(cache, client, chain(1, 2)[-1]))[-1].loaded_count == 2
    await cache.drain()
