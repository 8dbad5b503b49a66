"""Quotas: what an account may have, who leaves for whom, and how a refusal is told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.cache import Cache
from cache_service.hints import Hints
from cache_service.index import BlockIndex
from cache_service.listener import QuietListener
from cache_service.owner_runs import OwnerRuns
from cache_service.quotas import Quota, Quotas, parse_quotas
from cache_service.recycling import plan_recycling
from cache_service.room import HostRoom
from cache_service.views import CacheLimits, CachePolicies
from kvtier.blocks import MissReason
from storage.host.arena import HostArena
from storage.policy.choice import POLICIES
from storage.policy.greedy_dual import GreedyDual
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.unit.cache_service.conftest import BLOCK_BYTES, NAMESPACE, chain_of

SEGMENT_BYTES = 17 * PAGE_BYTES
GIB = 1 << 30


def owned(path: str, *, one_off: bool = False) -> Hints:
    return Hints(one_off=one_off, owners=OwnerRuns((path,), (64,)))


def blocks(**counts: int) -> Quota:
    """Bounds in blocks."""
    return Quota(**{f"{name}_bytes": count * BLOCK_BYTES for name, count in counts.items()})


Start = Callable[..., Cache]


@pytest.fixture
def start(tmp_path: Any, limits: CacheLimits, clock: Any) -> Start:
    """A cache of sixteen slabs; `ssd`: with six segments of eight blocks."""

    def started(quotas: dict[str, Quota], *, ssd: bool = False, **policies: Any) -> Cache:
        arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        tier = None
        if ssd:
            tier = SsdTier.open(
                tmp_path / "ssd", capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
            )
        policies["quotas"] = Quotas(quotas)
        return Cache(arena, tier, limits, clock, QuietListener(), CachePolicies(**policies))

    return started


def held(cache: Cache) -> dict[str, tuple[int, int]]:
    """Blocks by account, in host memory and on the SSD."""
    cache.check_integrity()
    accounts = cache._parts.index.accounts
    assert accounts is not None
    return {
        view.name: (view.host_bytes // BLOCK_BYTES, view.ssd_bytes // BLOCK_BYTES)
        for view in accounts.views(100)
    }


async def written(cache: Cache) -> None:
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)
    cache.check_integrity()


def test_the_longest_quota_that_covers_an_owner_is_its_account() -> None:
    quotas = parse_quotas("acme host_hard=8GiB host_soft=6GiB, acme/search ssd_hard=1KiB,")
    assert quotas.by_path["acme"] == Quota(host_hard_bytes=8 * GIB, host_soft_bytes=6 * GIB)
    told = {path: quotas.account(path) for path in ("acme", "acme/lab", "acme/search/ann", "beta")}
    assert told == {
        "acme": "acme",
        "acme/lab": "acme",
        "acme/search/ann": "acme/search",
        "beta": "",
    }
    others = parse_quotas("* host_hard=1, acme host_hard=2")
    assert [others.account(path) for path in ("beta/x", "acme/x", "")] == ["beta", "acme", ""]
    assert others.quota("beta").host_hard_bytes == 1
    assert not parse_quotas("")


@pytest.mark.parametrize(
    "text",
    [
        "acme",
        "acme host_hard",
        "acme host_hard=",
        "acme host_hard=-1",
        "acme host_hard=8GB",
        "acme host_hard=1.5GiB",
        "acme hard=1",
        "acme host_hard=1 host_hard=1",
        "acme host_hard=1, acme host_soft=1",
        "acme host_hard=1 host_soft=2",
        "acme ssd_hard=1 ssd_soft=2",
        "a//b host_hard=1",
        "a/b/c/d host_hard=1",
    ],
)
def test_quotas_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_quotas(text)


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_at_its_hard_quota_own_blocks_leave_for_own_ones(
    start: Start, connect: Any, chain: Any, policy: str
) -> None:
    cache = start({"acme": blocks(host_hard=4)}, host_eviction=policy)
    client = connect(cache)
    await client.store(chain("o", "p"), owned("beta"))
    await client.store(chain("n"))
    for name in range(6):
        assert await client.store(chain(name, "x"), owned("acme/search")) == 2
        assert held(cache)["acme"][0] <= 4
    assert held(cache) == {"acme": (4, 0)}
    assert client.present(chain("o", "p")) == 2
    assert client.present(chain("n")) == 1
    assert client.present(chain(5, "x")) == 2
    assert cache.stats().tiers[0].block_count == 7


async def test_a_chain_that_is_longer_than_its_quota_is_stored_as_far_as_it_goes(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start({"acme": blocks(host_hard=4)})
    client = connect(cache)
    view = await client.reserve(chain(*range(9)), hints=owned("acme"))
    assert (len(view.missing), view.refused_count) == (4, 5)
    assert view.refused_reason is MissReason.QUOTA
    await client.commit(view, client.write(chain(*range(9)), view))
    found = cache.lookup(client.session_id, chain(*range(9)))
    assert (found.present_count, found.miss_reason) == (4, MissReason.QUOTA)
    assert cache.stats().counters["blocks_refused_quota"] == 5
    # It may come later all the same, and is no such miss then.
    await client.store(chain(*range(9)), owned("beta"))
    assert client.present(chain(*range(9))) == 9


async def test_where_all_its_own_are_held_it_is_refused_and_others_are_not(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start({"acme": blocks(host_hard=2)})
    client = connect(cache)
    await client.store(chain("a", "b"), owned("acme"))
    lease = await client.acquire(chain("a", "b"))
    view = await client.reserve(chain("c"), hints=owned("acme"))
    assert (view.reservation_id, view.refused_reason) == ("", MissReason.QUOTA)
    assert await client.store(chain("d"), owned("beta")) == 1
    client.release(lease)
    assert await client.store(chain("c"), owned("acme")) == 1
    assert held(cache) == {"acme": (2, 0)}


async def test_what_is_reserved_counts_until_it_is_given_back(
    start: Start, connect: Any, chain: Any, clock: Any
) -> None:
    cache = start({"*": blocks(host_hard=3)})
    client = connect(cache)
    first = await client.reserve(chain("a", "b"), hints=owned("acme"))
    second = await client.reserve(chain("c", "d"), hints=owned("acme/search"))
    other = await client.reserve(chain("e", "f"), hints=owned("beta"))
    assert [len(view.missing) for view in (first, second, other)] == [2, 1, 2]
    cache.abort(client.session_id, first.reservation_id)
    assert held(cache) == {"acme": (0, 0), "beta": (0, 0)}
    third = await client.reserve(chain("g", "h", "i"), hints=owned("acme"))
    assert len(third.missing) == 2
    clock.advance(11)
    cache.tick()
    assert held(cache) == {}


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_above_its_soft_quota_it_borrows_and_gives_back_first(
    start: Start, connect: Any, chain: Any, policy: str
) -> None:
    cache = start({"acme": blocks(host_soft=4)}, host_eviction=policy)
    client = connect(cache)
    await client.store(chain("o"), owned("beta"))
    for name in range(15):
        await client.store(chain(name), owned("acme"))
    assert held(cache) == {"acme": (15, 0)}
    index = cache._parts.index
    leaving = [index.owners.of(row) for row in index.host_leaving(16)]
    assert "beta" not in leaving[:11]
    # Older, and it stays: the borrower's leave, down to the quota.
    for name in range(10):
        await client.store(chain("new", name), owned("beta"))
        assert client.present(chain("o")) == 1
    assert held(cache)["acme"][0] == 4
    # From here on all are alike.
    await client.store(chain(*"uvwxyz"), owned("beta"))
    assert sum(client.present(chain(name)) for name in range(15)) <= 4


async def test_of_several_borrowers_the_least_valuable_leaf_leaves(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start({"*": blocks(host_soft=2)}, host_eviction="lru")
    client = connect(cache)
    for name in range(16):
        await client.store(chain(name), owned("acme" if name % 2 else "beta"))
    gone = []
    for name in range(8):
        await client.store(chain("n", name), owned(f"tenant{name % 4}"))
        held(cache)
        gone.append([i for i in range(16) if not client.present(chain(i))])
    assert gone[-1] == sorted(gone[-1]) == list(range(len(gone[-1])))


async def test_one_large_store_takes_nothing_that_is_within_anothers_soft_quota(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start({"quiet": blocks(host_soft=6), "flood": blocks(host_soft=5)})
    client = connect(cache)
    await client.store(chain("q", "u", "i", "e"), owned("quiet"))
    view = await client.reserve(chain(*range(13)), hints=owned("flood"))
    assert (len(view.missing), view.refused_count) == (12, 1)
    assert view.refused_reason is MissReason.ARENA_FULL
    await client.commit(view, client.write(chain(*range(13)), view))
    assert held(cache) == {"flood": (12, 0), "quiet": (4, 0)}
    # Another one: its own leave for it, and what nobody can give is refused.
    assert await client.store(chain(*(f"more {i}" for i in range(13))), owned("flood")) == 12
    assert held(cache) == {"flood": (12, 0), "quiet": (4, 0)}
    # What was borrowed is given back to who is within its quota.
    assert await client.store(chain("t", "s"), owned("quiet")) == 2
    assert held(cache) == {"flood": (10, 0), "quiet": (6, 0)}


async def test_reservations_under_way_count_as_borrowed(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start({"*": blocks(host_soft=5)}, host_eviction="lru")
    client = connect(cache)
    await client.store(chain("q", "u", "i", "e"), owned("quiet"))
    views = [
        await client.reserve(chain(*(f"{n} {i}" for i in range(4))), hints=owned("flood"))
        for n in range(4)
    ]
    assert [len(view.missing) for view in views] == [4, 4, 4, 0]
    assert held(cache)["quiet"] == (4, 0)
    # Given back, they are nobody's any more: the next may have them.
    for view in views[:3]:
        cache.abort(client.session_id, view.reservation_id)
    assert held(cache) == {"quiet": (4, 0)}
    assert await client.store(chain("f"), owned("flood")) == 1


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_who_borrows_takes_what_no_soft_quota_is_for(
    start: Start, connect: Any, chain: Any, policy: str
) -> None:
    """Of nobody, and of accounts with a hard quota alone; the rest of the store is refused."""
    quotas = {
        "quiet": blocks(host_soft=6),
        "flood": blocks(host_soft=5),
        "fixed": blocks(host_hard=4),
    }
    cache = start(quotas, host_eviction=policy)
    client = connect(cache)
    await client.store(chain("q", "u", "i", "e"), owned("quiet"))
    await client.store(chain("n", "o"))
    await client.store(chain("f", "x"), owned("fixed"))
    await client.store(chain("b"), owned("beta"))
    lease = await client.acquire(chain("f"))
    assert await client.store(chain(*range(14)), owned("flood")) == 11
    assert held(cache) == {"flood": (11, 0), "fixed": (1, 0), "quiet": (4, 0)}
    client.release(lease)
    assert client.present(chain("n", "o")) == client.present(chain("b")) == 0


async def test_a_one_off_takes_what_its_quota_has_and_nobodys_place(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start({"acme": blocks(host_hard=4)})
    client = connect(cache)
    await client.store(chain("a", "b", "c"), owned("acme"))
    view = await client.reserve(chain("x", "y", "z"), hints=owned("acme", one_off=True))
    assert (len(view.missing), view.refused_reason) == (1, MissReason.QUOTA)
    assert client.present(chain("a", "b", "c")) == 3


# -- with an SSD -----------------------------------------------------------------------------------


async def test_a_load_stays_within_the_quota_too(start: Start, connect: Any, chain: Any) -> None:
    cache = start({"acme": blocks(host_hard=3)}, ssd=True)
    client = connect(cache)
    await client.store(chain("a", "b", "c"), owned("acme"))
    await written(cache)
    await client.store(chain("x", "y"), owned("acme"))
    await written(cache)
    assert held(cache)["acme"] == (3, 5)
    lease = await client.acquire(chain("a", "b", "c"))
    assert lease.ready_count == 3
    assert held(cache)["acme"][0] == 3
    short = await client.acquire(chain("x", "y"))
    assert short.ready_count == 0
    assert short.end is not None
    assert short.end.miss_reason is MissReason.QUOTA
    client.release(lease)
    again = await client.acquire(chain("x", "y"))
    assert again.ready_count == 2
    assert held(cache)["acme"] == (3, 5)
    client.release(again)
    await cache.drain()


async def test_a_load_takes_nothing_that_is_within_anothers_soft_quota(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start({"quiet": blocks(host_soft=8), "acme": blocks(host_soft=4)}, ssd=True)
    client = connect(cache)
    await client.store(chain("a", "b"), owned("acme"))
    await written(cache)
    await client.store(chain(*(f"new {i}" for i in range(16))), owned("acme"))
    await written(cache)
    await client.store(chain(*(f"quiet {i}" for i in range(8))), owned("quiet"))
    await written(cache)
    assert held(cache)["quiet"][0] == 8
    lease = await client.acquire(chain(*(f"new {i}" for i in range(8))))
    assert lease.ready_count == 8
    short = await client.acquire(chain("a", "b"))
    assert short.ready_count == 0
    assert short.end is not None
    assert short.end.miss_reason is MissReason.ARENA_FULL
    assert held(cache)["quiet"][0] == 8
    client.release(lease)
    again = await client.acquire(chain("a", "b"))
    assert again.ready_count == 2
    assert held(cache)["quiet"][0] == 8
    client.release(again)
    await cache.drain()


@pytest.mark.parametrize("write_when", ["committed", "leaving"])
async def test_beyond_its_hard_quota_nothing_is_written(
    start: Start, connect: Any, chain: Any, write_when: str
) -> None:
    cache = start({"acme": blocks(ssd_hard=3)}, ssd=True, ssd_write_when=write_when)
    client = connect(cache)
    await client.store(chain("a", "b", "c", "d", "e"), owned("acme"))
    await client.store(chain("o", "p"), owned("beta"))
    await written(cache)
    await client.store(chain(*range(14)))
    await written(cache)
    assert held(cache)["acme"][1] <= 3
    await cache.drain()
    cache = start({"acme": blocks(ssd_hard=3)}, ssd=True, ssd_write_when=write_when)
    assert held(cache)["acme"] == (0, 3)
    assert connect(cache).present(chain("o", "p")) == 2
    await cache.drain()


async def test_a_quota_that_was_lowered_holds_from_the_start(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start({}, ssd=True)
    client = connect(cache)
    await client.store(chain("a", "b", "c", "d"), owned("acme"))
    await client.store(chain("x", "y"), owned("acme/search"))
    await client.store(chain("o"), owned("beta"))
    await written(cache)
    await cache.drain()
    cache = start({"acme": blocks(ssd_hard=3)}, ssd=True)
    assert held(cache) == {"acme": (0, 3)}
    client = connect(cache)
    assert client.present(chain("a", "b", "c", "d")) + client.present(chain("x", "y")) == 3
    assert client.present(chain("o")) == 1
    await cache.drain()
    # What left is forgotten for good.
    cache = start({}, ssd=True)
    assert cache.stats().tiers[1].block_count == 4
    await cache.drain()


@pytest.mark.parametrize(("soft", "kept"), [(2, ["beta"]), (3, ["acme", "beta"])])
async def test_above_its_soft_quota_nothing_is_written_again(
    start: Start, connect: Any, chain: Any, soft: int, kept: list[str]
) -> None:
    """All were used again; of the account above its quota nothing stays in a recycled segment."""
    cache = start({"acme": blocks(ssd_soft=soft)}, ssd=True)
    client = connect(cache)
    names = [(name, owner) for name in range(3) for owner in ("acme", "beta")]
    for name in names:
        await client.store(chain(name), owned(name[1]))
    await written(cache)
    for name in [*names, *names]:
        client.release(await client.acquire(chain(name)))
    await client.store(chain(*(f"more {i}" for i in range(9))))
    await written(cache)
    index, ssd = cache._parts.index, cache._parts.cold.ssd  # type: ignore[union-attr]
    first = index.tree.segment(index.tree.find(chain(names[0])[0]))
    states = [state for state in ssd.segments() if state.segment_id == first]
    plan = plan_recycling(index, states, ssd.record_bytes, 1.0)
    assert plan is not None
    assert sorted({index.owners.of(row) for row in plan.keep} - {""}) == kept
    await cache.drain()


def test_who_passes_the_soft_quota_by_a_held_block_gives_up_another(arena: HostArena) -> None:
    index = BlockIndex(arena, GreedyDual(), GreedyDual(), evicted_memory_count=4)
    index.limit(Quotas({"acme": blocks(host_soft=1)}))
    rows = []
    for number, owner in enumerate(("beta", "acme", "acme")):
        row = index.add(chain_of(number)[0], NOWHERE, NAMESPACE, BLOCK_BYTES)
        index.owners.enter(row, owner)
        if number == 2:
            assert index.host_victim() == rows[0]
            index.pin(row)
        slab = arena.allocate(BLOCK_BYTES)
        assert slab is not None
        index.put_host(row, slab, 0)
        rows.append(row)
    assert index.host_victim() == rows[1]
    index.evict_host(rows[1])
    assert index.host_victim() == rows[0]
    index.unpin(rows[2])
    index.check_integrity()


def test_for_who_borrows_no_extent_is_emptied_that_another_has_within_its_quota() -> None:
    arena = HostArena(8 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
    index = BlockIndex(arena, GreedyDual(), GreedyDual(), evicted_memory_count=4)
    index.limit(Quotas({"quiet": blocks(host_soft=3), "flood": blocks(host_soft=1)}))
    assert index.accounts is not None
    room = HostRoom(arena, index, QuietListener(), wait_seconds=1.0)
    for number in range(8):
        row = index.add(chain_of(number)[0], NOWHERE, NAMESPACE, BLOCK_BYTES)
        index.owners.enter(row, "quiet" if number < 4 else "flood")
        slab = arena.allocate(BLOCK_BYTES)
        assert slab is not None
        index.put_host(row, slab, 0)
    flood, size = index.accounts.of_path("flood"), 2 * PAGE_BYTES
    assert flood is not None
    # One of quiet's is borrowed, but not its whole extent.
    assert room.claim(flood, size, 2) == 2
    assert len(room.take_up_to(size, 2, flood)) == 2
    assert all(index.tree.find(chain_of(number)[0]) != ABSENT for number in range(4))
    assert room.claim(flood, size, 1) == 1
    assert room.take(size, flood) is None
    assert all(index.tree.find(chain_of(number)[0]) != ABSENT for number in range(4))
    # Who has no quota takes it, as before.
    assert room.take(size) is not None
    index.check_integrity()
