"""Blocks with an end: a miss from then on in every tier, renewed by use, through every restart."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.expiring import LEAVE_MAX, PASS_SECONDS, Expiring
from cache_service.hints import NO_HINTS, Hints
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits
from kvtier.blocks import MissReason, Tier
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

SEGMENT_BYTES = 17 * PAGE_BYTES
SHORT, LONG = Hints(ttl_seconds=300), Hints(ttl_seconds=3600)

Make = Callable[..., Cache]


@pytest.fixture
def make(limits: CacheLimits, clock: Any, tmp_path: Any) -> Make:
    """A cache whose wall clock is the test's clock too; `ssd`: over the same directory again."""

    def made(*, ssd: bool = False) -> Cache:
        arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        tier = None
        if ssd:
            tier = SsdTier.open(
                tmp_path, capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
            )
        return Cache(arena, tier, limits, clock, QuietListener(), wall=clock)

    return made


async def store(client: Any, blocks: Any, hints: Hints) -> None:
    view = await client.cache.reserve(client.session_id, "", blocks, hints)
    if view.reservation_id:
        await client.commit(view, client.write(blocks, view))
    client.cache.check_integrity()


async def use(client: Any, blocks: Any, hints: Hints) -> int:
    """How many blocks an acquire matched."""
    events = [e async for e in client.cache.acquire(client.session_id, "r", blocks, None, hints)]
    client.cache.release(client.session_id, events[0].lease_id, [])
    client.cache.check_integrity()
    count: int = events[0].matched_count
    return count


def found(client: Any, blocks: Any) -> tuple[int, MissReason]:
    """After the time that passed; the session lives on."""
    client.cache.renew(client.session_id, [])
    view = client.cache.lookup(client.session_id, blocks)
    return view.present_count, view.miss_reason


def pass_over(clock: Any, client: Any, seconds: float) -> None:
    """Time goes by while the session is kept alive; nothing is swept."""
    while seconds > 0:
        clock.advance(min(50.0, seconds))
        seconds -= 50.0
        client.cache.renew(client.session_id, [])


async def settle(cache: Cache) -> None:
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)


async def test_a_block_is_a_miss_from_its_end_on(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    blocks = chain(1, 2)
    await store(client, blocks, SHORT)
    pass_over(clock, client, 299)
    assert found(client, blocks) == (2, MissReason.NONE)
    pass_over(clock, client, 1)
    assert found(client, blocks) == (0, MissReason.EXPIRED)
    assert await use(client, blocks, NO_HINTS) == 0
    client.cache.tick()
    assert client.cache.stats().tiers[0].block_count == 0
    assert client.cache.stats().counters["blocks_expired"] == 2
    assert found(client, blocks) == (0, MissReason.EXPIRED)
    client.cache.check_integrity()


async def test_a_hit_in_the_class_renews_and_one_without_a_class_does_not(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    renewed, read, one_off = chain("a", 1), chain("b", 1), chain("c", 1)
    for each in (renewed, read, one_off):
        await store(client, each, SHORT)
    pass_over(clock, client, 200)
    assert await use(client, renewed, SHORT) == 2
    assert await use(client, read, NO_HINTS) == 2
    assert await use(client, one_off, Hints(True, 300)) == 2
    pass_over(clock, client, 150)
    assert [found(client, each)[0] for each in (renewed, read, one_off)] == [2, 0, 0]
    pass_over(clock, client, 150)
    assert found(client, renewed) == (0, MissReason.EXPIRED)


async def test_the_latest_end_of_any_store_or_use_holds(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    long, ever, again = chain("long", 1), chain("ever", 1), chain("again", 1)
    for each in (long, ever, again):
        await store(client, each, LONG)
        await store(client, each, SHORT)
    await store(client, ever, NO_HINTS)
    pass_over(clock, client, 3599)
    assert [found(client, each)[0] for each in (long, ever, again)] == [2, 2, 2]
    pass_over(clock, client, 1)
    assert [found(client, each)[0] for each in (long, ever, again)] == [0, 2, 0]
    # Nobody has taken them out yet: who stores them again has them again.
    await store(client, again, SHORT)
    assert found(client, again) == (2, MissReason.NONE)
    assert len(client.cache._parts.index.expiries) == 4


async def test_what_is_before_a_block_lives_as_long_as_it(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    short, long = chain("p", 1, "s"), chain("p", 1, "l", "m")
    await store(client, short, SHORT)
    await store(client, long, LONG)
    # From its middle on: what is before was used as well.
    pass_over(clock, client, 290)
    assert await use(client, short[2:], SHORT) == 1
    pass_over(clock, client, 300)
    for _ in range(3):
        client.cache.tick()
        client.cache.check_integrity()
    assert found(client, short) == (2, MissReason.EXPIRED)
    assert found(client, long) == (4, MissReason.NONE)
    pass_over(clock, client, 3600)
    client.cache.tick()
    assert client.cache.stats().tiers[0].block_count == 0


async def test_what_is_before_a_block_that_took_long_to_store_lives_as_long_too(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    blocks = chain("p", 1)
    await store(client, blocks[:1], SHORT)
    view = await client.cache.reserve(client.session_id, "", blocks, SHORT)
    clock.advance(5)
    await client.commit(view, client.write(blocks, view))
    pass_over(clock, client, 299)
    assert found(client, blocks) == (2, MissReason.NONE)


async def test_a_one_off_ends_with_what_it_continues(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    blocks = chain("p", 1)
    await store(client, blocks[:1], SHORT)
    await store(client, blocks, Hints(one_off=True))
    pass_over(clock, client, 299)
    assert found(client, blocks)[0] == 2
    pass_over(clock, client, 1)
    assert found(client, blocks) == (0, MissReason.EXPIRED)


async def test_who_waits_for_anothers_store_has_his_own_end(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    blocks = chain(1, 2)
    mine = await client.cache.reserve(client.session_id, "", blocks, SHORT)
    assert (await client.cache.reserve(client.session_id, "", blocks, LONG)).missing == ()
    await client.commit(mine, client.write(blocks, mine))
    pass_over(clock, client, 3599)
    assert found(client, blocks)[0] == 2


async def test_blocks_that_are_read_stay_until_they_are_given_back(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    blocks = chain(1, 2)
    await store(client, blocks, Hints(ttl_seconds=5))
    held = await client.acquire(blocks)
    clock.advance(6)
    client.cache.tick()
    client.check_payloads(blocks, held)
    assert client.cache.stats().tiers[0].block_count == 2
    client.release(held)
    clock.advance(PASS_SECONDS)
    client.cache.tick()
    assert client.cache.stats().tiers[0].block_count == 0


async def test_ends_survive_a_restart_with_their_renewals(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    cache = make(ssd=True)
    client = connect(cache)
    short, long, ever = chain("s", 1), chain("l", 1), chain("e", 1)
    for each in (short, long, ever):
        await store(client, each, SHORT)
    await settle(cache)
    assert await use(client, long, LONG) == 2
    await store(client, ever, NO_HINTS)
    await cache.drain()
    cache = make(ssd=True)
    client = connect(cache)
    assert len(cache._parts.index.expiries) == 4
    assert [found(client, each)[0] for each in (short, long, ever)] == [2, 2, 2]
    pass_over(clock, client, 300)
    assert [found(client, each)[0] for each in (short, long, ever)] == [0, 2, 2]
    assert found(client, short)[1] is MissReason.EXPIRED
    cache.tick()
    assert cache.stats().tiers[1].block_count == 4
    # What expired is gone for the disk too; what is over at the start never comes back.
    await cache.drain()
    clock.advance(3600)
    cache = make(ssd=True)
    client = connect(cache)
    assert cache.stats().tiers[1].block_count == 4
    assert [found(client, each)[0] for each in (short, long, ever)] == [0, 0, 2]
    assert found(client, short)[1] is MissReason.NEVER_STORED
    assert found(client, long)[1] is MissReason.EXPIRED
    cache.tick()
    assert cache.stats().tiers[1].block_count == 2
    cache.check_integrity()
    await cache.drain()


async def test_a_renewal_is_written_down_within_a_pass(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    cache = make(ssd=True)
    client = connect(cache)
    blocks = chain(1, 2)
    await store(client, blocks, SHORT)
    await settle(cache)
    assert await use(client, blocks, LONG) == 2
    clock.advance(PASS_SECONDS)
    cache.tick()
    ssd = cache._parts.cold
    assert ssd is not None
    (side,) = (side for side in cache._sides if isinstance(side, Expiring))
    while side._saving is not None:
        await asyncio.sleep(0.001)
    await ssd.ssd.close()  # as a crash would leave it, after what was under way
    again = make(ssd=True)
    client = connect(again)
    pass_over(clock, client, 3590)
    assert found(client, blocks)[0] == 2
    await again.drain()


async def test_an_expired_block_is_not_loaded_from_the_ssd_and_leaves_it(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    cache = make(ssd=True)
    client = connect(cache)
    blocks = chain(1, 2)
    await store(client, blocks, SHORT)
    await settle(cache)
    await cache.drain()
    cache = make(ssd=True)
    client = connect(cache)
    assert cache.lookup(client.session_id, blocks).tiers == bytes([Tier.SSD] * 2)
    pass_over(clock, client, 300)
    assert await use(client, blocks, SHORT) == 0
    await cache.drain()


async def test_many_leave_in_bounded_steps(
    limits: CacheLimits, connect: Any, chain: Any, clock: Any
) -> None:
    count = LEAVE_MAX + 40
    arena = HostArena((count + 8) * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    cache = Cache(arena, None, limits, clock, QuietListener(), wall=clock)
    client = connect(cache)
    for start in range(0, count, 60):
        await store(client, chain(f"c{start}", *range(min(60, count - start) - 1)), SHORT)
    stored = cache.stats().tiers[0].block_count
    assert stored == count
    pass_over(clock, client, 300)
    cache.tick()
    assert cache.stats().tiers[0].block_count == stored - LEAVE_MAX
    cache.tick()
    assert cache.stats().tiers[0].block_count == 0


async def test_without_a_ttl_nothing_is_looked_at(
    make: Make, connect: Any, chain: Any, clock: Any
) -> None:
    client = connect(make())
    await store(client, chain(1, 2), NO_HINTS)
    assert len(client.cache._parts.index.expiries) == 0
    pass_over(clock, client, 10**7)
    client.cache.tick()
    assert found(client, chain(1, 2)) == (2, MissReason.NONE)
