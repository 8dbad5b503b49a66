"""What is written to the SSD, and what the core says of what is not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.ssd_admission import SsdAdmission
from cache_service.views import CacheLimits, CachePolicies
from kvtier.blocks import Tier
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

RECORD_BYTES = 2 * PAGE_BYTES
DAY = 86_400


@pytest.fixture
async def with_policies(
    arena: HostArena, limits: CacheLimits, clock: Any, tmp_path: Any
) -> AsyncIterator[Callable[..., Cache]]:
    caches: list[Cache] = []
    arenas: list[HostArena] = []

    def made(**policies: Any) -> Cache:
        ssd = SsdTier.open(
            tmp_path / "ssd", capacity_bytes=6 * 17 * PAGE_BYTES, segment_bytes=17 * PAGE_BYTES
        )
        chosen = CachePolicies(**policies)
        memory = HostArena(arena.capacity_bytes, extent_bytes=arena.extent_bytes)
        arenas.append(memory)
        caches.append(Cache(memory, ssd, limits, clock, QuietListener(), chosen))
        return caches[-1]

    yield made
    for cache in caches:
        await cache.drain()
        cache.check_integrity()
    for memory in arenas:
        memory.close()


async def settle(cache: Cache) -> int:
    """Returns, when nothing waits for the SSD, how many blocks are there."""
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)
    cache.check_integrity()
    return cache.stats().tiers[1].block_count


async def test_of_a_long_request_only_the_first_new_blocks_are_written(
    with_policies: Any, connect: Any, chain: Any
) -> None:
    cache = with_policies(ssd_admission="first_new", ssd_new_blocks_max=3)
    client = connect(cache)
    await client.store(chain(*range(8)))
    assert await settle(cache) == 3
    admission = cache.stats().admission
    assert admission is not None
    assert (admission.rule, admission.declined_count) == ("first_new", 5)


async def test_what_was_declined_is_written_once_it_is_used(
    with_policies: Any, connect: Any, chain: Any
) -> None:
    cache = with_policies(ssd_admission="first_new", ssd_new_blocks_max=3)
    client = connect(cache)
    blocks = chain(*range(8))
    await client.store(blocks)
    await settle(cache)
    client.release(await client.acquire(blocks[:6]))
    assert await settle(cache) == 6


async def test_what_was_declined_and_left_is_written_when_it_comes_again(
    with_policies: Any, connect: Any, chain: Any
) -> None:
    cache = with_policies(ssd_admission="first_new", ssd_new_blocks_max=3)
    client = connect(cache)
    blocks = chain(*range(5))
    await client.store(blocks)
    for i in range(16):
        await client.store(chain("other", i))
        await settle(cache)
    assert client.present(blocks) == 3
    before = await settle(cache)
    await client.store(blocks)
    assert await settle(cache) == before + 2


async def test_a_new_turn_of_a_conversation_has_its_own_first_blocks(
    with_policies: Any, connect: Any, chain: Any
) -> None:
    cache = with_policies(ssd_admission="first_new", ssd_new_blocks_max=3)
    client = connect(cache)
    await client.store(chain(*range(3)))
    await client.store(chain(*range(6)))
    assert await settle(cache) == 6


async def test_the_write_budget_is_kept_and_its_price_is_told(
    with_policies: Any, connect: Any, chain: Any, clock: Any
) -> None:
    """An hour's share holds four records; half of it is for blocks that were used again."""
    cache = with_policies(ssd_write_bytes_per_day=24 * 4 * RECORD_BYTES)
    client = connect(cache)
    for i in range(6):
        await client.store(chain("a", i))
        await settle(cache)
    assert cache.stats().tiers[1].block_count == 2
    admission = cache.stats().admission
    assert admission is not None
    assert admission.over_budget_count == 5
    assert admission.over_budget_bytes == 5 * RECORD_BYTES
    assert admission.lost_hit_count == 0
    for i in range(16):
        await client.store(chain("b", i))
        await settle(cache)
    client.release(await client.acquire(chain("a", 5)))
    admission = cache.stats().admission
    assert admission is not None
    assert admission.lost_hit_count == 1
    clock.now += DAY / 24
    assert cache.stats().admission.allowed_bytes == 4 * RECORD_BYTES


@pytest.mark.parametrize("write_when", ["committed", "leaving"])
async def test_every_block_of_a_chain_that_is_over_the_budget_counts(
    with_policies: Any, connect: Any, chain: Any, write_when: str
) -> None:
    """Two of eight are written; of the others, gone from memory, each is a hit lost."""
    cache = with_policies(ssd_write_when=write_when, ssd_write_bytes_per_day=24 * 4 * RECORD_BYTES)
    client = connect(cache)
    blocks = chain(*range(8))
    await client.store(blocks)
    await settle(cache)
    for i in range(16):
        await client.store(chain("other", i))
        await settle(cache)
    assert client.present(blocks) == 2
    assert cache.stats().admission.over_budget_count >= 6
    await client.acquire(blocks)
    assert cache.stats().admission.lost_hit_count == 6


async def test_a_long_chain_over_the_budget_is_walked_once(
    with_policies: Any, connect: Any, chain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = with_policies(ssd_write_bytes_per_day=24)
    client = connect(cache)
    asked: list[int] = []
    spend = SsdAdmission.spend

    def counted(admission: SsdAdmission, row: int, record_bytes: int) -> bool:
        asked.append(row)
        return spend(admission, row, record_bytes)

    monkeypatch.setattr(SsdAdmission, "spend", counted)
    await client.store(chain(*range(8)))
    await settle(cache)
    assert cache.stats().admission.over_budget_count == 8
    assert len(asked) == 1


async def test_what_recycling_writes_again_is_taken_from_the_budget(
    with_policies: Any, connect: Any, chain: Any
) -> None:
    cache = with_policies(ssd_write_bytes_per_day=24 * 400 * RECORD_BYTES)
    client = connect(cache)
    written = relogged = 0
    while not relogged:
        await client.store(chain("a", written))
        client.release(await client.acquire(chain("a", 0)))
        await settle(cache)
        counters = cache.stats().counters
        written, relogged = counters["blocks_written"], counters.get("blocks_relogged", 0)
    spent = (written + relogged) * RECORD_BYTES
    assert cache.stats().admission.allowed_bytes == 400 * RECORD_BYTES - spent


async def test_a_start_goes_on_with_the_budget_of_the_last(
    with_policies: Any, connect: Any, chain: Any
) -> None:
    """Nothing is filled up by starting again; the machine's clock earns a byte or two meanwhile."""
    daily = 24 * 4 * RECORD_BYTES
    cache = with_policies(ssd_write_bytes_per_day=daily)
    await connect(cache).store(chain(*range(2)))
    await settle(cache)
    assert cache.stats().admission.allowed_bytes == 2 * RECORD_BYTES
    await cache.drain()
    again = with_policies(ssd_write_bytes_per_day=daily)
    assert again.stats().admission.allowed_bytes < 3 * RECORD_BYTES
    await connect(again).store(chain("b", *range(2)))
    await settle(again)
    assert again.stats().tiers[1].block_count == 2
    assert again.stats().admission.over_budget_count == 3


async def test_half_of_the_budget_is_kept_for_what_was_used_again(
    with_policies: Any, connect: Any, chain: Any
) -> None:
    cache = with_policies(ssd_write_bytes_per_day=24 * 4 * RECORD_BYTES)
    client = connect(cache)
    for i in range(4):
        await client.store(chain(i))
        await settle(cache)
    assert cache.stats().tiers[1].block_count == 2
    client.release(await client.acquire(chain(3)))
    assert await settle(cache) == 3
    assert cache.lookup(client.session_id, chain(3)).tiers == bytes([Tier.HOST])


async def test_how_memory_is_shared_out_adds_up(
    with_policies: Any, connect: Any, chain: Any
) -> None:
    cache = with_policies()
    client = connect(cache)
    await client.store(chain(*range(5)))
    stats = cache.stats()
    (slabs,) = stats.slab_classes
    assert (slabs.slab_bytes, slabs.extent_count) == (PAGE_BYTES, 2)
    assert (slabs.used_count, slabs.free_count) == (5, 3)
    whole = (slabs.extent_count + stats.free_extent_count) * stats.extent_bytes
    assert whole == stats.tiers[0].capacity_bytes
    assert stats.index_bytes > 0
