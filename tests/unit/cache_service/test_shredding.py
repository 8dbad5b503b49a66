"""Shreds of the core: whatever is under way, nothing of what was shredded is ever read again."""

import asyncio
import errno
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.errors import NotEncryptedError
from cache_service.hints import Hints
from cache_service.listener import QuietListener
from cache_service.owner_runs import OwnerRuns
from cache_service.purge_views import (
    KeyDestruction,
    PurgeKind,
    PurgeTarget,
    PurgeView,
    ShredView,
    SsdForgetting,
)
from cache_service.views import CacheLimits
from kvtier.blocks import Tier
from storage.host.arena import HostArena
from storage.ssd.key_ring import Encryption
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES, SegmentId
from tests.ssd.faulty_env import FaultyEnv

SEGMENT_BYTES = 17 * PAGE_BYTES
ACME = PurgeTarget(PurgeKind.OWNER, owner="acme")
ON = Encryption((bytes(32),))
MINE = Hints(owners=OwnerRuns(("acme/search",), (99,)))
THEIRS = Hints(owners=OwnerRuns(("bert",), (99,)))

Open = Callable[..., SsdTier]


@pytest.fixture
def env() -> FaultyEnv:
    return FaultyEnv(refuse_direct=True)


@pytest.fixture
def open_ssd(tmp_path: Path, env: FaultyEnv) -> Open:
    def make(encryption: Encryption = ON) -> SsdTier:
        return SsdTier.open(
            tmp_path / "ssd",
            capacity_bytes=6 * SEGMENT_BYTES,
            segment_bytes=SEGMENT_BYTES,
            encryption=encryption,
            env=env,
        )

    return make


@pytest.fixture
async def cold(arena: HostArena, limits: CacheLimits, clock: Any, open_ssd: Open) -> Any:
    cache = Cache(arena, open_ssd(), limits, clock, QuietListener())
    yield cache
    await cache.drain()
    cache.check_integrity()


async def shredded(cache: Cache, target: PurgeTarget = ACME) -> tuple[PurgeView, ShredView]:
    view = await cache.purging.start(target, dry_run=False, shred=True)
    cache.check_integrity()
    assert view.shred is not None
    return view, view.shred


async def written(cache: Cache) -> None:
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)


def ssd_count(cache: Cache) -> int:
    return cache._parts.index.ssd_count


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 10, 30, 60])
async def test_a_block_on_its_way_to_the_ssd_is_shredded_too(
    cold: Cache,
    connect: Any,
    chain: Any,
    limits: CacheLimits,
    clock: Any,
    open_ssd: Open,
    tmp_path: Path,
    turns: int,
) -> None:
    """Queued, being encrypted, being written or written, as `turns` of the loop have it; and the
    index is lost afterwards."""
    client = connect(cold)
    await client.store(chain(1, 2, 3), MINE)
    await client.store(chain("x", "y"), THEIRS)
    for _ in range(turns):
        await asyncio.sleep(0.0003)
    view, shred = await shredded(cold)
    assert (view.block_count, shred.destruction) == (3, KeyDestruction.DURABLE)
    assert client.present(chain("x", "y")) == 2
    await cold.drain()
    shutil.rmtree(tmp_path / "ssd" / "index")
    arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    again = Cache(arena, open_ssd(), limits, clock, QuietListener())
    assert ssd_count(again) == 2
    found = connect(again)
    assert (found.present(chain(1, 2, 3)), found.present(chain("x", "y"))) == (0, 2)
    acquired = await found.acquire(chain("x", "y"))
    found.check_payloads(chain("x", "y"), acquired)
    await again.drain()
    arena.close()


async def test_what_is_committed_beside_a_shred_is_refused_or_has_the_next_key(
    cold: Cache, connect: Any, chain: Any, limits: CacheLimits, clock: Any, open_ssd: Open
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2), MINE)
    await written(cold)
    purge = cold.purging.start(ACME, dry_run=False, shred=True)
    kept = []
    for number in range(1000):
        if purge.done():
            break
        if await client.store(chain(f"meanwhile {number}"), MINE):
            kept.append(chain(f"meanwhile {number}"))
        await asyncio.sleep(0)
    view = await purge
    assert view.shred is not None
    assert len(view.shred.key_ids) == 1
    assert cold.stats().counters["blocks_refused_purged"] > 0
    kept.append(chain("after"))
    assert await client.store(chain("after"), MINE) == 1
    await written(cold)
    await cold.drain()
    arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    again = Cache(arena, open_ssd(), limits, clock, QuietListener())
    found = connect(again)
    assert ssd_count(again) == len(kept)
    for each in kept:
        acquired = await found.acquire(each)
        found.check_payloads(each, acquired)
        found.release(acquired)
    await again.drain()
    arena.close()


async def test_a_block_that_is_being_read_is_not_served_after_its_shred(
    cold: Cache, connect: Any, chain: Any
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2, 3), MINE)
    await written(cold)
    for number in range(16):
        await client.store(chain("room", number), THEIRS)
    assert Tier.SSD in cold.lookup(client.session_id, chain(1, 2, 3)).tiers
    stream = cold.acquire(client.session_id, "r", chain(1, 2, 3), None)
    await anext(stream)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await shredded(cold)
    await reading
    async for _ in stream:
        pass
    assert client.present(chain(1)) == 0
    cold.check_integrity()


async def test_keys_go_also_when_the_index_does_not_answer(
    arena: HostArena,
    limits: CacheLimits,
    clock: Any,
    connect: Any,
    chain: Any,
    open_ssd: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ssd = open_ssd()
    cache = Cache(arena, ssd, replace(limits, forget_wait_seconds=0.1), clock, QuietListener())
    client = connect(cache)
    await client.store(chain(1, 2), MINE)
    await written(cache)

    async def hang(hashes: Any) -> None:
        await asyncio.sleep(0.5)

    with monkeypatch.context() as patch:
        patch.setattr(ssd, "forget", hang)
        view, shred = await shredded(cache)
        assert view.ssd_forgetting is SsdForgetting.PENDING
        assert shred.destruction is KeyDestruction.DURABLE
        await asyncio.sleep(0.6)
    await cache.drain()
    other = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    again = Cache(other, open_ssd(), limits, clock, QuietListener())
    assert len(again._parts.index) == 0, "its rows were still there, and its key is not"
    assert again.stats().recovery is not None
    await again.drain()
    other.close()


async def test_a_disk_that_does_not_take_it_is_in_the_receipt_and_it_can_be_repeated(
    cold: Cache, connect: Any, chain: Any, env: FaultyEnv
) -> None:
    client = connect(cold)
    await client.store(chain(1, 2), MINE)
    await written(cold)
    env.fail("rename", errno.EIO)
    _, shred = await shredded(cold)
    assert (shred.destruction, len(shred.key_ids)) == (KeyDestruction.PENDING, 1)
    _, shred = await shredded(cold)
    assert (shred.destruction, len(shred.key_ids)) == (KeyDestruction.DURABLE, 0)


async def test_a_disk_that_hangs_ends_the_wait_and_the_keys_go_when_it_answers(
    arena: HostArena,
    limits: CacheLimits,
    clock: Any,
    connect: Any,
    chain: Any,
    open_ssd: Open,
    env: FaultyEnv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = replace(limits, forget_wait_seconds=0.1)
    cache = Cache(arena, open_ssd(), few, clock, QuietListener())
    client = connect(cache)
    await client.store(chain(1, 2), MINE)
    await written(cache)
    answers, rename = threading.Event(), env.rename

    def hang(source: Path, target: Path) -> None:
        assert answers.wait(60)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(env, "rename", hang)
        try:
            async with asyncio.timeout(20):
                _, shred = await shredded(cache)
        finally:
            answers.set()
    assert (shred.destruction, len(shred.key_ids)) == (KeyDestruction.PENDING, 1)
    assert await client.store(chain("after"), MINE) == 1
    await written(cache)
    assert cache._parts.cold is not None
    (key_id,) = cache._parts.cold.ssd.data_keys("acme")
    assert key_id not in shred.key_ids
    await cache.drain()
    cache.check_integrity()


async def test_blocks_in_clear_are_counted_and_leave_the_count_when_they_move(
    arena: HostArena, limits: CacheLimits, clock: Any, connect: Any, chain: Any, open_ssd: Open
) -> None:
    plain = Cache(arena, open_ssd(Encryption()), limits, clock, QuietListener())
    await connect(plain).store(chain(1, 2), MINE)
    await plain.drain()
    other = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    cache = Cache(other, open_ssd(), limits, clock, QuietListener())
    client = connect(cache)
    await client.store(chain("a"), MINE)
    await written(cache)
    stats = cache.stats().encryption
    assert stats is not None
    assert (stats.clear_count, stats.encrypted_count) == (2, 1)
    dry = await cache.purging.start(ACME, dry_run=True, shred=True)
    assert dry.shred is not None
    assert (dry.shred.clear_count, dry.shred.clear_segment_count) == (2, 1)
    assert dry.shred.destruction is KeyDestruction.NONE
    ssd, tree = cache._parts.cold.ssd, cache._parts.index.tree  # type: ignore[union-attr]
    row = tree.find(chain(1)[0])
    (moved,) = await ssd.relog([(tree.ssd_record(row), tree.location(row))])
    assert moved is not None
    cache._parts.index.move_ssd(row, moved)
    stats = cache.stats().encryption
    assert stats is not None
    assert (stats.clear_count, stats.encrypted_count) == (1, 2)
    assert SegmentId(moved.segment_id) == 0
    await cache.drain()
    other.close()


async def test_without_encryption_it_is_refused_and_nothing_is_purged(
    arena: HostArena, limits: CacheLimits, clock: Any, connect: Any, chain: Any, open_ssd: Open
) -> None:
    cache = Cache(arena, open_ssd(Encryption()), limits, clock, QuietListener())
    client = connect(cache)
    await client.store(chain(1), MINE)
    for dry_run in (True, False):
        with pytest.raises(NotEncryptedError, match="no key"):
            cache.purging.start(ACME, dry_run=dry_run, shred=True)
    assert client.present(chain(1)) == 1
    assert await client.store(chain("still"), MINE) == 1
    await cache.drain()
