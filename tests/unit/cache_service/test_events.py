"""Events of the core: what the index gains and loses, numbered, and how watchers read it."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cache_service.cache import Cache
from cache_service.errors import EventsLostError, TooManyWatchersError
from cache_service.events.changes import (
    CODE_BITS,
    LEFT_SSD,
    REASON_SHIFT,
    EventColumns,
    EventKind,
    read_code,
)
from cache_service.events.ring import EventRing
from cache_service.events.runs import event_runs
from cache_service.events.watching import Position, WatchView
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits
from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, NamespaceId


def chain(name: str, count: int) -> list[BlockHash]:
    parent, made = name.encode(), []
    for _ in range(count):
        parent = hashlib.sha256(parent).digest()
        made.append(BlockHash(parent))
    return made


def columns(first: int, count: int, code: int = 17) -> EventColumns:
    hashes = np.arange(first * 4, (first + count) * 4, dtype=np.uint64).reshape(-1, 4)
    return EventColumns(
        np.full(count, code, np.uint16),
        hashes,
        hashes + np.uint64(1),
        np.zeros((count, 4), np.uint64),
        np.full(count, 900, np.int64),
    )


@pytest.mark.parametrize("batches", [[3], [5, 5], [4, 3, 2, 1], [25], [10, 10, 10], [9, 12]])
def test_the_ring_keeps_the_last_events_in_order(batches: list[int]) -> None:
    ring, first = EventRing(10), 0
    for count in batches:
        ring.append(columns(first, count))
        first += count
    assert ring.last_sequence == first
    assert ring.first_sequence == max(1, first - 9)
    read, after = [], ring.first_sequence - 1
    while after < ring.last_sequence:
        part = ring.read(after, 4)
        assert 0 < len(part) <= 4
        read += part.hashes[:, 0].tolist()
        after += len(part)
    assert read == [4 * number for number in range(max(0, first - 10), first)]


def test_alike_events_are_one_run_and_others_begin_a_new_one() -> None:
    events = columns(0, 6)
    events.codes[3] = 18
    events.block_bytes[5] = 901
    runs = event_runs(events, 10)
    assert [run.count for run in runs] == [3, 1, 1, 1]
    assert b"".join(run.hashes for run in runs) == events.hashes.tobytes()
    assert event_runs(events, 2) == runs[:2]
    assert event_runs(columns(0, 0), 2) == ()


@pytest.mark.parametrize("reason", MissReason)
def test_every_reason_fits_a_code(reason: MissReason) -> None:
    code = LEFT_SSD | reason << REASON_SHIFT
    assert code < 1 << CODE_BITS
    assert read_code(code) == (EventKind.EVICTED, Tier.SSD, reason)


# -- through the core ------------------------------------------------------------------------------


@pytest.fixture
def make_cache(arena: Any, limits: CacheLimits, clock: Any) -> Callable[..., Cache]:
    """Room for sixteen blocks, no SSD tier."""

    def make(**changes: Any) -> Cache:
        return Cache(arena, None, replace(limits, **changes), clock, QuietListener())

    return make


class Watch:
    """A watch that is read by hand."""

    def __init__(self, views: AsyncGenerator[WatchView, None]) -> None:
        self._views = views

    async def next(self) -> WatchView:
        return await anext(self._views)

    async def close(self) -> None:
        await self._views.aclose()


def told(view: WatchView) -> list[tuple[EventKind, Tier, MissReason, int]]:
    return [(run.kind, run.tier, run.reason, run.count) for run in view.events]


async def test_a_store_is_told_with_parents_namespace_and_size(
    make_cache: Callable[..., Cache], connect: Any
) -> None:
    cache = make_cache()
    client = connect(cache)
    watch = Watch(cache.watching.watch(None, False))
    first = await watch.next()
    assert first.position == Position(cache.instance_id, 0)
    assert not first.events
    hashes = chain("a", 3)
    await client.store(hashes)
    view = await watch.next()
    (run,) = view.events
    assert (run.kind, run.tier, run.reason) == (EventKind.STORED, Tier.HOST, MissReason.NONE)
    assert run.hashes == b"".join(hashes)
    assert run.parents == bytes(32) + b"".join(hashes[:-1])
    assert run.namespace_id == hashlib.sha256(b"a namespace").digest()
    assert run.block_bytes == cache.stats().tiers[0].payload_bytes // 3
    assert view.position == Position(cache.instance_id, 3)
    await watch.close()


async def test_blocks_that_leave_for_room_are_told_last_to_first(
    make_cache: Callable[..., Cache], connect: Any
) -> None:
    cache = make_cache()
    client = connect(cache)
    old, new = chain("old", 14), chain("new", 5)
    await client.store(old)
    await client.store(new)
    watch = Watch(cache.watching.watch(Position(cache.instance_id, 14), False))
    view = await watch.next()
    assert told(view) == [
        (EventKind.EVICTED, Tier.HOST, MissReason.EVICTED, 3),
        (EventKind.STORED, Tier.HOST, MissReason.NONE, 5),
    ]
    left = view.events[0]
    assert left.hashes == b"".join(reversed(old[-3:]))
    assert left.parents == b"".join(reversed(old[-4:-1])), "read although the rows are others' now"
    await watch.close()


async def test_a_corrupt_block_is_told_as_such_and_what_continued_it_as_evicted(
    make_cache: Callable[..., Cache], connect: Any
) -> None:
    cache = make_cache()
    client = connect(cache)
    hashes = chain("a", 3)
    await client.store(hashes)
    watch = Watch(cache.watching.watch(None, False))
    await watch.next()
    acquired = await client.acquire(hashes)
    cache.arena.view(acquired.ready[0].slabs[1])[0] ^= 1
    cache.release(client.session_id, acquired.match.lease_id, [hashes[1]])
    view = await watch.next()
    while not view.events:
        view = await watch.next()
    assert told(view) == [
        (EventKind.EVICTED, Tier.HOST, MissReason.EVICTED, 1),
        (EventKind.EVICTED, Tier.HOST, MissReason.CORRUPT, 1),
    ]
    await watch.close()


async def test_a_position_of_another_start_or_not_kept_is_lost(
    make_cache: Callable[..., Cache], connect: Any
) -> None:
    cache = make_cache(events_retained=2)
    client = connect(cache)
    await client.store(chain("a", 4))
    for position in (
        Position("somebody else", 4),
        Position(cache.instance_id, 1),
        Position(cache.instance_id, 5),
        Position(cache.instance_id, -1),
    ):
        with pytest.raises(EventsLostError) as caught:
            await Watch(cache.watching.watch(position, False)).next()
        assert caught.value.metadata["instance_id"] == cache.instance_id
    watch = Watch(cache.watching.watch(Position(cache.instance_id, 2), False))
    assert (await watch.next()).position.sequence == 4
    assert cache.watching.watcher_count == 1
    await watch.close()
    assert cache.watching.watcher_count == 0


async def test_a_watcher_that_falls_behind_is_cut_off(
    make_cache: Callable[..., Cache], connect: Any
) -> None:
    cache = make_cache(events_retained=3)
    client = connect(cache)
    watch = Watch(cache.watching.watch(None, False))
    await watch.next()
    await client.store(chain("a", 4))
    with pytest.raises(EventsLostError):
        await watch.next()
    assert cache.stats().counters["watchers_cut_events_lost"] == 1
    assert cache.watching.watcher_count == 0


async def test_watchers_are_bounded_and_end_with_the_cache(
    make_cache: Callable[..., Cache],
) -> None:
    cache = make_cache(watchers_max=2)
    watches = [Watch(cache.watching.watch(None, False)) for _ in range(2)]
    for watch in watches:
        await watch.next()
    with pytest.raises(TooManyWatchersError):
        await Watch(cache.watching.watch(None, False)).next()
    waiting = [asyncio.ensure_future(watch.next()) for watch in watches]
    cache.watching.end()
    for task in waiting:
        with pytest.raises(StopAsyncIteration):
            await task
    assert cache.watching.watcher_count == 0


async def test_an_empty_cache_has_a_snapshot_of_nothing(make_cache: Callable[..., Cache]) -> None:
    watch = Watch(make_cache().watching.watch(None, True))
    view = await watch.next()
    assert (view.blocks, view.snapshot_done) == ((), True)
    await watch.close()


async def test_a_silent_stream_says_so_now_and_then(
    make_cache: Callable[..., Cache], clock: Any
) -> None:
    cache = make_cache()
    watch = Watch(cache.watching.watch(None, False))
    first = await watch.next()
    clock.advance(6)
    assert await watch.next() == first
    await watch.close()


async def test_messages_stay_small_where_every_block_is_of_another_namespace(
    make_cache: Callable[..., Cache], connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_service.events.log.RUNS_MAX", 2)
    cache = make_cache()
    for number in range(3):
        client = connect(cache, NamespaceId(bytes([number]) * 32))
        await client.store(chain(f"first {number}", 2))
        await client.store(chain(f"second {number}", 1))
    snapshot, blocks = Watch(cache.watching.watch(None, True)), 0
    while True:
        view = await snapshot.next()
        assert len(view.blocks) <= 2
        blocks += sum(run.count for run in view.blocks)
        if view.snapshot_done:
            break
    assert blocks == 9
    await snapshot.close()
    watch, events = Watch(cache.watching.watch(Position(cache.instance_id, 0), False)), 0
    while events < 9:
        view = await watch.next()
        assert len(view.events) <= 2
        events += sum(run.count for run in view.events)
    assert view.position.sequence == events == 9
    await watch.close()
