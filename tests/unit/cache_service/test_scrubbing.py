"""The scrubber of the service: what it does about rot, and what it says of itself."""

import asyncio
import logging
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.errors import NoSsdTierError, VerifyRunningError
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits, PassView
from kvtier.blocks import MissReason
from storage.host.arena import HostArena
from storage.ssd.format import record_bytes, segment_path
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, SegmentId
from tests.ssd.faulty_env import FaultyEnv

SEGMENT_BYTES = 17 * PAGE_BYTES
RECORD_BYTES = record_bytes(PAGE_BYTES - 96)


@pytest.fixture
def env() -> FaultyEnv:
    return FaultyEnv(refuse_direct=True)


@pytest.fixture
async def make(tmp_path: Any, clock: Any, env: FaultyEnv) -> Any:
    """A cache over an SSD tier; `make(budget)`."""
    made: list[tuple[Cache, HostArena]] = []

    def build(budget: int = 0) -> Cache:
        arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        ssd = SsdTier.open(
            tmp_path / "ssd",
            capacity_bytes=6 * SEGMENT_BYTES,
            segment_bytes=SEGMENT_BYTES,
            env=env,
        )
        limits = CacheLimits(scrub_bytes_per_second=budget)
        made.append((Cache(arena, ssd, limits, clock, QuietListener()), arena))
        return made[-1][0]

    yield build
    for cache, arena in made:
        await cache.drain()
        cache.check_integrity()
        arena.close()


async def stored(cache: Cache, client: Any, chain: list[Any]) -> None:
    await client.store(chain)
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)


def rot(tmp_path: Any, number: int) -> None:
    """Flips a bit in the payload of the number-th record."""
    offset = PAGE_BYTES + number * RECORD_BYTES + PAGE_BYTES + 11
    with segment_path(tmp_path / "ssd", SegmentId(0)).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


async def verified(cache: Cache) -> list[PassView]:
    return [view async for view in cache.verify(0)]


async def test_a_verify_of_healthy_blocks_says_so(make, connect, chain) -> None:
    cache = make()
    await stored(cache, connect(cache), chain(1, 2, 3))
    views = await verified(cache)
    assert (views[0].checked_count, views[0].total_count, views[0].done) == (0, 3, False)
    last = views[-1]
    assert last.done
    assert (last.checked_count, last.checked_bytes) == (3, 3 * RECORD_BYTES)
    assert (last.corrupt_count, last.unreadable_count, last.dropped_count) == (0, 0, 0)


async def test_rot_is_dropped_with_what_continues_it_and_forgotten_on_disk(
    make, connect, chain, tmp_path
) -> None:
    cache = make()
    client = connect(cache)
    blocks = chain(1, 2, 3, 4)
    await stored(cache, client, blocks)
    rot(tmp_path, 1)
    last = (await verified(cache))[-1]
    assert (last.corrupt_count, last.dropped_count, last.done) == (1, 3, True)
    assert cache.stats().tiers[1].block_count == 1
    assert client.present(blocks) == 4, "whole copies in host memory are still good"
    counters = cache.stats().counters
    assert (counters["scrub_found_corrupt"], counters["scrub_dropped"]) == (1, 3)
    await cache.drain()
    again = make()
    assert again.stats().recovery.kept_count == 1


async def test_a_block_that_cannot_be_read_is_a_suspect_first(make, connect, chain, env) -> None:
    cache = make()
    await stored(cache, connect(cache), chain(1, 2, 3))
    for outcome in ((1, 0), (1, 1)):
        env.fail("preadv", 5, nth=3)
        last = (await verified(cache))[-1]
        assert (last.unreadable_count, last.dropped_count) == outcome
    assert cache.stats().tiers[1].block_count == 2


async def test_one_verify_at_a_time(make, connect, chain) -> None:
    cache = make()
    await stored(cache, connect(cache), chain(1, 2))
    first = cache.verify(0)
    await anext(first)
    with pytest.raises(VerifyRunningError, match="wait for its end"):
        await anext(cache.verify(0))
    await first.aclose()
    assert (await verified(cache))[-1].done, "the place is free again"


async def test_without_an_ssd_there_is_nothing_to_verify(cache: Cache) -> None:
    with pytest.raises(NoSsdTierError, match="nothing on an SSD"):
        await anext(cache.verify(0))
    assert cache.stats().scrub is None


async def test_background_passes_find_rot_and_tell(make, connect, chain, tmp_path, caplog) -> None:
    cache = make(budget=1 << 30)
    await stored(cache, connect(cache), chain(1, 2, 3))
    rot(tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        cache.tick()
        async with asyncio.timeout(20):
            while not cache.stats().scrub.pass_count:
                await asyncio.sleep(0.001)
    scrub = cache.stats().scrub
    assert scrub.running is None
    assert (scrub.last.checked_count, scrub.last.corrupt_count) == (3, 1)
    assert any("does not match its checksum" in r.getMessage() for r in caplog.records)
    assert cache.stats().counters["scrub_passes"] == 1
    cache.tick()
    assert cache.stats().scrub.pass_count == 1, "it rests between passes"


async def test_without_a_budget_nothing_is_read(make, connect, chain) -> None:
    cache = make(budget=0)
    await stored(cache, connect(cache), chain(1))
    cache.tick()
    await asyncio.sleep(0.02)
    assert "blocks_scrubbed" not in cache.stats().counters
    assert cache.stats().scrub.budget_bytes_per_second == 0


async def test_a_drain_ends_a_pass_that_waits_for_its_budget(make, connect, chain) -> None:
    cache = make(budget=1)
    await stored(cache, connect(cache), chain(1, 2, 3))
    cache.tick()
    async with asyncio.timeout(20):
        while cache.stats().scrub.running is None:
            await asyncio.sleep(0.001)
        await cache.drain()


async def test_a_drain_ends_a_verify_without_a_word_that_it_is_done(make, connect, chain) -> None:
    cache = make()
    await stored(cache, connect(cache), chain(1, 2, 3))
    views = cache.verify(0)
    await anext(views)
    await cache.drain()
    rest = [view async for view in views]
    assert not any(view.done for view in rest)


async def test_blocks_that_are_read_recycled_and_scrubbed_at_once_stay_right(
    make, connect, chain
) -> None:
    """More chains than fit, while a verify walks again and again: no block is called corrupt."""
    cache = make()
    client = connect(cache)
    ended = asyncio.Event()

    async def walk() -> list[PassView]:
        found: list[PassView] = []
        while not ended.is_set():
            found += await verified(cache)
            await asyncio.sleep(0)  # an empty tier is verified without ever waiting
        return found

    walking = asyncio.create_task(walk())
    for number in range(30):
        blocks = chain(f"n{number}", 1, 2)
        await stored(cache, client, blocks)
        client.check_payloads(blocks, got := await client.acquire(blocks))
        client.release(got)
    ended.set()
    views = await walking
    assert views[-1].done
    assert {(v.corrupt_count, v.unreadable_count, v.dropped_count) for v in views} == {(0, 0, 0)}
    assert MissReason.CORRUPT not in {got.end.miss_reason}
