"""Whoever asks for whole prefix units gets a match that ends where one does."""

import asyncio
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.hints import Hints
from cache_service.listener import QuietListener
from kvtier.blocks import MissReason
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

WHOLE = Hints(whole_units=True)
SEGMENT_BYTES = 17 * PAGE_BYTES


async def store(client: Any, blocks: Any, *ends: int, forks: bool = True) -> None:
    hints = Hints(unit_ends=ends, marks_forks=forks)
    view = await client.cache.reserve(client.session_id, "", blocks, hints)
    if view.reservation_id:
        await client.commit(view, client.write(blocks, view))
    client.cache.check_integrity()


async def match(client: Any, blocks: Any, hints: Hints = WHOLE) -> tuple[int, MissReason]:
    events = [e async for e in client.cache.acquire(client.session_id, "r", blocks, None, hints)]
    client.cache.release(client.session_id, events[0].lease_id, [])
    return events[0].matched_count, events[0].miss_reason


async def test_the_story_of_a_shared_prefix(cache: Any, connect: Any, chain: Any) -> None:
    client = connect(cache)
    ab, ac, ad = chain("a", "a2", "b"), chain("a", "a2", "c"), chain("a", "a2", "d")
    await store(client, ab, 2)
    assert await match(client, ac) == (0, MissReason.WITHIN_UNIT)
    assert await match(client, ac, Hints()) == (2, MissReason.NEVER_STORED)
    await store(client, ac, 2)
    assert await match(client, ad) == (2, MissReason.NEVER_STORED)
    assert await match(client, ab) == (3, MissReason.NONE)


async def test_a_fork_is_a_unit_only_where_that_is_asked_for(
    cache: Any, connect: Any, chain: Any
) -> None:
    client = connect(cache)
    await store(client, chain("a", "b"), 1, forks=False)
    await store(client, chain("a", "c"), 1, forks=False)
    assert await match(client, chain("a", "d")) == (0, MissReason.WITHIN_UNIT)


async def test_a_mark_comes_to_blocks_that_are_there_and_absurd_ones_are_passed_over(
    cache: Any, connect: Any, chain: Any
) -> None:
    client = connect(cache)
    blocks = chain(1, 2, 3)
    await store(client, blocks)
    assert await match(client, blocks) == (0, MissReason.WITHIN_UNIT)
    await store(client, blocks[:2], 1, -1, 7)
    assert await match(client, blocks) == (2, MissReason.WITHIN_UNIT)
    # From its middle on, as who has the beginning asks.
    assert await match(client, blocks[1:]) == (1, MissReason.WITHIN_UNIT)


async def test_what_is_left_of_a_unit_is_one(cache: Any, connect: Any, chain: Any) -> None:
    client = connect(cache)
    blocks = chain(*range(6))
    await store(client, blocks, 5)
    for number in range(13):
        await store(client, chain(f"other {number}"), 0)
    left = client.present(blocks)
    assert 0 < left < 6
    assert (await match(client, blocks))[0] == left


async def test_what_is_before_a_dropped_block_is_a_unit(
    cache: Any, connect: Any, chain: Any
) -> None:
    client = connect(cache)
    blocks = chain(*range(6))
    await store(client, blocks, 5)
    index = cache._parts.index
    index.drop(index.tree.find(blocks[5]), MissReason.CORRUPT)
    assert (await match(client, blocks[:5]))[0] == 5
    index.drop(index.tree.find(blocks[3]), MissReason.CORRUPT)
    assert (await match(client, blocks[:5]))[0] == 3


@pytest.fixture
def start(limits: Any, clock: Any, tmp_path: Any) -> Any:
    def start_one() -> Cache:
        arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        ssd = SsdTier.open(tmp_path, capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES)
        return Cache(arena, ssd, limits, clock, QuietListener())

    return start_one


async def written(cache: Cache) -> None:
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)


async def test_units_are_the_same_after_a_restart(start: Any, connect: Any, chain: Any) -> None:
    cache = start()
    client = connect(cache)
    await store(client, chain(1, 2, 3, 4, 5), 1, 4)
    await store(client, chain("p", 1, "b"), 2, forks=False)
    await store(client, chain("p", 1, "c"), 2, forks=False)
    for _ in range(2):  # the second time from the index alone
        await cache.drain()
        cache = start()
        client = connect(cache)
        assert await match(client, chain(1, 2, 3, 4)) == (2, MissReason.WITHIN_UNIT)
        assert (await match(client, chain(1, 2, 3, 4, 5, 6)))[0] == 5
        assert await match(client, chain("p", 1, "d")) == (0, MissReason.WITHIN_UNIT)
    await cache.drain()


async def test_a_mark_that_came_when_the_block_was_written_is_not_lost(
    start: Any, connect: Any, chain: Any, clock: Any
) -> None:
    """With the next tick, so that a crash does not take it; and where a crash is no more than that
    nothing is drained."""
    cache = start()
    client = connect(cache)
    await store(client, chain("p", 1, 2, "b"), 3)
    await written(cache)
    await store(client, chain("p", 1, "c"), 2)  # parts behind 1
    await store(client, chain("p"), 0)
    assert cache._parts.index.unit_ends.unsaved_count == 2
    cache.tick()
    await written(cache)
    assert cache._parts.index.unit_ends.unsaved_count == 0
    await cache._parts.cold.ssd.close()
    again = start()
    client = connect(again)
    assert (await match(client, chain("p", 1, "d")))[0] == 2
    assert (await match(client, chain("p", 3)))[0] == 1
    assert await match(client, chain("p", 1, 2)) == (2, MissReason.WITHIN_UNIT)
    await again.drain()


async def test_where_nothing_was_ever_marked_forks_and_ends_of_chains_are_units(
    start: Any, connect: Any, chain: Any
) -> None:
    cache = start()
    client = connect(cache)
    await store(client, chain("p", 1, "b"), forks=False)
    await store(client, chain("p", 1, "c"), forks=False)
    await cache.drain()
    cache = start()
    client = connect(cache)
    assert (await match(client, chain("p", 1, "d")))[0] == 2
    assert (await match(client, chain("p", 1, "b", 3)))[0] == 3
    assert await match(client, chain("p", 2)) == (0, MissReason.WITHIN_UNIT)
    await cache.drain()
