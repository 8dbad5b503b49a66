"""Sessions: opening, tickets, limits, and what ends with them."""

import hashlib
from typing import Any

import pytest

from cache_service.errors import (
    BlockTooLargeForArenaError,
    InvalidBlockSizeError,
    InvalidNamespaceError,
    SessionUnknownError,
    TooManySessionsError,
)
from cache_service.views import Transport
from kvtier.blocks import MissReason

NAMESPACE = hashlib.sha256(b"any").digest()


def open_with(cache: Any, **changes: Any) -> Any:
    asked = {
        "namespace_id": NAMESPACE,
        "block_bytes": 4000,
        "block_tokens": 64,
        "client_name": "test",
        "transport": Transport.STREAM,
    }
    return cache.open_session(**{**asked, **changes})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"namespace_id": b"short"}, InvalidNamespaceError),
        ({"block_bytes": 0}, InvalidBlockSizeError),
        ({"block_bytes": -1}, InvalidBlockSizeError),
        ({"block_tokens": 0}, InvalidBlockSizeError),
        ({"block_bytes": 4 * 4096 + 1}, BlockTooLargeForArenaError),
    ],
)
def test_a_session_that_cannot_work_is_refused(cache: Any, changes: Any, error: Any) -> None:
    with pytest.raises(error):
        open_with(cache, **changes)
    assert cache.stats().session_count == 0


def test_sessions_of_a_namespace_agree_on_the_block_size(cache: Any) -> None:
    view = open_with(cache)
    with pytest.raises(InvalidBlockSizeError):
        open_with(cache, block_bytes=4001)
    cache.close_session(view.session_id)
    open_with(cache, block_bytes=4001)


async def test_a_namespace_with_cached_blocks_keeps_its_block_size(
    cache: Any, client: Any, chain: Any
) -> None:
    await client.store(chain(1))
    cache.close_session(client.session_id)
    namespace = hashlib.sha256(b"a namespace").digest()
    with pytest.raises(InvalidBlockSizeError):
        open_with(cache, namespace_id=namespace, block_bytes=3999)


def test_the_number_of_sessions_is_bounded(cache: Any) -> None:
    views = [open_with(cache) for _ in range(3)]
    with pytest.raises(TooManySessionsError):
        open_with(cache)
    cache.close_session(views[0].session_id)
    open_with(cache)
    cache.check_integrity()


def test_a_ticket_works_once_and_dies_with_its_session(cache: Any) -> None:
    view = open_with(cache)
    assert len(view.ticket) == 32
    assert cache.attach(view.ticket).session_id == view.session_id
    for ticket in (view.ticket, b"x" * 32):
        with pytest.raises(SessionUnknownError):
            cache.attach(ticket)
    other = open_with(cache)
    cache.close_session(other.session_id)
    with pytest.raises(SessionUnknownError):
        cache.attach(other.ticket)


async def test_closing_a_session_frees_what_it_holds(
    cache: Any, client: Any, chain: Any, clock: Any
) -> None:
    await client.store(chain(1))
    await client.acquire(chain(1))
    await client.reserve(chain(2))
    for _ in range(2):
        cache.close_session(client.session_id)
        cache.check_integrity()
    stats = cache.stats()
    assert (stats.session_count, stats.lease_count, stats.reservation_count) == (0, 0, 0)
    assert stats.quarantined_slab_count == 1
    clock.advance(5)
    cache.tick()
    assert cache.arena.slab_count == 1


async def test_a_silent_session_expires_with_what_it_holds(
    cache: Any, client: Any, chain: Any, clock: Any
) -> None:
    await client.store(chain(1))
    clock.advance(59)
    client.present(chain(1))
    clock.advance(59)
    assert client.present(chain(1)) == 1
    await client.reserve(chain(2))
    clock.advance(60)
    cache.tick()
    cache.check_integrity()
    assert cache.stats().session_count == 0
    assert cache.stats().counters["sessions_expired"] == 1
    with pytest.raises(SessionUnknownError):
        client.present(chain(1))


async def test_another_namespace_never_gets_a_block_by_naming_its_hash(
    cache: Any, client: Any, connect: Any, chain: Any
) -> None:
    await client.store(chain(1))
    stranger = connect(cache, hashlib.sha256(b"another").digest())
    found = cache.lookup(stranger.session_id, chain(1))
    assert found.present_count == 0
    assert found.miss_reason is MissReason.OTHER_NAMESPACE
    view = await stranger.reserve(chain(1, 2))
    assert view.missing == ()
    assert view.refused_reason is MissReason.OTHER_NAMESPACE


async def test_stats_count_what_is_there(cache: Any, client: Any, chain: Any) -> None:
    await client.store(chain(1, 2, 3))
    await client.acquire(chain(1, 2))
    stats = cache.stats()
    host = stats.tiers[0]
    assert (host.block_count, host.payload_bytes, host.used_bytes) == (3, 3 * 4000, 3 * 4096)
    assert host.capacity_bytes == 16 * 4096
    assert host.read_bytes == 2 * 4000
    assert host.written_bytes == 3 * 4000
    assert (stats.session_count, stats.lease_count, stats.pending_write_count) == (1, 1, 0)
    assert stats.recovery is None
    assert stats.counters["blocks_matched_host"] == 2
