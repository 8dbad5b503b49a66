"""Who owns a block: counted by owner and tier, through eviction, purges and starts."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_service import wire
from cache_service.cache import Cache
from cache_service.hints import Hints
from cache_service.listener import QuietListener
from cache_service.owner_runs import NOBODYS, OwnerRuns, within
from cache_service.owner_views import OwnerView
from cache_service.purge_views import PurgeKind, PurgeTarget
from cache_service.views import CacheLimits
from kvtier.keys import NamespaceId
from kvtier.serving import MalformedRequestError
from kvtier.v1 import cache_pb2
from storage.host.arena import HostArena
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.unit.cache_service.conftest import BLOCK_BYTES

SEGMENT_BYTES = 17 * PAGE_BYTES


def owned(*runs: tuple[str, int]) -> Hints:
    """Hints with (owner, block at which it ends)."""
    return Hints(owners=OwnerRuns(tuple(path for path, _ in runs), tuple(end for _, end in runs)))


def acme(path: str = "acme") -> Hints:
    return owned((path, 64))


def counts(cache: Cache, **more: Any) -> dict[str, tuple[int, int]]:
    """Blocks of each owner in host memory and on the SSD; their bytes agree."""
    found = {}
    for view in cache.owners(100, **more).owners:
        assert view.host_bytes == view.host_count * BLOCK_BYTES
        assert view.ssd_bytes == view.ssd_count * BLOCK_BYTES
        found[view.path] = (view.host_count, view.ssd_count)
    return found


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "a/b", "c"]), st.integers(1, 4)), max_size=4),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_runs_are_what_they_are_block_by_block(
    runs: list[tuple[str, int]], first: int, end: int
) -> None:
    ends = [sum(count for _, count in runs[: i + 1]) for i in range(len(runs))]
    owners = OwnerRuns(tuple(path for path, _ in runs), tuple(ends))
    blocks = [path for path, count in runs for _ in range(count)] + [""] * 12
    assert [owners.at(position) for position in range(12)] == blocks[:12]
    told = [path for path, a, b in owners.runs(first, end) for _ in range(a, b)]
    assert told == blocks[first:end]


def test_a_name_that_begins_like_another_is_not_within_it() -> None:
    assert within("acme/search", "acme")
    assert within("acme", "acme")
    assert not within("acme2", "acme")
    assert not within("acme", "acme/search")


async def test_every_block_is_its_owners_and_the_rest_is_nobodys(
    cache: Cache, client: Any, chain: Any
) -> None:
    await client.store(chain(*range(6)), owned(("", 2), ("acme", 3), ("acme/search", 5)))
    assert counts(cache) == {"acme": (1, 0), "acme/search": (2, 0)}
    # Stored one by one, as gaps are: the same.
    await client.store(chain(*range(5), "x", "y"), owned(("", 2), ("acme", 3), ("acme/search", 9)))
    assert counts(cache) == {"acme/search": (4, 0), "acme": (1, 0)}
    assert counts(cache, tenants=True) == {"acme": (5, 0)}
    view = cache.owners(1)
    assert [each.path for each in view.owners] == ["acme/search"]
    assert view.owner_count == 2
    assert view.total == OwnerView("", 5, 5 * BLOCK_BYTES, 0, 0)


async def test_who_stored_a_block_first_owns_it(cache: Cache, client: Any, chain: Any) -> None:
    await client.store(chain("a"), acme())
    await client.store(chain("a", "b"), acme("beta"))
    await client.store(chain("a", "b"))
    assert counts(cache) == {"acme": (1, 0), "beta": (1, 0)}


async def test_what_leaves_is_counted_out_and_its_owner_forgotten(
    cache: Cache, client: Any, chain: Any
) -> None:
    owners = cache._parts.index.owners
    await client.store(chain(*range(6)), owned(("", 1), ("acme", 2), ("acme/search", 6)))
    assert len(owners) == 2
    await client.store(chain(*"abcdefghijklmno"), acme("beta"))
    assert counts(cache) == {"beta": (15, 0)}
    await client.store(chain(*"zyxwvutsrqponmlk"))
    assert counts(cache) == {}
    assert len(owners) == 0


async def test_a_one_off_is_its_owners_too(cache: Cache, client: Any, chain: Any) -> None:
    await client.store(chain("a", "b"), Hints(one_off=True, owners=acme().owners))
    assert counts(cache) == {"acme": (2, 0)}


# -- with an SSD -----------------------------------------------------------------------------------

Start = Callable[[], Cache]


@pytest.fixture
def start(tmp_path: Any, limits: CacheLimits, clock: Any) -> Start:
    def started() -> Cache:
        arena = HostArena(16 * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        ssd = SsdTier.open(
            tmp_path / "ssd", capacity_bytes=6 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES
        )
        return Cache(arena, ssd, limits, clock, QuietListener())

    return started


async def written(cache: Cache) -> None:
    while cache.stats().pending_write_count:
        await asyncio.sleep(0.001)
    cache.check_integrity()


async def test_owners_outlive_the_service(start: Start, connect: Any, chain: Any) -> None:
    cache = start()
    client = connect(cache)
    await client.store(chain(*range(6)), owned(("", 2), ("acme", 3), ("acme/search", 5)))
    await client.store(chain("b"), acme("beta"))
    await written(cache)
    expected = {"acme": (1, 1), "acme/search": (2, 2), "beta": (1, 1)}
    assert counts(cache) == expected
    await cache.drain()
    cache = start()
    cache.check_integrity()
    assert counts(cache) == {path: (0, ssd) for path, (_, ssd) in expected.items()}
    client = connect(cache)
    client.release(await client.acquire(chain(*range(6))))
    assert counts(cache) == {"acme": (1, 1), "acme/search": (2, 2), "beta": (0, 1)}
    await cache.drain()


async def test_a_purge_by_owner_takes_it_and_all_within_and_nobody_else(
    start: Start, connect: Any, chain: Any
) -> None:
    cache = start()
    client = connect(cache)
    ladder = chain(*range(6))
    await client.store(ladder, owned(("", 2), ("acme", 3), ("acme/search", 6)))
    await client.store(chain("o"), acme("acme2"))
    await client.store(chain("n"))
    await written(cache)
    await cache.drain()
    cache = start()
    client = connect(cache)
    assert await client.store(chain("late"), acme("acme/late")) == 1
    dry = await cache.purging.start(PurgeTarget(PurgeKind.OWNER, owner="acme"), dry_run=True)
    view = await cache.purging.start(PurgeTarget(PurgeKind.OWNER, owner="acme"), dry_run=False)
    cache.check_integrity()
    assert view.hashes_sha256 == dry.hashes_sha256
    assert view.block_count == 5
    assert counts(cache) == {"acme2": (0, 1)}
    assert client.present(ladder) == 2
    assert [client.present(chain(name)) for name in ("o", "n", "late")] == [1, 1, 0]
    await cache.drain()
    cache = start()
    assert counts(cache) == {"acme2": (0, 1)}
    await cache.drain()


async def test_what_a_purge_of_its_owner_covers_cannot_be_committed_meanwhile(
    arena: Any, limits: CacheLimits, clock: Any, connect: Any, chain: Any
) -> None:
    cache = Cache(arena, None, replace(limits, purge_slice_blocks=1), clock, QuietListener())
    client = connect(cache)
    await client.store(chain(*range(8)), acme())
    mine, others = chain("x"), chain("y")
    views = [
        await client.reserve(mine, hints=acme("acme/search")),
        await client.reserve(others, hints=acme("beta")),
    ]
    sums = [client.write(hashes, view) for hashes, view in zip((mine, others), views, strict=True)]
    purge = cache.purging.start(PurgeTarget(PurgeKind.OWNER, owner="acme"), dry_run=False)
    await asyncio.sleep(0)
    assert cache._parts.closing.closed
    stored = [
        cache.commit(client.session_id, view.reservation_id, checksums, False)
        for view, checksums in zip(views, sums, strict=True)
    ]
    assert await asyncio.gather(*stored) == [0, 1]
    await purge
    assert counts(cache) == {"beta": (1, 0)}


async def test_a_namespace_more_counts_for_the_same_owner(
    cache: Cache, client: Any, connect: Any, chain: Any
) -> None:
    other = connect(cache, NamespaceId(bytes(range(32))))
    await client.store(chain("a"), acme())
    await other.store(chain("b"), acme())
    assert counts(cache) == {"acme": (2, 0)}


# -- on the wire -----------------------------------------------------------------------------------


def runs(*pairs: tuple[str, int]) -> list[cache_pb2.OwnerRun]:
    return [cache_pb2.OwnerRun(owner=owner, block_count=count) for owner, count in pairs]


def test_runs_of_a_ladder_are_taken_as_they_are() -> None:
    found = wire.owner_runs(runs(("", 2), ("acme", 1), ("acme/search/ann", 2**31 - 1)))
    assert found.paths == ("", "acme", "acme/search/ann")
    assert found.ends[:2] == (2, 3)
    assert wire.hints(cache_pb2.ReserveBlocksRequest()).owners is NOBODYS


@pytest.mark.parametrize(
    "pairs",
    [
        [("acme", 0)],
        [("acme", -1)],
        [("acme//x", 1)],
        [("/", 1)],
        [("a" * 129, 1)],
        [("a/b/c/d", 1)],
        [("with space", 1)],
        [("*", 1)],
        [("acme", 1), ("", 1)],
        [("acme/search", 1), ("acme", 1)],
        [("acme", 1), ("acme2", 1)],
        [("", 1)] * 5,
    ],
)
def test_runs_that_cannot_be_are_refused(pairs: list[tuple[str, int]]) -> None:
    with pytest.raises(MalformedRequestError):
        wire.owner_runs(runs(*pairs))
