"""The two-phase store: reserve, write, commit, and every way in which it ends."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.errors import (
    ChecksumCountMismatchError,
    ChecksumMismatchError,
    InvalidRangeError,
    ReservationExpiredError,
    ReservationUnknownError,
    SessionUnknownError,
    TooManyReservationsError,
)
from cache_service.listener import QuietListener
from kvtier.blocks import MissReason


async def test_reserved_blocks_are_invisible_until_the_commit(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks)
    assert view.missing == (0, 1)
    assert len(view.slabs) == 2
    assert client.present(blocks) == 0
    assert await client.commit(view, client.write(blocks, view)) == 2
    assert client.present(blocks) == 2


async def test_only_missing_blocks_are_reserved(client: Any, chain: Any) -> None:
    blocks = chain(1, 2, 3)
    await client.store(blocks[:2])
    view = await client.reserve(blocks)
    assert view.missing == (2,)
    await client.commit(view, client.write(blocks, view))
    nothing = await client.reserve(blocks)
    assert nothing.reservation_id == ""
    assert nothing.missing == ()
    assert nothing.refused_count == 0


async def test_a_block_reserved_by_someone_is_not_reserved_twice(
    client: Any, connect: Any, chain: Any
) -> None:
    other = connect(client.cache)
    blocks = chain(1, 2)
    first = await client.reserve(blocks)
    second = await other.reserve([*blocks, *chain(1, 2, 3)[2:]])
    assert second.missing == (2,)
    third = await other.reserve(blocks)
    assert third.reservation_id == ""
    committed = asyncio.ensure_future(
        other.commit(second, other.write(chain(1, 2, 3), second))
    )  # waits for the parents that the first is storing
    await asyncio.sleep(0)
    assert not committed.done()
    await client.commit(first, client.write(blocks, first))
    assert await committed == 1
    assert client.present(chain(1, 2, 3)) == 3


async def test_what_others_wait_for_stays_until_they_have_continued_it(
    client: Any, connect: Any, chain: Any
) -> None:
    other = connect(client.cache)
    blocks = chain(1, 2, 3)
    first = await client.reserve(blocks[:2])
    second = await other.reserve(blocks)
    await client.commit(first, client.write(blocks[:2], first))
    # More than the arena holds: whatever may leave, leaves.
    await client.store(chain("full", *range(20)))
    assert await other.commit(second, other.write(blocks, second)) == 1
    assert client.present(blocks) == 3


async def test_who_gives_up_again_and_again_is_not_remembered(
    client: Any, connect: Any, chain: Any
) -> None:
    other = connect(client.cache)
    blocks = chain(1, 2, 3)
    first = await client.reserve(blocks[:2])
    for _ in range(5):
        second = await other.reserve(blocks)
        client.cache.abort(other.session_id, second.reservation_id)
        # Every reservation that somebody waits with is a live one: `check_integrity` says so.
        client.cache.check_integrity()
    held = [await client.reserve(chain(f"held {n}")) for n in range(3)]
    with pytest.raises(TooManyReservationsError):
        await client.reserve(blocks, "one too many")
    client.cache.check_integrity()
    for view in [first, *held]:
        client.cache.abort(client.session_id, view.reservation_id)
    client.cache.check_integrity()


async def test_a_repeated_reserve_of_a_session_that_ended_reserves_nothing(
    client: Any, chain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_service.storing.STEP_BLOCKS", 1)  # others come in between
    blocks = chain(*range(6))
    first = asyncio.ensure_future(client.cache.reserve(client.session_id, "r", blocks))
    again = asyncio.ensure_future(client.cache.reserve(client.session_id, "r", blocks))
    await asyncio.sleep(0)
    client.cache.close_session(client.session_id)
    for outcome in await asyncio.gather(first, again, return_exceptions=True):
        assert isinstance(outcome, SessionUnknownError)
    assert client.cache.stats().reservation_count == 0


async def test_who_gave_up_holds_nothing_that_is_stored_later(
    client: Any, connect: Any, chain: Any
) -> None:
    other = connect(client.cache)
    blocks = chain(1, 2, 3)
    first = await client.reserve(blocks[:2])
    second = await other.reserve(blocks)
    client.cache.abort(other.session_id, second.reservation_id)
    await client.commit(first, client.write(blocks[:2], first))
    await client.store(chain("full", *range(20)))
    assert client.present(blocks) == 0


async def test_a_commit_whose_parents_were_given_up_keeps_nothing(
    client: Any, connect: Any, chain: Any
) -> None:
    other = connect(client.cache)
    blocks = chain(1, 2, 3)
    first = await client.reserve(blocks[:2])
    second = await other.reserve(blocks)
    assert second.missing == (2,)
    client.cache.abort(client.session_id, first.reservation_id)
    assert await other.commit(second, other.write(blocks, second)) == 0
    assert client.present(blocks) == 0
    assert client.cache.arena.slab_count == 0


async def test_a_second_commit_gets_the_first_answer(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks)
    sums = client.write(blocks, view)
    assert await client.commit(view, sums) == 2
    assert await client.commit(view, sums) == 2
    assert client.cache.stats().counters["blocks_committed"] == 2


async def test_two_commits_at_once_are_one(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks)
    sums = client.write(blocks, view)
    assert await asyncio.gather(*(client.commit(view, sums, verify=True) for _ in range(3))) == [
        2,
        2,
        2,
    ]


async def test_a_repeated_request_gets_the_same_reservation(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    first = await client.reserve(blocks, request_id="q1")
    again = await client.reserve(blocks, request_id="q1")
    assert again == first
    assert client.cache.stats().reservation_count == 1
    client.cache.abort(client.session_id, first.reservation_id)
    fresh = await client.reserve(blocks, request_id="q1")
    assert fresh.reservation_id not in ("", first.reservation_id)


async def test_a_request_id_used_for_another_chain_gets_no_slabs_of_the_first(
    client: Any, chain: Any
) -> None:
    """Else one chain's payload would be written where another's hash is committed."""
    first = await client.reserve(chain(1, 2), request_id="q1")
    other = await client.reserve(chain("x", "y", "z"), request_id="q1")
    assert other.reservation_id not in ("", first.reservation_id)
    assert other.missing == (0, 1, 2)
    assert set(other.slabs).isdisjoint(first.slabs)
    assert await client.reserve(chain(1, 2), request_id="q1") == first


async def test_a_repeat_during_the_commit_gets_no_slab_that_is_being_committed(
    client: Any, chain: Any
) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks, request_id="q1")
    commit = asyncio.ensure_future(client.commit(view, client.write(blocks, view), verify=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not commit.done()
    again = await client.reserve(blocks, request_id="q1")
    assert (again.reservation_id, again.slabs, again.refused_count) == ("", (), 0)
    assert await commit == 2


async def test_the_number_of_checksums_must_fit_and_the_reservation_survives_it(
    client: Any, chain: Any
) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks)
    sums = client.write(blocks, view)
    with pytest.raises(ChecksumCountMismatchError):
        await client.commit(view, sums[:1])
    assert await client.commit(view, sums) == 2


async def test_a_verified_commit_with_a_wrong_byte_keeps_nothing(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks)
    sums = client.write(blocks, view)
    client.cache.arena.view(view.slabs[1])[0] ^= 1
    for _ in range(2):
        with pytest.raises(ChecksumMismatchError):
            await client.commit(view, sums, verify=True)
    assert client.present(blocks) == 0
    assert client.cache.arena.slab_count == 0


async def test_an_expired_reservation_keeps_nothing_and_its_slabs_rest(
    client: Any, chain: Any, clock: Any
) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks)
    sums = client.write(blocks, view)
    clock.advance(10)
    with pytest.raises(ReservationExpiredError):
        await client.commit(view, sums)
    assert client.present(blocks) == 0
    assert client.cache.stats().quarantined_slab_count == 2
    again = await client.reserve(blocks)
    assert set(again.slabs).isdisjoint(view.slabs)
    clock.advance(5)
    client.cache.tick()
    client.cache.check_integrity()
    assert client.cache.stats().quarantined_slab_count == 0
    assert client.cache.arena.slab_count == 2


async def test_renewing_keeps_a_reservation(client: Any, chain: Any, clock: Any) -> None:
    blocks = chain(1)
    view = await client.reserve(blocks)
    clock.advance(8)
    renewed = client.cache.renew(client.session_id, [view.reservation_id])
    assert renewed == {view.reservation_id: 10}
    clock.advance(8)
    assert await client.commit(view, client.write(blocks, view)) == 1


async def test_abort_frees_at_once_and_is_idempotent(client: Any, chain: Any) -> None:
    view = await client.reserve(chain(1, 2))
    for _ in range(2):
        client.cache.abort(client.session_id, view.reservation_id)
        client.cache.check_integrity()
    assert client.cache.arena.slab_count == 0
    assert client.cache.stats().quarantined_slab_count == 0
    with pytest.raises(ReservationUnknownError):
        await client.commit(view, [1, 2])
    client.cache.abort(client.session_id, "never was")


async def test_when_room_runs_out_the_tail_is_refused_with_its_reason(
    client: Any, chain: Any
) -> None:
    view = await client.reserve(chain(*range(20)))
    assert view.missing == tuple(range(16))
    assert view.refused_count == 4
    assert view.refused_reason is MissReason.ARENA_FULL
    full = await client.reserve(chain("other"))
    assert full.reservation_id == ""
    assert full.refused_count == 1
    blocks = chain(*range(20))
    assert await client.commit(view, client.write(blocks, view)) == 16


async def test_a_reserve_never_evicts_the_parent_it_builds_on(client: Any, chain: Any) -> None:
    blocks = chain(*range(20))
    await client.store(blocks[:16])
    view = await client.reserve(blocks)
    assert view.refused_count == 4
    assert client.present(blocks) == 16


async def test_a_session_holds_a_bounded_number_of_reservations(client: Any, chain: Any) -> None:
    for i in range(4):
        await client.reserve(chain(i))
    with pytest.raises(TooManyReservationsError):
        await client.reserve(chain("more"))
    client.cache.check_integrity()


async def test_a_reserved_slab_is_named_by_its_place_in_the_chain(
    client: Any, chain: Any, clock: Any
) -> None:
    blocks = chain(1, 2, 3)
    await client.store(blocks[:1])
    view = await client.reserve(blocks)
    slab, _ = client.cache.reserved_slab(client.session_id, view.reservation_id, 2)
    assert slab == view.slabs[1]
    with pytest.raises(InvalidRangeError):
        client.cache.reserved_slab(client.session_id, view.reservation_id, 0)
    with pytest.raises(ReservationUnknownError):
        client.cache.reserved_slab(client.session_id, "unknown", 0)
    clock.advance(10)
    with pytest.raises(ReservationExpiredError):
        client.cache.reserved_slab(client.session_id, view.reservation_id, 2)


async def test_a_commit_survives_the_end_of_its_session(client: Any, chain: Any) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks)
    commit = asyncio.ensure_future(client.commit(view, client.write(blocks, view), verify=True))
    await asyncio.sleep(0)
    client.cache.close_session(client.session_id)
    assert await commit == 2
    client.cache.check_integrity()
    with pytest.raises(SessionUnknownError):
        await client.commit(view, [])


async def test_a_caller_that_goes_away_during_its_commit_leaves_a_whole_one(
    client: Any, chain: Any
) -> None:
    blocks = chain(1, 2)
    view = await client.reserve(blocks)
    commit = asyncio.ensure_future(client.commit(view, client.write(blocks, view), verify=True))
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    await client.cache.drain()
    assert client.present(blocks) == 2


async def test_draining_takes_no_more_blocks(client: Any, chain: Any) -> None:
    await client.cache.drain()
    view = await client.reserve(chain(1))
    assert view.refused_count == 1
    assert view.refused_reason is MissReason.UNAVAILABLE


async def test_a_commit_that_waits_may_be_renewed(
    arena: Any, limits: Any, clock: Any, connect: Any, chain: Any
) -> None:
    """Its deadline was moved past what a renewal gives: that must not move it back."""
    longer = replace(limits, reservation_grace_seconds=20, room_wait_seconds=5)
    cache = Cache(arena, None, longer, clock, QuietListener())
    client, other = connect(cache), connect(cache)
    blocks = chain(1, 2)
    first = await client.reserve(blocks[:1])
    second = await other.reserve(blocks)
    committing = asyncio.ensure_future(
        cache.commit(
            other.session_id, second.reservation_id, other.write(blocks, second), verify=False
        )
    )
    await asyncio.sleep(0)
    clock.advance(limits.reservation_ttl_seconds - 1)
    cache.renew(client.session_id, [first.reservation_id])
    clock.advance(2)
    cache.tick()  # the second is overdue, but being committed
    assert cache.renew(other.session_id, [second.reservation_id])[second.reservation_id]
    await client.commit(first, client.write(blocks[:1], first))
    assert await committing == 1
    cache.check_integrity()
