"""Two cache services and one shared tier: what one stored the other one finds, checked."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_service.attest.attestation import TierBlocks
from cache_service.attest.dialect import ATTESTATION_FORMAT
from cache_service.attest.witness import ALIVE_FILE, Identity, Witness
from cache_service.hints import ChainPlace, Hints
from cache_service.purge_views import PurgeKind, PurgeTarget, SharedForgetting
from cache_service.views import EndView
from journal.journal import Journal
from journal.outbox import Outbox
from kvtier.blocks import MissReason, Tier
from kvtier.breaker import BreakerState
from storage.shared.tier import SharedLimits
from storage.tier import PAGE_BYTES
from tests.shared.faulty_store import hang, refuse
from tests.shared.hosts import ROOT, Acquired, Gate, Host, acquire, hit
from tests.unit.cache_service.conftest import NAMESPACE


async def test_what_one_host_stored_another_one_finds(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    blocks = chain(*range(30))
    await connect(a.cache).store(blocks)
    await a.written()
    client = connect(b.cache)
    assert client.present(blocks) == 0
    match, ready, end = await acquire(client, blocks)
    assert match.tiers == bytes([Tier.SHARED]) * 30
    assert end == EndView(30, MissReason.NONE)
    client.check_payloads(blocks, Acquired(match, ready, end))
    client.cache.release(client.session_id, match.lease_id, [])
    # From now on it is this host's, and nobody is asked.
    asked = len(b.store.calls)
    assert (await acquire(client, blocks))[0].tiers == bytes([Tier.HOST]) * 30
    assert len(b.store.calls) == asked
    assert b.counters["shared_blocks_read"] == 30


async def test_a_local_prefix_is_continued_by_the_shared_tier(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    blocks = chain(*range(37))
    await connect(a.cache).store(blocks)
    await a.written()
    client = connect(b.cache)
    await client.store(blocks[:10])
    match, ready, end = await acquire(client, blocks)
    assert match.tiers == bytes([Tier.HOST]) * 10 + bytes([Tier.SHARED]) * 27
    client.check_payloads(blocks, Acquired(match, ready, end))
    assert end.ready_count == 37


async def test_a_chain_from_its_middle_needs_the_block_before(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    blocks = chain(*range(24))
    await connect(a.cache).store(blocks)
    await a.written()
    client = connect(b.cache)
    middle = Hints(place=ChainPlace(10, blocks[9]))
    assert (await acquire(client, blocks[10:], middle))[2].ready_count == 0
    await client.store(blocks[:10])
    assert (await hit(client, blocks[10:], hints=middle)).ready_count == 14
    assert client.present(blocks) == 24


async def test_without_a_place_nobody_is_asked(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    blocks = chain(*range(8))
    await connect(a.cache).store(blocks)
    await a.written()
    assert (await acquire(connect(b.cache), blocks, Hints()))[2].ready_count == 0
    assert b.store.calls == []


async def test_a_conversation_that_moves_back_and_forth_is_never_lost(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    hosts = [host(), host()]
    clients = [connect(each.cache) for each in hosts]
    blocks = chain(*range(60))
    done = 0
    for turn, end in enumerate((7, 12, 21, 22, 38, 47, 60)):
        client = clients[turn % 2]
        found = await hit(client, blocks[:end])
        # All that was there before this turn.
        assert found.ready_count == done, turn
        await client.store(blocks[:end])
        await hosts[turn % 2].written()
        done = end


async def test_chains_that_part_share_what_was_before(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    one, other = chain(*range(20)), chain(*range(9), *range(100, 111))
    client = connect(a.cache)
    await client.store(one)
    await client.store(other)
    await a.written()
    third = chain(*range(9), *range(200, 211))
    assert (await hit(connect(b.cache), third)).ready_count == 9


@pytest.mark.parametrize("fault", [hang, refuse])
async def test_an_engine_that_fails_costs_its_deadline_and_then_nothing(
    host: Callable[..., Host], connect: Any, chain: Any, clock: Any, fault: Any
) -> None:
    a = host()
    a.store.before = fault
    client = connect(a.cache)
    for number in range(3):
        found = await acquire(client, chain("x", number, *range(6)))
        assert found[2].ready_count == 0
    asked = len(a.store.calls)
    assert a.cache.shared is not None
    assert a.cache.shared.breaker.state is BreakerState.OPEN
    blocks = chain("y", *range(6))
    assert (await acquire(client, blocks))[2].ready_count == 0
    await client.store(blocks)
    assert len(a.store.calls) == asked
    assert a.counters["shared_blocks_dropped_unavailable"] > 0
    a.store.before = lambda _call: None
    clock.advance(6)
    assert a.cache.shared.breaker.ready
    await acquire(client, chain("z", *range(6)))
    assert a.cache.shared.breaker.state is BreakerState.CLOSED


async def test_bad_bytes_shorten_the_prefix_and_nothing_of_them_is_kept(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    blocks = chain(*range(40))
    await connect(a.cache).store(blocks)
    await a.written()
    b.store.spoil = lambda name, raw: raw[:-9] if blocks[31].hex() in name else raw
    client = connect(b.cache)
    end = await hit(client, blocks)
    assert end == EndView(16, MissReason.CORRUPT)
    assert client.present(blocks) == 16
    assert b.arena.used_bytes == 16 * PAGE_BYTES


async def test_an_acquire_that_is_given_up_holds_nothing(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    blocks = chain(*range(40))
    await connect(a.cache).store(blocks)
    await a.written()
    client = connect(b.cache)
    events = b.cache.acquire(client.session_id, "r", blocks, 5.0, ROOT)
    assert (await anext(events)).matched_count == 40
    await events.aclose()
    b.cache.check_integrity()
    assert b.cache.shared is not None
    assert b.cache.shared.slab_count == 0
    assert b.cache.stats().lease_count == 0


@pytest.mark.parametrize("turns", range(8))
async def test_an_acquire_that_is_given_up_more_than_once_holds_nothing(
    host: Callable[..., Host], connect: Any, chain: Any, turns: int
) -> None:
    a, b = host(), host()
    blocks = chain(*range(40))
    await connect(a.cache).store(blocks)
    await a.written()
    client = connect(b.cache)
    await client.store(blocks[:3])
    await b.written()
    gate = Gate(b, after=bool(turns % 2))
    acquiring = asyncio.ensure_future(acquire(client, blocks))
    await gate.reached.wait()
    for _ in range(turns):
        acquiring.cancel()
        await asyncio.sleep(0)
    acquiring.cancel()
    await asyncio.wait({acquiring})
    assert b.cache.shared is not None
    async with asyncio.timeout(10):
        while b.cache.shared.slab_count:
            await asyncio.sleep(0.001)
    b.cache.check_integrity()
    assert b.cache.stats().lease_count == 0
    assert b.arena.used_bytes == 3 * PAGE_BYTES


@pytest.mark.parametrize("hung", ["exists", "write", "close"])
async def test_an_engine_that_hangs_does_not_hold_up_the_end(
    host: Callable[..., Host], connect: Any, chain: Any, hung: str
) -> None:
    a = host(shared_limits=SharedLimits(600, 600))
    a.store.before = lambda call: hang(call) if call == hung else None
    client = connect(a.cache)
    for number in range(20):
        await client.store(chain(number, "a"))
    async with asyncio.timeout(60):
        await a.cache.drain()
    a.cache.check_integrity()


async def test_a_read_that_hangs_ends_with_the_acquire_s_deadline(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    blocks = chain(*range(8))
    await connect(a.cache).store(blocks)
    await a.written()
    b.store.before = lambda call: hang(call) if call == "read" else None
    began = asyncio.get_running_loop().time()
    end = (await acquire(connect(b.cache), blocks, timeout=0.1))[2]
    assert end.ready_count == 0
    assert end.miss_reason in (MissReason.DEADLINE, MissReason.UNAVAILABLE)
    assert asyncio.get_running_loop().time() - began < 2


async def test_memory_without_room_ends_the_prefix(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host(slabs=20)
    blocks = chain(*range(40))
    await connect(a.cache).store(blocks)
    await a.written()
    end = await hit(connect(b.cache), blocks)
    assert end == EndView(20, MissReason.ARENA_FULL)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(PurgeKind.PREFIX, SharedForgetting.KNOWN), (PurgeKind.EVERYTHING, SharedForgetting.WHOLE)],
)
async def test_a_purge_reaches_the_shared_tier(
    host: Callable[..., Host], connect: Any, chain: Any, kind: PurgeKind, said: SharedForgetting
) -> None:
    a, b = host(), host()
    blocks = chain(*range(24))
    await connect(a.cache).store(blocks)
    await a.written()
    target = PurgeTarget(kind)
    if kind is PurgeKind.PREFIX:
        target = PurgeTarget(kind, NAMESPACE, blocks[0])
    assert (await a.cache.purging.start(target, dry_run=False)).shared_forgetting is said
    assert (await acquire(connect(b.cache), blocks))[2].ready_count == 0
    # What is stored afterwards is written again.
    await connect(a.cache).store(blocks)
    await a.written()
    assert (await hit(connect(b.cache), blocks)).ready_count == 24


async def test_a_purge_that_the_engine_does_not_take_is_pending(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a = host()
    blocks = chain(*range(24))
    await connect(a.cache).store(blocks)
    await a.written()
    a.store.before = refuse
    target = PurgeTarget(PurgeKind.PREFIX, NAMESPACE, blocks[0])
    view = await a.cache.purging.start(target, dry_run=False)
    assert (view.block_count, view.shared_forgetting) == (24, SharedForgetting.PENDING)


async def test_what_came_from_the_shared_tier_is_attested_as_such(
    host: Callable[..., Host], connect: Any, chain: Any, tmp_path: Path
) -> None:
    a, b = host(), host()
    blocks = chain(*range(24))
    await connect(a.cache).store(blocks)
    await a.written()
    journal: Any = Journal(ATTESTATION_FORMAT, tmp_path / "journal")
    (tmp_path / "journal" / ALIVE_FILE).write_text("run-1")
    witness = Witness(journal, Identity("node-1", "run-1"), lambda _count: None, time.time_ns)
    b.cache.attest(witness)
    client = connect(b.cache)
    await client.store(blocks[:4])
    match = (await acquire(client, blocks))[0]
    client.cache.release(client.session_id, match.lease_id, [])
    # One that gets only a part of what was found.
    b.store.spoil = lambda _name, _raw: None
    other = connect(a.cache)
    more = [*blocks, *chain(*range(24), *range(50, 60))[24:]]
    await other.store(more)
    await a.written()
    match = (await acquire(client, more))[0]
    client.cache.release(client.session_id, match.lease_id, [])
    await b.cache.drain()
    outbox: Any = Outbox(ATTESTATION_FORMAT, journal.directory, 0, lambda: journal.durable_sequence)
    first, second = [each.event for each in outbox.pending(100)]
    assert (first.grant.granted, first.served) == (TierBlocks(4, 0, 20), TierBlocks(4, 0, 20))
    assert (second.grant.granted, second.served) == (TierBlocks(24, 0, 10), TierBlocks(24, 0, 0))
    journal.close()


async def test_one_off_blocks_stay_here(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a = host()
    await connect(a.cache).store(chain(*range(8)), Hints(one_off=True))
    await a.written()
    assert a.store.calls == []
