"""Blocks that go to the SSD when they leave host memory, over a real SSD tier."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits, CachePolicies, Transport
from cache_service.write_ahead import window_bytes
from kvtier.blocks import Tier
from kvtier.keys import NamespaceId
from storage.host.arena import HostArena
from storage.policy.choice import POLICIES
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

SLABS = 16
RECORD_BYTES = 2 * PAGE_BYTES
SEGMENT_BYTES = 17 * PAGE_BYTES
MIB = 1024 * 1024


class Heard(QuietListener):
    """What the end of the service said it wrote and left."""

    def __init__(self) -> None:
        self.written_outs: list[tuple[int, int, int]] = []

    def written_out(self, written_count: int, left_count: int, left_bytes: int) -> None:
        self.written_outs.append((written_count, left_count, left_bytes))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def leaving(
    limits: CacheLimits, clock: Any, tmp_path: Any, heard: Heard
) -> AsyncIterator[Callable[..., Cache]]:
    """Opens a cache that writes late; again: the same directory after an orderly end.

    Who waits for the disk is patient, so that a busy machine changes nothing.
    """
    opened: list[Cache] = []
    patient = replace(limits, room_wait_seconds=20.0)

    def made(
        segments: int = 12,
        some: CacheLimits = patient,
        slabs: int = SLABS,
        extent: int = 4,
        **policies: Any,
    ) -> Cache:
        ssd = SsdTier.open(
            tmp_path / "ssd", capacity_bytes=segments * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
        )
        arena = HostArena(slabs * PAGE_BYTES, extent_bytes=extent * PAGE_BYTES)
        chosen = CachePolicies(ssd_write_when="leaving", **policies)
        opened.append(Cache(arena, ssd, some, clock, heard, chosen))
        return opened[-1]

    yield made
    for cache in opened:
        await cache.drain()
        cache.check_integrity()
        cache.arena.close()


async def settle(cache: Cache) -> int:
    """Returns, when nothing waits for the SSD, how many blocks are there."""
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)
        cache.check_integrity()
    return cache.stats().tiers[1].block_count


async def test_while_memory_has_room_nothing_is_written(
    leaving: Any, connect: Any, chain: Any
) -> None:
    cache = leaving()
    client = connect(cache)
    await client.store(chain(*range(12)))
    client.release(await client.acquire(chain(*range(12))))
    assert await settle(cache) == 0
    stats = cache.stats()
    assert stats.host_only_count == 12
    assert stats.admission is not None
    assert stats.admission.write_when == "leaving"
    assert stats.counters.get("blocks_written", 0) == 0


@pytest.mark.parametrize("policy", POLICIES)
async def test_what_leaves_memory_is_read_again_from_the_ssd(
    leaving: Any, connect: Any, chain: Any, policy: str
) -> None:
    cache = leaving(host_eviction=policy)
    client = connect(cache)
    chains = [chain("c", i, "x", "y") for i in range(20)]
    for blocks in chains:
        assert await client.store(blocks) >= 3
    stats = cache.stats()
    assert stats.counters.get("writes_declined", 0) == 0
    assert stats.counters["blocks_evicted_host"] >= 61 - SLABS
    for blocks in chains:
        acquired = await client.acquire(blocks)
        assert acquired.ready_count == 4
        client.check_payloads(blocks, acquired)
        client.release(acquired)
    assert cache.stats().counters.get("writes_declined", 0) == 0


async def test_a_leaf_is_written_with_everything_before_it(
    leaving: Any, connect: Any, chain: Any
) -> None:
    cache = leaving()
    client = connect(cache)
    long = chain(*range(14))
    await client.store(long)
    await client.store(chain("other", 1, 2))
    assert await settle(cache) == 14
    found = cache.lookup(client.session_id, long)
    assert found.present_count == 14
    assert found.tiers.endswith(bytes([Tier.SSD]))


async def test_only_what_is_about_to_leave_is_written(
    leaving: Any, connect: Any, chain: Any
) -> None:
    """The arena is full and stays full: no more than the window goes to the SSD."""
    cache = leaving()
    client = connect(cache)
    for i in range(SLABS):
        await client.store(chain(i))
    for _ in range(20):
        cache.tick()
        await settle(cache)
    assert await settle(cache) <= 2
    assert cache.stats().tiers[0].block_count == SLABS


async def test_a_block_used_before_it_left_is_asked_about_again(
    leaving: Any, connect: Any, chain: Any
) -> None:
    """Refused when new, settled to leave unwritten, used, and then wanted after all."""
    cache = leaving(ssd_admission="first_new", ssd_new_blocks_max=1)
    client = connect(cache)
    blocks = chain("a", "b")
    await client.store(blocks)
    for i in range(SLABS - 2):
        await client.store(chain(i))
    client.release(await client.acquire(blocks))
    for i in range(3 * SLABS):
        await client.store(chain("other", i)[:1] if i % 2 else chain("more", i))
    await settle(cache)
    assert client.present(blocks) == 2


async def test_what_admission_does_not_want_leaves_unwritten(
    leaving: Any, connect: Any, chain: Any
) -> None:
    cache = leaving(ssd_admission="first_new", ssd_new_blocks_max=3)
    client = connect(cache)
    blocks = chain(*range(8))
    await client.store(blocks)
    for i in range(20):
        await client.store(chain("other", i))
    await settle(cache)
    assert client.present(blocks) == 3
    assert cache.stats().counters["writes_declined"] >= 5


async def test_the_write_budget_is_kept_and_a_chain_is_lost_for_its_last_block_only(
    leaving: Any, connect: Any, chain: Any
) -> None:
    """An hour's share holds eight records; half of it is for blocks that were used again."""
    cache = leaving(ssd_write_bytes_per_day=24 * 8 * RECORD_BYTES)
    client = connect(cache)
    for i in range(40):
        await client.store(chain(i, "tail"))
    assert await settle(cache) == 4
    admission = cache.stats().admission
    assert admission is not None
    # Two chains were written; of every other one that left both blocks were turned away in turn,
    # and of those that leave next a window.
    left = cache.stats().counters["writes_declined"]
    assert left == 2 * 40 - 4 - SLABS
    assert left <= admission.over_budget_count <= left + 4
    lost = admission.lost_hit_count
    client.release(await client.acquire(chain(5, "tail")))
    assert cache.stats().admission.lost_hit_count == lost + 2  # type: ignore[union-attr]


async def test_a_burst_that_outruns_the_disk_waits_a_bounded_time_and_is_stored(
    leaving: Any, connect: Any, chain: Any, limits: CacheLimits, monkeypatch: Any
) -> None:
    """The disk never answers: everybody gets room, and what had to leave is counted."""
    cache = leaving(some=replace(limits, room_wait_seconds=0.01))
    client = connect(cache)
    answered = asyncio.Event()
    append = SsdTier.append

    async def slow(self: Any, *batch: Any) -> Any:
        await answered.wait()
        return await append(self, *batch)

    monkeypatch.setattr(SsdTier, "append", slow)
    for i in range(3):
        assert await client.store(chain(i, *range(9))) == 10
    stats = cache.stats()
    assert stats.counters["writes_declined"] == stats.counters["blocks_evicted_host"] >= 14
    assert stats.pending_write_count <= 2, "the queue stays small while the disk is slow"
    answered.set()
    await settle(cache)
    cache.check_integrity()


async def test_a_leased_arena_refuses_as_it_always_did(
    leaving: Any, connect: Any, chain: Any
) -> None:
    cache = leaving()
    client = connect(cache)
    blocks = chain(*range(SLABS))
    await client.store(blocks)
    held = await client.acquire(blocks)
    view = await client.reserve(chain("new"))
    assert (view.slabs, view.refused_count) == ((), 1)
    client.release(held)
    assert await client.store(chain("new")) == 1


async def test_blocks_of_an_extent_are_written_before_another_size_takes_it(
    leaving: Any, connect: Any, chain: Any
) -> None:
    cache = leaving()
    client = connect(cache)
    for i in range(SLABS):
        await client.store(chain(i))
    other = NamespaceId(bytes(32))
    session = cache.open_session(other, 4 * PAGE_BYTES, 64, "large", Transport.SHARED_MEMORY)
    view = await cache.reserve(session.session_id, "", chain("large"))
    assert len(view.slabs) == 1
    assert cache.stats().counters.get("writes_declined", 0) == 0
    assert [client.present(chain(i)) for i in range(SLABS)] == [1] * SLABS
    assert cache.stats().tiers[0].block_count == SLABS - 4
    cache.abort(session.session_id, view.reservation_id)


async def test_a_full_ring_that_cannot_be_recycled_lets_blocks_leave_unwritten(
    leaving: Any, connect: Any, chain: Any
) -> None:
    """The SSD is smaller than memory: chains of one root fill it, and storing goes on."""
    cache = leaving(segments=4)
    client = connect(cache)
    for i in range(60):
        assert await client.store(chain("root", i, "x", "y")) >= 3
        cache.check_integrity()
    await settle(cache)
    ssd = cache.stats().tiers[1]
    assert ssd.used_bytes <= ssd.capacity_bytes
    assert cache.stats().counters["segments_recycled"] > 0


async def test_an_orderly_end_writes_out_what_only_memory_has(
    leaving: Any, connect: Any, chain: Any, heard: Heard
) -> None:
    cache = leaving()
    client = connect(cache)
    await client.store(chain(1, 2, 3))
    await client.store(chain(1, 2, "fork", *range(8)))
    await cache.drain()
    assert heard.written_outs == [(12, 0, 0)]
    warm = leaving()
    client = connect(warm)
    for blocks in (chain(1, 2, 3), chain(1, 2, "fork", *range(8))):
        acquired = await client.acquire(blocks)
        assert acquired.ready_count == len(blocks)
        client.check_payloads(blocks, acquired)
        client.release(acquired)


async def test_an_end_without_time_leaves_everything_and_says_so(
    leaving: Any, connect: Any, chain: Any, limits: CacheLimits, heard: Heard
) -> None:
    cache = leaving(some=replace(limits, write_out_seconds=0.0))
    await connect(cache).store(chain(1, 2, 3))
    await cache.drain()
    assert heard.written_outs == [(0, 3, 3 * 4000)]
    assert leaving().stats().tiers[1].block_count == 0


async def test_an_end_that_runs_out_of_time_has_written_the_dearest(
    leaving: Any, connect: Any, chain: Any, heard: Heard, monkeypatch: Any
) -> None:
    cache = leaving()
    client = connect(cache)
    for i in range(10):
        await client.store(chain(i))
    client.release(await client.acquire(chain(4)))
    loop = asyncio.get_running_loop()
    late = 0.0
    append = SsdTier.append

    async def once(self: Any, *batch: Any) -> Any:
        nonlocal late
        late = 100.0
        return await append(self, *batch)

    time = loop.time
    with monkeypatch.context() as patched:
        patched.setattr(SsdTier, "append", once)
        patched.setattr(loop, "time", lambda: time() + late)
        await cache.drain()
    ((written, left, left_bytes),) = heard.written_outs
    assert 1 <= written <= 2
    assert (left, left_bytes) == (10 - written, 4000 * (10 - written))
    warm = leaving()
    assert connect(warm).present(chain(4)) == 1


async def test_an_end_on_a_full_ssd_recycles_for_what_only_memory_has(
    leaving: Any, connect: Any, chain: Any, heard: Heard
) -> None:
    """Blocks that recycling drops while they are in memory as well do not end it early."""
    cache = leaving(segments=4)
    client = connect(cache)
    for i in range(30):
        await client.store(chain(i))
    for i in range(14, 22):
        client.release(await client.acquire(chain(i)))
    await settle(cache)
    for i in range(40, 48):
        await client.store(chain(i))
    await settle(cache)
    newest = [i for i in range(40, 48) if cache.lookup(client.session_id, chain(i)).tiers]
    await cache.drain()
    ((written, _, _),) = heard.written_outs
    assert written > 0
    warm = leaving(segments=4)
    client = connect(warm)
    assert [i for i in newest if client.present(chain(i))] == newest


async def test_an_end_keeps_to_admission(
    leaving: Any, connect: Any, chain: Any, heard: Heard
) -> None:
    cache = leaving(ssd_admission="first_new", ssd_new_blocks_max=2)
    await connect(cache).store(chain(*range(5)))
    await cache.drain()
    assert heard.written_outs == [(2, 3, 3 * 4000)]


def test_the_window_is_a_batch_or_a_share_of_a_large_arena_and_never_much_of_a_small_one() -> None:
    limits = CacheLimits()
    assert window_bytes(limits, 64 * MIB) == 8 * MIB
    assert window_bytes(limits, 512 * MIB) == 64 * MIB
    assert window_bytes(limits, 2048 * MIB) == 64 * MIB
    assert window_bytes(limits, 64 * 1024 * MIB) == int(0.02 * 64 * 1024 * MIB)


@pytest.mark.parametrize("fillers", range(44, 49))
@pytest.mark.parametrize("hour_records", [2, 3, 4, 5])
async def test_what_asking_about_one_block_pins_does_not_leave_with_another(
    leaving: Any, connect: Any, chain: Any, hour_records: int, fillers: int
) -> None:
    """What is before a block is queued, the block itself not affordable any more, and both lie in
    the extent that has to be emptied for another size."""
    cache = leaving(
        slabs=64,
        extent=16,
        ssd_admission="first_new",
        ssd_new_blocks_max=1,
        ssd_write_bytes_per_day=24 * hour_records * RECORD_BYTES,
    )
    client = connect(cache)
    for i in range(fillers):
        await client.store(chain("filler", i))
    await client.store(chain("root", "a"))
    await client.store(chain("root", "a", "b"))
    slab = cache._parts.room.take(2 * PAGE_BYTES)
    for owner in (cache._parts.index, *cache._sides):
        owner.check_integrity()
    if slab is not None:
        cache.arena.free(slab)
    await settle(cache)
