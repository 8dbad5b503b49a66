"""Tickets and transfers of the bulk lane: what a thread holds stays its own until it says so."""

import asyncio
from typing import Any

import pytest

from cache_service.bulk.tickets import PER_SESSION_MAX, TICKET_SECONDS, Tickets
from cache_service.bulk.transfers import LaneEntry, StoreTransfer, Transfers
from cache_service.cache import Cache
from cache_service.errors import (
    InvalidRangeError,
    InvalidTransportError,
    LeaseUnknownError,
    ReservationExpiredError,
    ReservationIncompleteError,
    ReservationUnknownError,
    SessionUnknownError,
    TicketRefusedError,
    TooManyLanesError,
)
from cache_service.views import Transport
from kvtier.bulk import StopReason
from kvtier.keys import payload_checksum
from tests.unit.cache_service.conftest import (
    BLOCK_BYTES,
    NAMESPACE,
    Client,
    HandClock,
    chain_of,
    payload_of,
)


class Cuts:
    """Counts how often a connection was cut."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def bulk(cache: Cache) -> Transfers:
    return cache.bulk


@pytest.fixture
def client(cache: Cache) -> Client:
    return Client(cache, cache.open_session(NAMESPACE, BLOCK_BYTES, 4, "c", Transport.BULK, "me"))


def lane_of(bulk: Transfers, client: Client, cut: Any = Cuts) -> LaneEntry:
    cut = cut() if cut is Cuts else cut
    return bulk.enter(bulk.ticket(client.session_id, "me"), "me", cut)


def receive(transfer: StoreTransfer, count: int | None = None) -> None:
    """What a lane's thread does with good bytes, of all that is left or the next `count` blocks."""
    rest = list(zip(transfer.hashes, transfer.views, strict=True))[transfer.standing :]
    for block_hash, view in rest[:count]:
        view[:] = payload_of(block_hash)
        transfer.standing += 1


def sums_of(transfer: StoreTransfer) -> list[int]:
    """The right checksums of all that is missing."""
    return [payload_checksum(block_hash, payload_of(block_hash)) for block_hash in transfer.hashes]


# Tickets.


def test_a_ticket_works_once_for_whom_it_was_given() -> None:
    tickets = Tickets()
    ticket = tickets.give("s", "me", 0.0)
    assert tickets.take(ticket, "me", 1.0) == "s"
    with pytest.raises(TicketRefusedError):
        tickets.take(ticket, "me", 1.0)
    tickets.leave("s")
    tickets.check_integrity()


def test_a_stolen_ticket_is_refused_and_used_up() -> None:
    tickets = Tickets()
    ticket = tickets.give("s", "me", 0.0)
    for principal in ("another", "me"):
        with pytest.raises(TicketRefusedError):
            tickets.take(ticket, principal, 1.0)
    assert len(tickets) == 0
    tickets.check_integrity()


def test_a_ticket_ends_by_itself_and_with_its_session() -> None:
    tickets = Tickets()
    old = tickets.give("s", "me", 0.0)
    with pytest.raises(TicketRefusedError):
        tickets.take(old, "me", TICKET_SECONDS)
    ticket = tickets.give("s", "me", 100.0)
    tickets.close_session("s")
    with pytest.raises(TicketRefusedError):
        tickets.take(ticket, "me", 100.0)
    tickets.check_integrity()


def test_a_session_has_so_many_tickets_and_connections() -> None:
    tickets = Tickets()
    for _ in range(PER_SESSION_MAX):
        tickets.take(tickets.give("s", "me", 0.0), "me", 0.0)
    with pytest.raises(TooManyLanesError):
        tickets.give("s", "me", 0.0)
    assert tickets.give("another", "me", 0.0)
    tickets.leave("s")
    assert tickets.give("s", "me", 0.0)
    tickets.check_integrity()


async def test_a_ticket_is_for_bulk_sessions(cache: Cache, bulk: Transfers) -> None:
    view = cache.open_session(NAMESPACE, BLOCK_BYTES, 4, "c", Transport.STREAM)
    with pytest.raises(InvalidTransportError):
        bulk.ticket(view.session_id, "me")
    with pytest.raises(SessionUnknownError):
        bulk.ticket("nobody", "me")


async def test_a_ticket_dies_with_its_session(
    cache: Cache, bulk: Transfers, client: Client
) -> None:
    ticket = bulk.ticket(client.session_id, "me")
    cache.close_session(client.session_id)
    with pytest.raises(TicketRefusedError):
        bulk.enter(ticket, "me", Cuts())


# Stores.


async def test_what_came_over_the_lane_is_committed_without_reading_it_again(
    cache: Cache, bulk: Transfers, client: Client
) -> None:
    chain = chain_of(1, 2, 3)
    view = await client.reserve(chain)
    transfer = await bulk.begin_store(lane_of(bulk, client), view.reservation_id)
    sums = sums_of(transfer)
    receive(transfer)
    assert bulk.end_store(transfer) is None
    assert await client.commit(view, sums) == 3
    acquired = await client.acquire(chain)
    client.check_payloads(chain, acquired)
    client.release(acquired)


async def test_a_commit_needs_every_block(cache: Cache, bulk: Transfers, client: Client) -> None:
    chain = chain_of(1, 2)
    view = await client.reserve(chain)
    lane = lane_of(bulk, client)
    transfer = await bulk.begin_store(lane, view.reservation_id)
    with pytest.raises(ReservationIncompleteError):
        await client.commit(view, [0, 0])
    sums = sums_of(transfer)
    receive(transfer, 1)
    bulk.end_store(transfer)
    with pytest.raises(ReservationIncompleteError):
        await client.commit(view, sums)
    again = await bulk.begin_store(lane, view.reservation_id)
    assert again.standing == 1
    with pytest.raises(ReservationIncompleteError):
        await client.commit(view, sums)
    receive(again)
    bulk.end_store(again)
    assert await client.commit(view, sums) == 2
    cache.check_integrity()
    assert client.present(chain) == 2


@pytest.mark.parametrize("how", ["abort", "expire", "close"])
async def test_slabs_are_not_free_while_a_thread_writes_them(
    cache: Cache, bulk: Transfers, client: Client, clock: HandClock, how: str
) -> None:
    view = await client.reserve(chain_of(1, 2))
    cuts = Cuts()
    transfer = await bulk.begin_store(lane_of(bulk, client, cuts), view.reservation_id)
    if how == "abort":
        cache.abort(client.session_id, view.reservation_id)
    elif how == "close":
        cache.close_session(client.session_id)
    else:
        clock.advance(31)
        cache.renew(client.session_id, [])
    for _ in range(3):
        clock.advance(40)
        cache.tick()
        cache.check_integrity()
        assert cache.arena.slab_count == 2, "the thread may still write"
    assert cuts.count, "its thread was told"
    assert transfer.ended is not None
    receive(transfer)
    assert bulk.end_store(transfer) is not None
    cache.check_integrity()
    assert cache.arena.slab_count == 0
    assert bulk.transfer_count == 0


async def test_a_new_store_takes_over_from_an_older_one(
    cache: Cache, bulk: Transfers, client: Client
) -> None:
    view = await client.reserve(chain_of(1, 2))
    cuts = Cuts()
    older = await bulk.begin_store(lane_of(bulk, client, cuts), view.reservation_id)
    newer = asyncio.create_task(bulk.begin_store(lane_of(bulk, client), view.reservation_id))
    await asyncio.sleep(0)
    assert cuts.count == 1
    assert not newer.done()
    receive(older, 1)
    bulk.end_store(older)
    transfer = await newer
    assert transfer.standing == 1
    sums = sums_of(transfer)
    receive(transfer)
    bulk.end_store(transfer)
    assert await client.commit(view, sums) == 2


async def test_two_that_wait_for_the_same_reservation_come_one_after_the_other(
    cache: Cache, bulk: Transfers, client: Client
) -> None:
    view = await client.reserve(chain_of(1))
    older = await bulk.begin_store(lane_of(bulk, client), view.reservation_id)
    waiting = [
        asyncio.create_task(bulk.begin_store(lane_of(bulk, client), view.reservation_id))
        for _ in range(2)
    ]
    await asyncio.sleep(0)
    bulk.end_store(older)
    done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    cache.check_integrity()
    bulk.end_store(done.pop().result())
    bulk.end_store(await pending.pop())
    cache.abort(client.session_id, view.reservation_id)
    cache.check_integrity()
    assert cache.arena.slab_count == 0


async def test_a_store_of_a_foreign_or_ended_reservation_is_refused(
    cache: Cache, bulk: Transfers, client: Client, clock: HandClock
) -> None:
    other = Client(
        cache, cache.open_session(NAMESPACE, BLOCK_BYTES, 4, "o", Transport.BULK, "other")
    )
    foreign = await other.reserve(chain_of("x"))
    lane = lane_of(bulk, client)
    for reservation_id in (foreign.reservation_id, "00" * 16):
        with pytest.raises(ReservationUnknownError):
            await bulk.begin_store(lane, reservation_id)
    view = await client.reserve(chain_of("y"))
    clock.advance(31)
    with pytest.raises(ReservationExpiredError):
        await bulk.begin_store(lane, view.reservation_id)
    cache.check_integrity()


# Loads.


async def test_a_load_holds_its_blocks_whatever_becomes_of_the_lease(
    cache: Cache, bulk: Transfers, client: Client, clock: HandClock
) -> None:
    chain = chain_of(1, 2, 3)
    view = await client.reserve(chain)
    store = await bulk.begin_store(lane_of(bulk, client), view.reservation_id)
    sums = sums_of(store)
    receive(store)
    bulk.end_store(store)
    await client.commit(view, sums)
    acquired = await client.acquire(chain)
    cuts = Cuts()
    load = bulk.begin_load(lane_of(bulk, client, cuts), acquired.match.lease_id, 0, 3)
    client.release(acquired)
    cache.tick()
    assert load.ended is StopReason.LEASE_UNKNOWN
    other = Client(cache, cache.open_session(NAMESPACE, BLOCK_BYTES, 4, "o", Transport.STREAM))
    await other.store(chain_of(*range(100, 116)))
    assert [bytes(v) for v in load.views] == [payload_of(h) for h in chain]
    cache.check_integrity()
    cache.tick()
    assert cuts.count == 1, "it hangs over bytes that nobody takes"
    bulk.end_load(load)
    cache.check_integrity()
    assert await other.store(chain_of(*range(200, 216))) == 16, "its slabs are free again"


async def test_a_load_of_what_is_not_leased_or_not_readable_is_refused(
    cache: Cache, bulk: Transfers, client: Client
) -> None:
    chain = chain_of(1, 2)
    other = Client(
        cache, cache.open_session(NAMESPACE, BLOCK_BYTES, 4, "o", Transport.STREAM, "other")
    )
    await other.store(chain)
    lane = lane_of(bulk, client)
    theirs = await other.acquire(chain)
    with pytest.raises(LeaseUnknownError):
        bulk.begin_load(lane, theirs.match.lease_id, 0, 1)
    mine = await client.acquire(chain)
    for first, count in ((0, 0), (0, 3), (2, 1), (2**32 - 1, 2**32 - 1)):
        with pytest.raises(InvalidRangeError):
            bulk.begin_load(lane, mine.match.lease_id, first, count)
    cache.close_session(client.session_id)
    with pytest.raises(SessionUnknownError):
        bulk.begin_load(lane, mine.match.lease_id, 0, 1)
    cache.check_integrity()


async def test_connections_of_a_session_that_ended_are_cut(
    cache: Cache, bulk: Transfers, client: Client
) -> None:
    cuts = Cuts()
    lane = lane_of(bulk, client, cuts)
    cache.tick()
    assert not cuts.count
    cache.close_session(client.session_id)
    cache.tick()
    assert cuts.count
    bulk.leave(lane)
    cache.tick()
    assert bulk.lane_count == 0
    cache.check_integrity()
