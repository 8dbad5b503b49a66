"""Blocks that come from the shared tier while memory or their owner's quota has no room for all."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_service.block_tree import ABSENT
from cache_service.hints import ChainPlace, Hints
from cache_service.owner_runs import OwnerRuns
from cache_service.quotas import Quota, Quotas
from cache_service.views import CachePolicies
from kvtier.blocks import MissReason
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.shared.hosts import Gate, Host, acquire, hit
from tests.unit.cache_service.conftest import BLOCK_BYTES

OWNED = Hints(owners=OwnerRuns(("acme",), (64,)))


def hard(count: int) -> CachePolicies:
    quota = Quota(host_hard_bytes=count * BLOCK_BYTES)
    return CachePolicies(quotas=Quotas({"acme": quota}))


@pytest.mark.parametrize("stored", [1, 3, 4])
async def test_what_came_meanwhile_is_not_pushed_out_by_what_continues_it(
    host: Callable[..., Host], connect: Any, chain: Any, stored: int
) -> None:
    a, b = host(), host(policies=hard(4))
    blocks = chain(*range(16))
    await connect(a.cache).store(blocks, OWNED)
    await a.written()
    client, other = connect(b.cache), connect(b.cache)
    gate = Gate(b)
    acquiring = asyncio.ensure_future(hit(client, blocks))
    await gate.reached.wait()
    assert await other.store(blocks[:stored], OWNED) == stored
    await b.written()
    gate.opened.set()
    end = await acquiring
    assert end.miss_reason is MissReason.QUOTA
    assert end.ready_count == 4
    assert client.present(blocks) == 4


async def test_what_came_meanwhile_as_a_one_off_is_like_what_continues_it(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    a, b = host(), host()
    blocks = chain(*range(16))
    await connect(a.cache).store(blocks)
    await a.written()
    client, other = connect(b.cache), connect(b.cache)
    gate = Gate(b)
    acquiring = asyncio.ensure_future(hit(client, blocks))
    await gate.reached.wait()
    await other.store(blocks[:5], Hints(one_off=True))
    gate.opened.set()
    assert (await acquiring).ready_count == 16
    # The block before a part of a chain, too.
    more = chain("more", *range(16))
    await connect(a.cache).store(more)
    await a.written()
    await client.store(more[:4], Hints(one_off=True))
    middle = Hints(place=ChainPlace(4, more[3]))
    assert (await hit(client, more[4:], hints=middle)).ready_count == 13


async def test_a_lease_that_ends_while_a_read_is_under_way_strands_nothing(
    host: Callable[..., Host], connect: Any, chain: Any, clock: Any
) -> None:
    a, b = host(), host(slabs=20)
    blocks = chain(*range(16))
    await connect(a.cache).store(blocks)
    await a.written()
    client, other = connect(b.cache), connect(b.cache)
    await client.store(blocks[:3])
    gate = Gate(b)
    acquiring = asyncio.ensure_future(acquire(client, blocks))
    await gate.reached.wait()
    clock.advance(11)
    b.cache.tick()
    # Takes the rows and the slabs of all that may leave.
    await other.store(chain("others", *range(40)))
    await b.written()
    gate.opened.set()
    assert (await acquiring)[2].ready_count == 0
    b.cache.check_integrity()
    tree = b.cache._parts.index.tree
    for before, block in itertools.pairwise(blocks):
        row = tree.find(block)
        if row != ABSENT:
            assert tree.block_hash(tree.parent(row)) == before


async def test_what_only_the_ssd_has_counts_on_its_account_when_it_comes(
    host: Callable[..., Host], connect: Any, chain: Any, tmp_path: Path
) -> None:
    ssd = SsdTier.open(tmp_path / "ssd", capacity_bytes=64 * 16 * PAGE_BYTES, segment_bytes=1 << 20)
    a, b = host(), host(policies=hard(6), ssd=ssd)
    blocks = chain(*range(16))
    await connect(a.cache).store(blocks, OWNED)
    await a.written()
    client, other = connect(b.cache), connect(b.cache)
    gate = Gate(b)
    acquiring = asyncio.ensure_future(hit(client, blocks))
    await gate.reached.wait()
    await other.store(blocks[:6], OWNED)
    while b.cache.stats().pending_write_count:
        await asyncio.sleep(0.001)
    # Pushes them out of host memory.
    await other.store(chain("others", *range(6)), OWNED)
    await b.written()
    while b.cache.stats().pending_write_count:
        await asyncio.sleep(0.001)
    assert other.present(blocks) == 6
    gate.opened.set()
    assert (await acquiring).ready_count == 6


async def test_what_a_tenant_loads_takes_nothing_that_is_within_another_s_quota(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    quotas = {
        "quiet": Quota(host_soft_bytes=6 * BLOCK_BYTES),
        "flood": Quota(host_soft_bytes=6 * BLOCK_BYTES),
    }
    a, b = host(), host(slabs=12, policies=CachePolicies(quotas=Quotas(quotas)))
    flood = Hints(owners=OwnerRuns(("flood",), (64,)))
    long = chain("flood", *range(20))
    await connect(a.cache).store(long, flood)
    await a.written()
    quiet = chain(*range(6))
    client, other = connect(b.cache), connect(b.cache)
    assert await client.store(quiet, Hints(owners=OwnerRuns(("quiet",), (64,)))) == 6
    await b.written()
    for _ in range(3):
        # As much as a store gets: its own quota's worth, and then its own make room.
        found = await hit(other, long)
        assert client.present(quiet) == 6
        assert found.ready_count == 6, found
        b.cache.check_integrity()


async def test_a_load_counts_on_its_owner_while_it_is_under_way(
    host: Callable[..., Host], connect: Any, chain: Any
) -> None:
    """Two at once do not get more than one quota together."""
    a, b = host(), host(slabs=40, policies=hard(8))
    chains = [chain(number, *range(15)) for number in range(3)]
    for each in chains:
        await connect(a.cache).store(each, OWNED)
        await a.written()
    clients = [connect(b.cache) for _ in chains]
    pairs = zip(clients, chains, strict=True)
    found = await asyncio.gather(*(acquire(client, each) for client, each in pairs))
    b.cache.check_integrity()
    assert sum(end.ready_count for _, _, end in found) <= 8
