"""The core over a real SSD tier: write-behind, promotion, recycling, restart."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits
from kvtier.blocks import MissReason, Tier
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

SEGMENT_BYTES = 17 * PAGE_BYTES
"""A header page and eight records of two pages."""


@pytest.fixture
def open_ssd(tmp_path: Any) -> Callable[..., SsdTier]:
    def opened(segments: int = 6) -> SsdTier:
        return SsdTier.open(
            tmp_path / "ssd", capacity_bytes=segments * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
        )

    return opened


@pytest.fixture
async def cold(arena: HostArena, limits: CacheLimits, clock: Any, open_ssd: Any) -> Any:
    """A cache with 16 host slabs and 48 records on the SSD."""
    cache = Cache(arena, open_ssd(), limits, clock, QuietListener())
    yield cache
    await cache.drain()
    cache.check_integrity()


async def settle(cache: Cache) -> None:
    """Returns when nothing waits for the SSD."""
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)
        cache.check_integrity()


async def restarted(cache: Cache, limits: CacheLimits, clock: Any, open_ssd: Any) -> Cache:
    await cache.drain()
    arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    return Cache(arena, open_ssd(), limits, clock, QuietListener())


async def test_committed_blocks_reach_the_ssd_without_anyone_waiting(
    cold: Any, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2, 3))
    assert cold.stats().pending_write_count == 3
    await settle(cold)
    host, ssd = cold.stats().tiers
    assert (host.block_count, ssd.block_count) == (3, 3)
    assert ssd.tier is Tier.SSD
    assert ssd.payload_bytes == 3 * 4000


async def test_a_block_evicted_from_memory_comes_back_from_the_ssd_byte_equal(
    cold: Any, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    blocks = chain(1, 2, 3, 4)
    await client.store(blocks)
    await settle(cold)
    for i in range(16):
        assert await client.store(chain("other", i)) >= 1
        await settle(cold)
    found = cold.lookup(client.session_id, blocks)
    assert found.present_count == 4
    assert Tier.SSD in found.tiers
    acquired = await client.acquire(blocks)
    assert acquired.match.tiers == found.tiers
    assert acquired.ready_count == 4
    client.check_payloads(blocks, acquired)
    client.release(acquired)
    assert cold.lookup(client.session_id, blocks).tiers == bytes([Tier.HOST] * 4)


async def test_memory_blocks_are_ready_before_ssd_blocks_are_read(
    cold: Any, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    blocks = chain(1, 2, 3, 4)
    await client.store(blocks)
    await settle(cold)
    held = await client.acquire(blocks[:2])
    for i in range(14):
        await client.store(chain("other", i))
        await settle(cold)
    acquired = await client.acquire(blocks)
    assert acquired.match.tiers == bytes([Tier.HOST] * 2 + [Tier.SSD] * 2)
    assert acquired.ready[0].first_index == 0
    assert len(acquired.ready[0].slabs) == 2
    client.check_payloads(blocks, acquired)
    client.release(held)


async def test_a_fault_while_reading_is_a_miss_that_leaks_nothing(
    cold: Any, connect: Any, chain: Any, monkeypatch: Any, clock: Any, limits: Any
) -> None:
    client = connect(cold)
    blocks = chain(1, 2, 3, 4)
    await client.store(blocks)
    await settle(cold)
    for i in range(16):
        await client.store(chain("other", i))
        await settle(cold)

    async def broken(self: Any, reads: Any, landed: Any, flow: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(SsdTier, "read_many", broken)
        acquired = await client.acquire(blocks)
    assert acquired.end.miss_reason is MissReason.UNAVAILABLE
    client.release(acquired)
    cold.check_integrity()
    clock.now += limits.ssd_retry_seconds  # so many failures at once: the SSD counted as absent
    again = await client.acquire(blocks)
    assert again.ready_count == 4
    client.check_payloads(blocks, again)


async def test_concurrent_acquires_of_an_ssd_block_share_one_read(
    cold: Any, connect: Any, chain: Any, limits: Any, clock: Any, open_ssd: Any
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2))
    warm = await restarted(cold, limits, clock, open_ssd)
    client = connect(warm)
    acquired = await asyncio.gather(*(client.acquire(chain(1, 2)) for _ in range(4)))
    assert [each.ready_count for each in acquired] == [2] * 4
    assert len({each.ready[0].slabs[0] for each in acquired}) == 1
    assert warm.stats().counters["blocks_promoted"] == 2
    await warm.drain()
    warm.check_integrity()


async def test_a_restart_keeps_what_was_written(
    cold: Any, connect: Any, chain: Any, limits: Any, clock: Any, open_ssd: Any
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2, 3))
    await client.store(chain(1, 2, "fork"))
    warm = await restarted(cold, limits, clock, open_ssd)
    warm.check_integrity()
    assert warm.instance_id != cold.instance_id
    recovery = warm.stats().recovery
    assert recovery is not None
    assert recovery.kept_count == 4
    client = connect(warm)
    for blocks in (chain(1, 2, 3), chain(1, 2, "fork")):
        acquired = await client.acquire(blocks)
        assert acquired.ready_count == 3
        client.check_payloads(blocks, acquired)
    await warm.drain()
    warm.check_integrity()


async def test_no_time_to_load_cuts_the_prefix_after_the_memory_blocks(
    cold: Any, connect: Any, chain: Any, limits: Any, clock: Any, open_ssd: Any
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2, 3))
    warm = await restarted(cold, limits, clock, open_ssd)
    client = connect(warm)
    held = await client.acquire(chain(1))
    acquired = await client.acquire(chain(1, 2, 3), timeout=0)
    assert acquired.match.matched_count == 3
    assert acquired.ready_count == 1
    assert acquired.end.miss_reason is MissReason.DEADLINE
    client.release(held)
    client.release(acquired)
    await warm.drain()
    warm.check_integrity()


async def test_a_prefix_larger_than_free_memory_is_cut_as_arena_full(
    connect: Any, chain: Any, limits: Any, clock: Any, open_ssd: Any
) -> None:
    large = HostArena(32 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    cold = Cache(large, open_ssd(), limits, clock, QuietListener())
    assert await connect(cold).store(chain(*range(24))) == 24
    warm = await restarted(cold, limits, clock, open_ssd)
    client = connect(warm)
    long = chain(*range(24))
    acquired = await client.acquire(long)
    assert acquired.match.matched_count == 24
    assert acquired.ready_count == 16
    assert acquired.end.miss_reason is MissReason.ARENA_FULL
    client.check_payloads(long, acquired)
    client.release(acquired)
    await warm.drain()
    warm.check_integrity()


async def test_a_full_ssd_recycles_and_never_strands_a_block(
    cold: Any, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    chains = [chain("c", i, "x", "y", "z") for i in range(40)]
    for blocks in chains:
        await client.store(blocks)
        await settle(cold)
        cold.check_integrity()
    stats = cold.stats()
    assert stats.counters["segments_recycled"] >= 5
    assert stats.tiers[1].used_bytes <= stats.tiers[1].capacity_bytes
    assert stats.tiers[1].evicted_count > 0
    acquired = await client.acquire(chains[-1])
    assert acquired.ready_count == 5
    client.check_payloads(chains[-1], acquired)
    client.release(acquired)
    for blocks in chains:
        acquired = await client.acquire(blocks)
        client.check_payloads(blocks, acquired)
        if acquired.match.lease_id:
            client.release(acquired)


async def test_blocks_that_are_hit_survive_recycling_that_drops_the_rest(
    cold: Any, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    hot = chain("hot", 1, 2)
    await client.store(hot)
    await settle(cold)
    for i in range(60):
        await client.store(chain("cold", i, "tail"))
        await settle(cold)
        acquired = await client.acquire(hot)
        assert acquired.ready_count == 3, f"lost after {i} chains"
        client.check_payloads(hot, acquired)
        client.release(acquired)
    assert cold.stats().counters["blocks_relogged"] > 0


async def test_a_leased_ssd_block_survives_recycling(
    cold: Any, connect: Any, chain: Any, limits: Any, clock: Any, open_ssd: Any
) -> None:
    client = connect(cold)
    kept = chain("kept", 1)
    await client.store(kept)
    warm = await restarted(cold, limits, clock, open_ssd)
    client = connect(warm)
    events = warm.acquire(client.session_id, "r", kept, None)
    match = await anext(events)
    assert match.tiers == bytes([Tier.SSD] * 2)
    for i in range(60):
        await client.store(chain("cold", i, "tail"))
        await settle(warm)
    assert warm.stats().counters["segments_recycled"] > 0
    rest = [event async for event in events]
    assert rest[-1].ready_count == 2
    await warm.drain()
    warm.check_integrity()


async def test_a_burst_larger_than_the_share_of_waiting_writes_is_written_all_the_same(
    cold: Any, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    await client.store(chain(*range(16)))
    assert cold.stats().pending_write_count == 16
    await settle(cold)
    assert cold.stats().tiers[1].block_count == 16


async def test_a_block_that_is_written_later_is_remembered_once_however_often_it_is_hit(
    cold: Any, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    blocks = chain(*range(8))
    await client.store(blocks)
    waiting = cold.stats().pending_write_count
    assert waiting > 4, "more than the share that may wait held in memory"
    for _ in range(4):
        client.release(await client.acquire(blocks))
    assert cold.stats().pending_write_count == waiting
    await settle(cold)
    assert cold.stats().tiers[1].block_count == 8


async def test_unwritten_blocks_are_not_evicted_while_the_ssd_takes_them(
    cold: Any, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2, 3, 4))
    assert cold.stats().pending_write_count == 4
    for i in range(30):
        await client.store(chain("other", i))
    await settle(cold)
    assert client.present(chain(1, 2, 3, 4)) == 4


async def test_draining_writes_what_waits_and_further_reads_from_the_ssd_miss(
    cold: Any, connect: Any, chain: Any, clock: Any, limits: Any, open_ssd: Any
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2))
    warm = await restarted(cold, limits, clock, open_ssd)
    client = connect(warm)
    await warm.drain()
    found = warm.lookup(client.session_id, chain(1, 2))
    assert found.present_count == 0
    assert found.miss_reason is MissReason.UNAVAILABLE
