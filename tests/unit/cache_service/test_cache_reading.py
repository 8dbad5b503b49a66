"""Lookup, acquire, leases and release on the host tier."""

from typing import Any

import pytest

from cache_service.errors import (
    InvalidRangeError,
    LeaseExpiredError,
    LeaseUnknownError,
    MalformedChainError,
    SessionUnknownError,
    TooManyBlocksError,
    TooManyLeasesError,
)
from cache_service.views import EndView
from kvtier.blocks import MissReason, Tier


async def test_what_was_stored_is_found_leased_and_byte_equal(client: Any, chain: Any) -> None:
    blocks = chain(1, 2, 3)
    assert await client.store(blocks) == 3
    found = client.cache.lookup(client.session_id, [*blocks, *chain(9)])
    assert found.present_count == 3
    assert found.tiers == bytes([Tier.HOST] * 3)
    assert found.miss_reason is MissReason.NEVER_STORED
    acquired = await client.acquire(blocks)
    assert acquired.match.matched_count == 3
    assert acquired.match.miss_reason is MissReason.NONE
    assert acquired.ready_count == 3
    client.check_payloads(blocks, acquired)


async def test_an_acquire_of_nothing_makes_no_lease(client: Any, chain: Any) -> None:
    acquired = await client.acquire(chain(1, 2))
    assert acquired.match.lease_id == ""
    assert acquired.match.matched_count == 0
    assert acquired.end.miss_reason is MissReason.NEVER_STORED
    assert client.cache.stats().lease_count == 0


async def test_a_chain_may_be_acquired_from_its_middle(client: Any, chain: Any) -> None:
    blocks = chain(1, 2, 3, 4)
    await client.store(blocks)
    acquired = await client.acquire(blocks[2:])
    assert acquired.ready_count == 2
    client.check_payloads(blocks[2:], acquired)


async def test_a_leased_block_survives_pressure_and_leaves_after_release(
    client: Any, chain: Any
) -> None:
    kept = chain("kept")
    await client.store(kept)
    acquired = await client.acquire(kept)
    for i in range(40):
        assert await client.store(chain(i)) == 1
    client.check_payloads(kept, acquired)
    client.release(acquired)
    for i in range(40, 100):
        await client.store(chain(i))
    found = client.cache.lookup(client.session_id, kept)
    assert found.present_count == 0


async def test_a_block_that_left_for_room_is_a_miss_called_evicted(client: Any, chain: Any) -> None:
    first = chain("first")
    await client.store(first)
    for i in range(16):
        await client.store(chain(i))
    assert client.cache.lookup(client.session_id, first).miss_reason is MissReason.EVICTED
    for i in range(16, 48):
        await client.store(chain(i))
    # The memory of evictions is bounded: eight here.
    assert client.cache.lookup(client.session_id, first).miss_reason is MissReason.NEVER_STORED


async def test_eviction_takes_chains_from_their_ends(client: Any, chain: Any) -> None:
    long = chain(*range(10))
    await client.store(long)
    for i in range(12):
        await client.store(chain("other", i))
    present = client.present(long)
    assert 0 < present < 10
    assert await client.store(long) == 10 - present


async def test_a_lease_ends_at_its_deadline_unless_renewed(
    client: Any, chain: Any, clock: Any
) -> None:
    blocks = chain(1)
    await client.store(blocks)
    acquired = await client.acquire(blocks)
    lease_id = acquired.match.lease_id
    assert acquired.match.expire_seconds == 10
    clock.advance(9)
    assert client.cache.renew(client.session_id, [lease_id, "unknown"]) == {
        lease_id: 10,
        "unknown": None,
    }
    clock.advance(9)
    assert client.cache.leased_block(client.session_id, lease_id, 0)[1] > 0
    clock.advance(1)
    with pytest.raises(LeaseExpiredError):
        client.cache.leased_block(client.session_id, lease_id, 0)
    assert client.cache.renew(client.session_id, [lease_id]) == {lease_id: None}
    client.cache.check_integrity()
    assert client.cache.stats().lease_count == 0


async def test_a_leased_block_is_named_by_its_place_in_the_chain(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    await client.store(blocks)
    acquired = await client.acquire(blocks)
    lease_id = acquired.match.lease_id
    slab, size = client.cache.leased_block(client.session_id, lease_id, 1)
    assert slab == acquired.ready[0].slabs[1]
    assert size < slab.size_bytes
    for index in (-1, 2):
        with pytest.raises(InvalidRangeError):
            client.cache.leased_block(client.session_id, lease_id, index)
    with pytest.raises(LeaseUnknownError):
        client.cache.leased_block(client.session_id, "no such lease", 0)


async def test_release_is_idempotent_and_frees_the_pins(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    await client.store(blocks)
    acquired = await client.acquire(blocks)
    client.release(acquired)
    client.release(acquired)
    assert client.cache.stats().lease_count == 0
    with pytest.raises(LeaseUnknownError):
        client.cache.leased_block(client.session_id, acquired.match.lease_id, 0)


async def test_a_stream_that_is_given_up_releases_its_lease(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    await client.store(blocks)
    for events_taken in (1, 2):
        events = client.cache.acquire(client.session_id, "r", blocks, None)
        for _ in range(events_taken):
            await anext(events)
        assert client.cache.stats().lease_count == 1
        await events.aclose()
        assert client.cache.stats().lease_count == 0
        client.cache.check_integrity()


@pytest.mark.parametrize("end", ["released", "expired", "session closed"])
async def test_a_stream_whose_lease_ended_names_no_block_that_took_the_place_of_one(
    client: Any, connect: Any, chain: Any, clock: Any, end: str
) -> None:
    """A checksum would not help: it would be the other block's, too."""
    await client.store(chain(1, 2, 3))
    other = connect(client.cache)
    stream = client.cache.acquire(client.session_id, "r", chain(1, 2, 3), None)
    match = await anext(stream)
    assert match.matched_count == 3
    if end == "released":
        client.cache.release(client.session_id, match.lease_id, [])
    elif end == "expired":
        clock.advance(10)
        client.cache.tick()
    else:
        client.cache.close_session(client.session_id)
    assert await other.store(chain("other", *range(15))) == 16
    events = [event async for event in stream]
    assert events == [EndView(0, MissReason.EXPIRED)]
    client.cache.check_integrity()


async def test_a_session_holds_a_bounded_number_of_leases(client: Any, chain: Any) -> None:
    blocks = chain(1)
    await client.store(blocks)
    held = [await client.acquire(blocks) for _ in range(4)]
    with pytest.raises(TooManyLeasesError):
        await client.acquire(blocks)
    client.release(held[0])
    assert (await client.acquire(blocks)).ready_count == 1


async def test_a_lease_of_another_session_is_unknown(client: Any, connect: Any, chain: Any) -> None:
    blocks = chain(1)
    await client.store(blocks)
    acquired = await client.acquire(blocks)
    other = connect(client.cache)
    with pytest.raises(LeaseUnknownError):
        client.cache.leased_block(other.session_id, acquired.match.lease_id, 0)
    client.cache.release(other.session_id, acquired.match.lease_id, [])
    assert client.cache.stats().lease_count == 1


async def test_malformed_chains_are_refused_before_anything_happens(
    client: Any, chain: Any
) -> None:
    good = chain(1, 2)
    for bad in ([], [good[0], good[0]], [good[0][:31]]):
        with pytest.raises(MalformedChainError):
            client.cache.lookup(client.session_id, bad)
        with pytest.raises(MalformedChainError):
            await client.acquire(bad)
        with pytest.raises(MalformedChainError):
            await client.reserve(bad)
    with pytest.raises(TooManyBlocksError):
        client.cache.lookup(client.session_id, chain(*range(65)))
    with pytest.raises(SessionUnknownError):
        client.cache.lookup("nobody", good)


async def test_a_false_report_of_corruption_drops_nothing(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    await client.store(blocks)
    acquired = await client.acquire(blocks)
    client.release(acquired, corrupt=[blocks[0]])
    await client.cache.drain()
    assert client.present(blocks) == 2
    assert "blocks_corrupt_host" not in client.cache.stats().counters


async def test_a_true_report_drops_the_block_and_all_that_follows_even_while_leased(
    client: Any, connect: Any, chain: Any
) -> None:
    blocks = chain(1, 2, 3, 4)
    await client.store(blocks)
    reporter = await client.acquire(blocks[:2])
    other = connect(client.cache)
    reader = await other.acquire(blocks)
    client.cache.arena.view(reporter.ready[0].slabs[1])[7] ^= 1
    client.release(reporter, corrupt=[blocks[1]])
    await client.cache.drain()
    client.cache.check_integrity()
    found = client.cache.lookup(client.session_id, blocks)
    assert found.present_count == 1
    assert found.miss_reason is MissReason.CORRUPT
    # The other reader's slabs stay his until he lets go.
    assert client.cache.arena.slab_count == 4
    other.release(reader)
    assert client.cache.arena.slab_count == 1
