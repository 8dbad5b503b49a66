"""Blocks that are said not to be wanted again: they push nobody out, leave first, unwritten."""

import asyncio
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.hints import Hints
from cache_service.listener import QuietListener
from cache_service.views import CachePolicies, Transport
from kvtier.blocks import MissReason, Tier
from kvtier.keys import NamespaceId
from storage.policy.choice import POLICIES
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

ONE_OFF = Hints(one_off=True)
SEGMENT_BYTES = 17 * PAGE_BYTES


async def store(client: Any, blocks: Any, hints: Hints = ONE_OFF) -> Any:
    """Reserve, write, commit; the reservation's view."""
    view = await client.cache.reserve(client.session_id, "", blocks, hints)
    client.cache.check_integrity()
    if view.reservation_id:
        await client.commit(view, client.write(blocks, view))
    return view


def standings(cache: Cache, blocks: Any) -> list[Any]:
    """What a use would change."""
    index, tree = cache._parts.index, cache._parts.index.tree
    rows = [tree.find(block) for block in blocks]
    uses = tree.columns.use_count
    return [index.host_leaving(16), [(index.host_standing(row), uses[row]) for row in rows]]


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_a_one_off_takes_what_is_free_and_nobody_elses_place(
    arena: Any, limits: Any, clock: Any, connect: Any, chain: Any, policy: str
) -> None:
    cache = Cache(arena, None, limits, clock, QuietListener(), CachePolicies(host_eviction=policy))
    client = connect(cache)
    others = [chain(name, 1, 2, 3, 4) for name in "ab"]
    for each in others:
        await client.store(each)
    document = chain(*range(12))
    view = await store(client, document)
    assert (len(view.missing), view.refused_count) == (6, 6)
    assert view.refused_reason is MissReason.ARENA_FULL
    assert client.present(document) == 6
    # Another one finds no room but that of the first one's leaves.
    await store(client, chain("next", 1, 2))
    assert client.present(chain("next", 1, 2)) == 3
    assert client.present(document) == 3
    assert [client.present(each) for each in others] == [5, 5]


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_one_offs_leave_before_all_others(
    arena: Any, limits: Any, clock: Any, connect: Any, chain: Any, policy: str
) -> None:
    cache = Cache(arena, None, limits, clock, QuietListener(), CachePolicies(host_eviction=policy))
    client = connect(cache)
    old = [chain(name) for name in range(12)]
    for each in old:
        await client.store(each)
    document = chain("d", 1, 2, 3)
    await store(client, document)
    index = cache._parts.index
    assert [index.tree.block_hash(r) for r in index.host_leaving(2)] == [document[3], old[0][0]]
    for taken in range(4):
        await client.store(chain(f"new {taken}"))
        cache.check_integrity()
    assert client.present(document) == 0
    assert [client.present(each) for each in old].count(1) == 12
    assert await client.store(chain("one more")) == 1
    assert [client.present(each) for each in old].count(1) == 11


async def test_reading_as_a_one_off_leaves_no_trace(cache: Any, connect: Any, chain: Any) -> None:
    client = connect(cache)
    blocks = chain(1, 2, 3)
    await client.store(blocks)
    await client.store(chain("other"))
    before = standings(cache, blocks)
    for events in (
        cache.acquire_resident(client.session_id, "r", blocks, ONE_OFF),
        [e async for e in cache.acquire(client.session_id, "r", blocks, None, ONE_OFF)],
    ):
        assert events[-1].ready_count == 3
        cache.release(client.session_id, events[0].lease_id, [])
    await store(client, blocks)
    assert standings(cache, blocks) == before
    client.release(await client.acquire(blocks))
    assert standings(cache, blocks) != before


async def test_a_one_off_that_others_want_is_a_block_like_others(
    cache: Any, connect: Any, chain: Any
) -> None:
    client = connect(cache)
    read, offered, left = chain("read", 1), chain("offered", 1), chain("left", 1)
    for each in (read, offered, left):
        await store(client, each)
    client.release(await client.acquire(read))
    await client.store(offered)
    assert len(cache._parts.index.one_offs) == 2
    for number in range(12):
        await client.store(chain(f"new {number}"))
    assert [client.present(each) for each in (read, offered, left)] == [2, 2, 0]


async def test_what_is_stored_for_two_is_no_one_off(cache: Any, connect: Any, chain: Any) -> None:
    client = connect(cache)
    blocks = chain(1, 2, 3)
    mine = await cache.reserve(client.session_id, "", blocks[:2], ONE_OFF)
    theirs = await cache.reserve(client.session_id, "", blocks)
    assert theirs.missing == (2,)
    assert await client.commit(mine, client.write(blocks, mine)) == 2
    assert await client.commit(theirs, client.write(blocks, theirs)) == 1
    assert len(cache._parts.index.one_offs) == 0


async def test_a_one_off_that_others_offer_while_it_is_stored_is_none(
    cache: Any, connect: Any, chain: Any
) -> None:
    client = connect(cache)
    blocks = chain(1, 2)
    mine = await cache.reserve(client.session_id, "", blocks, ONE_OFF)
    assert (await cache.reserve(client.session_id, "", blocks)).missing == ()
    assert await client.commit(mine, client.write(blocks, mine)) == 2
    assert len(cache._parts.index.one_offs) == 0


async def test_blocks_that_a_one_off_stored_in_anothers_stead_are_lifted_by_what_continues_them(
    cache: Any, connect: Any, chain: Any
) -> None:
    client = connect(cache)
    blocks = chain(1, 2, 3)
    given_up = await cache.reserve(client.session_id, "", blocks[:2])
    theirs = await cache.reserve(client.session_id, "", blocks)
    cache.abort(client.session_id, given_up.reservation_id)
    await store(client, blocks[:2])
    assert len(cache._parts.index.one_offs) == 2
    assert await client.commit(theirs, client.write(blocks, theirs)) == 1
    assert len(cache._parts.index.one_offs) == 0


async def test_slabs_of_another_size_are_free_for_a_one_off_in_bounded_steps(
    cache: Any, connect: Any, chain: Any
) -> None:
    client = connect(cache)
    document = chain(*range(16))
    await store(client, document)
    wide = cache.open_session(
        NamespaceId(b"w" * 32), 2 * PAGE_BYTES, 64, "wide", Transport.STREAM, "wide"
    )
    view = await cache.reserve(wide.session_id, "", chain("w", 1), ONE_OFF)
    cache.check_integrity()
    assert len(view.missing) + view.refused_count == 2
    assert client.present(document) >= 16 - 2 * 2


@pytest.mark.parametrize("write_when", ["committed", "leaving"])
async def test_one_offs_never_reach_the_ssd_and_lifted_ones_do(
    arena: Any, limits: Any, clock: Any, connect: Any, chain: Any, tmp_path: Any, write_when: str
) -> None:
    ssd = SsdTier.open(tmp_path, capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES)
    policies = CachePolicies(ssd_write_when=write_when)
    cache = Cache(arena, ssd, limits, clock, QuietListener(), policies)
    client = connect(cache)
    document, wanted = chain("d", 1, 2), chain("w", 1, 2)
    await store(client, document)
    await store(client, wanted)
    await client.store([*wanted, *chain("w", 1, 2, 3)[3:]])
    for number in range(20):
        await client.store(chain("new", number))
        while cache.stats().pending_write_count:
            await asyncio.sleep(0.001)
    assert client.present(document) == 0
    assert client.present(wanted) == 3
    await cache.drain()
    tree = cache._parts.index.tree
    assert all(tree.on_ssd(tree.find(block)) for block in chain("w", 1, 2, 3))
    cache.check_integrity()
    on_disk = cache.stats().tiers[1]
    assert on_disk.tier is Tier.SSD
    assert on_disk.block_count == 4 + 1 + 20
