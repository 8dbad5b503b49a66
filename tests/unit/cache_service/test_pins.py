"""Pins of the core: what stays, for how long, how much, and over restarts."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.chains import Chain
from cache_service.errors import (
    BlockNotCachedError,
    BlocksPinnedError,
    PinQuotaError,
    PinUnknownError,
    PurgeRunningError,
)
from cache_service.hints import Hints
from cache_service.listener import QuietListener
from cache_service.pin_views import Pin
from cache_service.purge_views import PurgeKind, PurgeTarget
from cache_service.views import CacheLimits, CachePolicies, Transport
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.errors import TierIOError
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES

SEGMENT_BYTES = 17 * PAGE_BYTES
EVERYTHING = PurgeTarget(PurgeKind.EVERYTHING)


def namespace_of(client: Any) -> NamespaceId:
    parts = client.cache._parts
    found: NamespaceId = parts.sessions.find(client.session_id, parts.clock()).namespace_id
    return found


async def pinned(
    client: Any, chain: list[BlockHash], seconds: float = 100, owner: str = "o"
) -> Any:
    view = await client.cache.pins.pin(namespace_of(client), chain[-1], owner, seconds)
    client.cache.check_integrity()
    return view


async def crowd(client: Any, chain: Any, count: int = 40) -> None:
    for number in range(count):
        await client.store(chain("crowd", number))


@pytest.fixture
def wall() -> Any:
    class Wall:
        now = 1_800_000_000.0

        def __call__(self) -> float:
            return self.now

    return Wall()


@pytest.fixture
def memory(arena: HostArena, limits: CacheLimits, clock: Any, wall: Any) -> Cache:
    """Sixteen slabs in four extents, no SSD: eight slabs may be withheld."""
    return Cache(arena, None, limits, clock, QuietListener(), wall=wall)


@pytest.fixture
def client(memory: Cache, connect: Any) -> Any:
    return connect(memory)


async def test_a_pinned_chain_stays_and_others_leave(client: Any, chain: Any) -> None:
    await client.store(chain("a", "b", "c"))
    view = await pinned(client, chain("a", "b"))
    assert list(view.pin.chain) == chain("a", "b")
    assert (view.cached_count, view.ssd_count, view.survives_restart) == (2, 0, False)
    await crowd(client, chain)
    assert client.present(chain("a", "b", "c")) == 2
    await client.cache.pins.unpin(view.pin.pin_id)
    await crowd(client, chain)
    assert client.present(chain("a")) == 0
    with pytest.raises(PinUnknownError):
        await client.cache.pins.unpin(view.pin.pin_id)


async def test_a_pin_ends_at_its_time(client: Any, chain: Any, wall: Any) -> None:
    await client.store(chain("a"))
    await pinned(client, chain("a"), seconds=10)
    wall.now += 9
    client.cache.tick()
    await crowd(client, chain)
    assert client.present(chain("a")) == 1
    wall.now += 2
    client.cache.tick()
    client.cache.check_integrity()
    assert not [view async for view in client.cache.pins.views()]
    await crowd(client, chain)
    assert client.present(chain("a")) == 0


async def test_the_same_owner_moves_the_end_and_another_has_a_pin_of_its_own(
    client: Any, chain: Any
) -> None:
    await client.store(chain("a"))
    first = await pinned(client, chain("a"), 10)
    again = await pinned(client, chain("a"), 50)
    other = await pinned(client, chain("a"), 20, "p")
    assert again.pin.pin_id == first.pin.pin_id != other.pin.pin_id
    assert again.pin.expires == first.pin.expires + 40
    listed = [view.pin async for view in client.cache.pins.views()]
    assert listed == [other.pin, again.pin]
    await client.cache.pins.unpin(again.pin.pin_id)
    await crowd(client, chain)
    assert client.present(chain("a")) == 1


async def test_pins_hold_at_most_their_share_and_the_rest_goes_on(client: Any, chain: Any) -> None:
    await client.store(chain("a", *range(7)))
    await client.store(chain("b"))
    await pinned(client, chain("a", *range(7)))
    with pytest.raises(PinQuotaError) as raised:
        await pinned(client, chain("b"))
    assert raised.value.metadata["named_bytes_max"] == str(8 * PAGE_BYTES)
    await crowd(client, chain)
    assert client.present(chain("a", *range(7))) == 8
    # A block of another size still gets an extent.
    other = NamespaceId(bytes(range(32)))
    session = client.cache.open_session(
        other, 3 * PAGE_BYTES, 64, "large", Transport.STREAM
    ).session_id
    view = await client.cache.reserve(session, "", [BlockHash(bytes(range(32)))])
    assert view.refused_count == 0


async def test_what_is_not_cached_there_cannot_be_pinned(client: Any, chain: Any) -> None:
    await client.store(chain("a"))
    with pytest.raises(BlockNotCachedError):
        await pinned(client, chain("a", "b"))
    with pytest.raises(BlockNotCachedError):
        await client.cache.pins.pin(NamespaceId(bytes(32)), chain("a")[0], "o", 10)


async def test_a_pinned_block_that_is_lost_is_kept_again_once_it_is_stored(
    client: Any, chain: Any
) -> None:
    await client.store(chain("a", "b"))
    await pinned(client, chain("a", "b"))
    tree = client.cache._parts.index
    tree.drop(tree.tree.find(chain("a", "b")[1]), MissReason.CORRUPT)
    client.cache.check_integrity()
    (view,) = [view async for view in client.cache.pins.views()]
    assert view.cached_count == 1
    await client.store(chain("a", "b"))
    await crowd(client, chain)
    assert client.present(chain("a", "b")) == 2


async def test_a_one_off_that_is_pinned_is_one_no_more(client: Any, chain: Any) -> None:
    cache, session = client.cache, client.session_id
    view = await cache.reserve(session, "", chain("a", "b"), Hints(one_off=True))
    await cache.commit(session, view.reservation_id, client.write(chain("a", "b"), view), False)
    await pinned(client, chain("a"))
    await crowd(client, chain)
    assert client.present(chain("a", "b")) == 1


async def test_a_purge_of_what_is_pinned_wants_force(client: Any, chain: Any) -> None:
    await client.store(chain("a", "b"))
    await client.store(chain("z"))
    view = await pinned(client, chain("a", "b"))
    below = PurgeTarget(PurgeKind.PREFIX, namespace_of(client), chain("a", "b")[1])
    purging = client.cache.purging
    with pytest.raises(BlocksPinnedError) as raised:
        purging.start(below, dry_run=False)
    assert raised.value.metadata["pin_id"] == view.pin.pin_id
    assert (await purging.start(below, dry_run=True)).pin_count == 1
    receipt = await purging.start(below, dry_run=False, force=True)
    assert (receipt.block_count, receipt.pin_count) == (1, 1)
    assert not len(client.cache.pins)
    assert (await purging.start(EVERYTHING, dry_run=False)).pin_count == 0
    client.cache.check_integrity()


async def test_nothing_is_pinned_while_a_purge_runs(client: Any, chain: Any) -> None:
    await client.store(chain("a"))
    purge = client.cache.purging.start(EVERYTHING, dry_run=False)
    with pytest.raises(PurgeRunningError):
        await pinned(client, chain("a"))
    await purge


# -- with an SSD ---------------------------------------------------------------------------------


@pytest.fixture
def open_ssd(tmp_path: Any) -> Callable[[], SsdTier]:
    return lambda: SsdTier.open(
        tmp_path / "ssd", capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
    )


@pytest.fixture
def opened(limits: CacheLimits, clock: Any, open_ssd: Any, wall: Any) -> Callable[..., Cache]:
    def made(**policies: Any) -> Cache:
        arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        return Cache(
            arena,
            open_ssd(),
            replace(limits, max_sessions=9),
            clock,
            QuietListener(),
            CachePolicies(**policies),
            wall=wall,
        )

    return made


async def ended(cache: Cache) -> None:
    await cache.drain()
    cache.check_integrity()
    cache.arena.close()


async def settle(cache: Cache) -> None:
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("write_when", ["committed", "leaving"])
async def test_a_pinned_chain_is_on_the_ssd_stays_there_and_outlives_a_start(
    opened: Any, connect: Any, chain: Any, write_when: str
) -> None:
    """Segments are recycled many times over."""
    cache = opened(ssd_write_when=write_when)
    client = connect(cache)
    await client.store(chain("a", "b", "c"))
    view = await pinned(client, chain("a", "b", "c"))
    await settle(cache)
    for number in range(40):
        await client.store(chain("crowd", number, 1, 2))
        await settle(cache)
        cache.tick()
        cache.check_integrity()
    assert cache.stats().counters["segments_recycled"] > 3
    (view,) = [each async for each in cache.pins.views()]
    assert (view.cached_count, view.ssd_count, view.survives_restart) == (3, 3, True)
    await ended(cache)
    cache = opened(ssd_write_when=write_when)
    client = connect(cache)
    (again,) = [each async for each in cache.pins.views()]
    assert (again.pin, again.ssd_count) == (view.pin, 3)
    for number in range(100, 140):
        await client.store(chain("crowd", number, 1, 2))
        await settle(cache)
    acquired = await client.acquire(chain("a", "b", "c"))
    assert acquired.ready_count == 3
    client.check_payloads(chain("a", "b", "c"), acquired)
    await ended(cache)


async def test_what_admission_would_keep_off_the_ssd_goes_there_for_a_pin(
    opened: Any, connect: Any, chain: Any
) -> None:
    cache = opened(ssd_admission="first_new", ssd_new_blocks_max=1)
    client = connect(cache)
    await client.store(chain("a", "b", "c"))
    await settle(cache)
    view = await pinned(client, chain("a", "b", "c"))
    assert view.ssd_count < 3
    await settle(cache)
    (view,) = [each async for each in cache.pins.views()]
    assert view.ssd_count == 3
    await ended(cache)


async def test_an_ended_pin_is_gone_after_a_start(
    opened: Any, connect: Any, chain: Any, wall: Any
) -> None:
    cache = opened()
    client = connect(cache)
    await client.store(chain("a"))
    await client.store(chain("b"))
    await client.store(chain("c"))
    removed = await pinned(client, chain("a"))
    await pinned(client, chain("b"), seconds=10)
    kept = await pinned(client, chain("c"), seconds=1000)
    await cache.pins.unpin(removed.pin.pin_id)
    await ended(cache)
    wall.now += 20
    cache = opened()
    assert [view.pin async for view in cache.pins.views()] == [kept.pin]
    cache.tick()
    await ended(cache)
    cache = opened()
    assert set(cache._parts.cold.ssd.memos) == {kept.pin.memo_name}
    await ended(cache)


async def test_a_pin_that_the_ssd_does_not_take_is_none(
    opened: Any, connect: Any, chain: Any
) -> None:
    cache = opened()
    client = connect(cache)
    await client.store(chain("a"))
    await settle(cache)
    await cache._parts.cold.ssd.close()
    with pytest.raises(TierIOError):
        await pinned(client, chain("a"))
    cache.check_integrity()
    assert not len(cache.pins)
    await cache.drain()


def test_the_bytes_of_a_memo_are_frozen() -> None:
    pin = Pin("ab" * 16, NamespaceId(bytes(32)), Chain(bytes(range(32))), 7, "o", 1.5, 2.5)
    assert pin.memo() == (
        b'{"block_bytes": 7, "created": 1.5, "expires": 2.5, "namespace_id": "'
        + b"00" * 32
        + b'", "owner": "o"}\n'
        + bytes(range(32))
    )
    assert Pin.of_memo(pin.memo_name, pin.memo()) == pin


@pytest.mark.parametrize("memo", [b"", b"x", b"{}\n" + bytes(32), b"{}\n", b"[]\n" + bytes(32)])
def test_a_memo_that_is_no_pin_is_refused(memo: bytes) -> None:
    with pytest.raises(ValueError):
        Pin.of_memo(bytes(16), memo)
