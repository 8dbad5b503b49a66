"""Purges of the core: what leaves, what is found meanwhile, what the receipt says."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.errors import PurgeRunningError, RequestUnknownError, SessionUnknownError
from cache_service.listener import QuietListener
from cache_service.purge_views import PurgeKind, PurgeTarget, PurgeView, SsdForgetting
from cache_service.views import CacheLimits
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, NamespaceId
from kvtier.serving import ShuttingDownError
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.cache_state import index_state

OTHER = NamespaceId(bytes(range(32)))
EVERYTHING = PurgeTarget(PurgeKind.EVERYTHING)
SEGMENT_BYTES = 17 * PAGE_BYTES


async def purged(cache: Cache, target: PurgeTarget, *, dry_run: bool = False) -> PurgeView:
    view = await cache.purging.start(target, dry_run=dry_run)
    cache.check_integrity()
    return view


def digest(hashes: list[BlockHash]) -> bytes:
    return hashlib.sha256(b"".join(sorted(hashes))).digest()


def prefix(client: Any, block_hash: BlockHash) -> PurgeTarget:
    return PurgeTarget(PurgeKind.PREFIX, namespace_of(client), block_hash)


def namespace_of(client: Any) -> NamespaceId:
    parts = client.cache._parts
    found: NamespaceId = parts.sessions.find(client.session_id, parts.clock()).namespace_id
    return found


async def test_a_prefix_leaves_with_all_that_continues_it_and_nothing_else(
    cache: Cache, client: Any, chain: Any
) -> None:
    left, right = chain("a", "b", "c"), chain("a", "b", "d")
    await client.store(left)
    await client.store(right)
    view = await purged(cache, prefix(client, left[1]))
    assert view.hashes_sha256 == digest([left[1], left[2], right[2]])
    assert (view.block_count, view.held_count) == (3, 0)
    assert view.ssd_forgetting is SsdForgetting.NONE
    (host,) = view.copies
    assert (host.tier, host.copy_count) == (Tier.HOST, 3)
    assert client.present(left) == 1
    found = cache.lookup(client.session_id, left)
    assert found.miss_reason is MissReason.PURGED
    assert await client.store(left) == 2


async def test_a_prefix_of_another_namespace_is_not_named(
    cache: Cache, client: Any, chain: Any
) -> None:
    await client.store(chain("a"))
    view = await purged(cache, PurgeTarget(PurgeKind.PREFIX, OTHER, chain("a")[0]))
    assert (view.block_count, view.hashes_sha256) == (0, hashlib.sha256(b"").digest())
    assert client.present(chain("a")) == 1


async def test_a_namespace_leaves_and_others_stay(cache: Cache, connect: Any, chain: Any) -> None:
    one, other = connect(cache), connect(cache, OTHER)
    await one.store(chain("a", "b"))
    await other.store(chain("x", "y"))
    view = await purged(cache, PurgeTarget(PurgeKind.NAMESPACE, OTHER))
    assert view.hashes_sha256 == digest(chain("x", "y"))
    assert (one.present(chain("a", "b")), other.present(chain("x", "y"))) == (2, 0)


async def test_a_session_leaves_with_what_others_continued_also_after_its_end(
    cache: Cache, connect: Any, chain: Any
) -> None:
    one, other = connect(cache), connect(cache)
    await one.store(chain("a", "b"))
    await other.store(chain("a", "b", "c"))
    await other.store(chain("z"))
    cache.close_session(one.session_id)
    view = await purged(cache, PurgeTarget(PurgeKind.SESSION, session_id=one.session_id))
    assert view.hashes_sha256 == digest(chain("a", "b", "c"))
    assert other.present(chain("z")) == 1
    with pytest.raises(SessionUnknownError):
        cache.purging.start(PurgeTarget(PurgeKind.SESSION, session_id="?"), dry_run=False)


async def test_a_request_leaves_with_what_it_stored_and_not_with_what_it_read(
    cache: Cache, client: Any, chain: Any
) -> None:
    await client.store(chain("a"))
    view = await client.reserve(chain("a", "b"), "r1/1")
    await client.commit(view, client.write(chain("a", "b"), view))
    view = await client.reserve(chain("q"), "r1/2")
    await client.commit(view, client.write(chain("q"), view))
    view = await client.reserve(chain("k"), "r12/1")
    await client.commit(view, client.write(chain("k"), view))
    receipt = await purged(cache, PurgeTarget(PurgeKind.REQUEST, request_id="r1"))
    assert receipt.hashes_sha256 == digest([chain("a", "b")[1], *chain("q")])
    assert client.present(chain("a")) == client.present(chain("k")) == 1
    with pytest.raises(RequestUnknownError):
        cache.purging.start(PurgeTarget(PurgeKind.REQUEST, request_id="r2"), dry_run=False)


async def test_a_request_that_only_read_has_nothing_to_leave(
    cache: Cache, client: Any, chain: Any
) -> None:
    await client.store(chain("a"))
    client.release(await client.acquire(chain("a")))
    view = await purged(cache, PurgeTarget(PurgeKind.REQUEST, request_id="r"))
    assert view.block_count == 0


async def test_a_dry_run_says_the_same_and_changes_nothing(
    cache: Cache, client: Any, chain: Any
) -> None:
    await client.store(chain("a", "b"))
    before = index_state(cache)
    dry = await purged(cache, EVERYTHING, dry_run=True)
    assert index_state(cache) == before
    real = await purged(cache, EVERYTHING)
    assert (dry.block_count, dry.hashes_sha256) == (2, real.hashes_sha256)
    assert dry.copies == real.copies


async def test_who_leased_a_block_reads_on_and_its_memory_is_free_afterwards(
    cache: Cache, client: Any, chain: Any
) -> None:
    await client.store(chain("a", "b"))
    acquired = await client.acquire(chain("a", "b"))
    view = await purged(cache, EVERYTHING)
    assert view.held_count == 2
    assert client.present(chain("a")) == 0
    client.check_payloads(chain("a", "b"), acquired)
    assert cache.arena.slab_count == 2
    await client.store(chain("a", "b"))
    client.check_payloads(chain("a", "b"), acquired)
    client.release(acquired)
    assert cache.arena.slab_count == 2


@pytest.fixture
def large() -> Iterator[HostArena]:
    arena = HostArena(4096 * PAGE_BYTES, extent_bytes=64 * PAGE_BYTES)
    yield arena
    arena.close()


async def test_others_run_between_slices_and_never_see_a_block_without_what_is_before_it(
    large: HostArena, limits: CacheLimits, clock: Any, connect: Any, chain: Any
) -> None:
    cache = Cache(large, None, replace(limits, purge_slice_blocks=16), clock, QuietListener())
    client = connect(cache)
    forks = [chain("a", *range(40), fork, *range(20)) for fork in range(20)]
    for each in forks:
        await client.store(each)
    total = len(cache._parts.index)
    purge, counts = cache.purging.start(EVERYTHING, dry_run=False), []
    while not purge.done():
        await asyncio.sleep(0)
        cache.check_integrity()
        counts.append(len(cache._parts.index))
    assert counts == sorted(counts, reverse=True)
    assert all(
        before - after <= 16 for before, after in zip([total, *counts], counts, strict=False)
    )
    assert (await purge).block_count == total == 41 + 20 * 21


async def test_what_a_running_purge_covers_is_not_committed_and_the_rest_is(
    arena: HostArena, limits: CacheLimits, clock: Any, connect: Any, chain: Any
) -> None:
    cache = Cache(arena, None, replace(limits, purge_slice_blocks=1), clock, QuietListener())
    client, other = connect(cache), connect(cache, OTHER)
    await client.store(chain(*range(10)))
    ours = await client.reserve(chain("q"))
    theirs = await other.reserve(chain("x"))
    sums, their_sums = client.write(chain("q"), ours), other.write(chain("x"), theirs)
    kind = PurgeTarget(PurgeKind.NAMESPACE, namespace_of(client))
    purge = cache.purging.start(kind, dry_run=False)
    with pytest.raises(PurgeRunningError):
        cache.purging.start(EVERYTHING, dry_run=True)
    committed = await asyncio.gather(
        cache.commit(client.session_id, ours.reservation_id, sums, False),
        cache.commit(other.session_id, theirs.reservation_id, their_sums, False),
    )
    assert committed == [0, 1]
    await purge
    assert cache.stats().counters["blocks_refused_purged"] == 1
    cache.check_integrity()


async def test_a_purge_that_the_end_of_the_service_cuts_says_so(
    cache: Cache, client: Any, chain: Any
) -> None:
    await client.store(chain("a"))
    purge = cache.purging.start(EVERYTHING, dry_run=False)
    await cache.drain()
    with pytest.raises(ShuttingDownError):
        await purge
    with pytest.raises(ShuttingDownError):
        cache.purging.start(EVERYTHING, dry_run=False)
    cache.check_integrity()


# -- with an SSD ---------------------------------------------------------------------------------


@pytest.fixture
def open_ssd(tmp_path: Any) -> Callable[[], SsdTier]:
    return lambda: SsdTier.open(
        tmp_path / "ssd", capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
    )


@pytest.fixture
async def cold(arena: HostArena, limits: CacheLimits, clock: Any, open_ssd: Any) -> Any:
    cache = Cache(arena, open_ssd(), limits, clock, QuietListener())
    yield cache
    await cache.drain()
    cache.check_integrity()


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 60])
async def test_a_block_on_its_way_to_the_ssd_does_not_come_back(
    cold: Cache,
    connect: Any,
    chain: Any,
    limits: CacheLimits,
    clock: Any,
    open_ssd: Any,
    turns: int,
) -> None:
    """Queued, being written or written, as `turns` of the loop have it."""
    client = connect(cold)
    await client.store(chain(1, 2, 3))
    for _ in range(turns):
        await asyncio.sleep(0.0003)
    view = await purged(cold, EVERYTHING)
    assert view.ssd_forgetting is SsdForgetting.DURABLE
    assert view.block_count == 3
    await cold.drain()
    arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    again = Cache(arena, open_ssd(), limits, clock, QuietListener())
    assert len(again._parts.index) == 0
    await again.drain()
    arena.close()


async def test_a_block_that_is_being_read_does_not_come_back(
    cold: Cache, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2, 3))
    while cold.stats().pending_write_count:
        await asyncio.sleep(0.001)
    for number in range(16):
        await client.store(chain("room", number))
    assert Tier.SSD in cold.lookup(client.session_id, chain(1, 2, 3)).tiers
    stream = cold.acquire(client.session_id, "r", chain(1, 2, 3), None)
    await anext(stream)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    purge = cold.purging.start(prefix(client, chain(1)[0]), dry_run=False)
    events = [await reading]
    await purge
    events += [event async for event in stream]
    assert events[-1].miss_reason is MissReason.PURGED
    assert client.present(chain(1)) == 0
    cold.check_integrity()


async def test_an_ssd_that_does_not_answer_is_in_the_receipt(
    arena: HostArena, limits: CacheLimits, clock: Any, connect: Any, chain: Any, open_ssd: Any
) -> None:
    ssd = open_ssd()
    cache = Cache(arena, ssd, replace(limits, forget_wait_seconds=0.2), clock, QuietListener())
    client = connect(cache)
    await client.store(chain(1, 2))
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)
    await ssd.close()
    view = await purged(cache, EVERYTHING)
    assert view.ssd_forgetting is SsdForgetting.PENDING
    assert client.present(chain(1)) == 0
    await cache.drain()
