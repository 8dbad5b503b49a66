"""Purges and the shared tier: nothing that was purged comes back, and nothing is said too early."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cache_service.purge_views import PurgeKind, PurgeTarget, SharedForgetting
from kvtier.blocks import MissReason
from tests.shared.faulty_store import refuse
from tests.shared.hosts import Gate, Host, acquire, hit
from tests.unit.cache_service.conftest import NAMESPACE

KINDS = [PurgeKind.PREFIX, PurgeKind.NAMESPACE, PurgeKind.EVERYTHING]


def target_of(kind: PurgeKind, blocks: list[Any]) -> PurgeTarget:
    if kind is PurgeKind.PREFIX:
        return PurgeTarget(kind, NAMESPACE, blocks[0])
    return PurgeTarget(kind, NAMESPACE if kind is PurgeKind.NAMESPACE else None)


async def shared(host: Host) -> None:
    """Lets the side do what is due, as the tick of the service does."""
    assert host.cache.shared is not None
    host.cache.tick()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_the_engine_did_not_delete_is_deleted_later(
    host: Callable[..., Host], connect: Any, chain: Any, clock: Any, kind: PurgeKind
) -> None:
    a, b = host(), host()
    blocks = chain(*range(24))
    await connect(a.cache).store(blocks)
    await a.written()
    a.store.before = refuse
    view = await a.cache.purging.start(target_of(kind, blocks), dry_run=False)
    assert view.shared_forgetting is SharedForgetting.PENDING
    assert view.shared_left_count == (24 if kind is PurgeKind.PREFIX else 0)
    a.store.before = lambda _call: None
    # Not loaded here meanwhile.
    client = connect(a.cache)
    assert (await acquire(client, blocks))[2].ready_count == 0
    clock.advance(6)
    await shared(a)
    assert (await acquire(connect(b.cache), blocks))[2].ready_count == 0
    # What is stored afterwards goes there again, and is found.
    await client.store(blocks)
    await a.written()
    assert (await hit(connect(b.cache), blocks)).ready_count == 24


async def test_a_try_that_fails_again_is_tried_again_later_and_later(
    host: Callable[..., Host], connect: Any, chain: Any, clock: Any
) -> None:
    a = host()
    blocks = chain(*range(8))
    await connect(a.cache).store(blocks)
    await a.written()
    a.store.before = refuse
    await a.cache.purging.start(target_of(PurgeKind.PREFIX, blocks), dry_run=False)
    tries = []
    for _ in range(8):
        asked = len(a.store.calls)
        clock.advance(6)
        await shared(a)
        tries.append(len(a.store.calls) > asked)
    assert tries == [True, False, True, False, False, False, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before the read", "after the read"])
async def test_a_load_under_way_brings_nothing_back(
    host: Callable[..., Host], connect: Any, chain: Any, kind: PurgeKind, when: str
) -> None:
    a, b = host(), host()
    blocks = chain(*range(16))
    await connect(a.cache).store(blocks)
    await a.written()
    client = connect(b.cache)
    gate = Gate(b, after=when == "after the read")
    acquiring = asyncio.ensure_future(acquire(client, blocks))
    await gate.reached.wait()
    other = connect(b.cache)
    await other.store(chain("other", 1))
    # It is read from the engine already, or the engine still has it.
    b.store.before = refuse if when == "before the read" else b.store.before
    await b.cache.purging.start(target_of(kind, blocks), dry_run=False)
    gate.opened.set()
    end = (await acquiring)[2]
    assert (end.ready_count, end.miss_reason) == (0, MissReason.PURGED)
    assert client.present(blocks) == 0


async def test_a_load_while_a_purge_deletes_brings_nothing_back(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a = host()
    blocks = chain(*range(16))
    client = connect(a.cache)
    await client.store(blocks)
    await a.written()
    deleting, go_on = asyncio.Event(), asyncio.Event()

    def held(call: str) -> "asyncio.Future[bool] | None":
        if call not in ("delete", "delete_below"):
            return None
        deleting.set()
        return asyncio.ensure_future(go_on.wait())

    a.store.before = held
    purge = a.cache.purging.start(target_of(PurgeKind.PREFIX, blocks), dry_run=False)
    await deleting.wait()
    assert (await acquire(client, blocks))[2].ready_count == 0
    go_on.set()
    assert (await purge).shared_forgetting is SharedForgetting.KNOWN
    assert client.present(blocks) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_said_to_be_deleted_while_it_is_written(
    host: Callable[..., Host], connect: Any, chain: Any, clock: Any, kind: PurgeKind
) -> None:
    a, b = host(), host()
    blocks = chain(*range(16))
    writing, go_on = asyncio.Event(), asyncio.Event()

    def held(call: str) -> "asyncio.Future[bool] | None":
        if call != "write":
            return None
        writing.set()
        return asyncio.ensure_future(go_on.wait())

    a.store.before = held
    await connect(a.cache).store(blocks)
    await writing.wait()
    purge = a.cache.purging.start(target_of(kind, blocks), dry_run=False)
    await asyncio.sleep(0.05)
    assert not purge.done()
    go_on.set()
    said = (await purge).shared_forgetting
    assert said is (SharedForgetting.KNOWN if kind is PurgeKind.PREFIX else SharedForgetting.WHOLE)
    assert (await acquire(connect(b.cache), blocks))[2].ready_count == 0
