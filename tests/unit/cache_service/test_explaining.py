"""What explaining says of hits, misses and the tree, and that asking changes nothing."""

import asyncio
import hashlib
from typing import Any

import pytest

from cache_service.acquire_log import ACQUIRES_MAX
from cache_service.cache import Cache
from cache_service.chains import Chain
from cache_service.errors import AcquireUnknownError, BlockNotCachedError, MalformedChainError
from cache_service.explain_views import OtherScopeView, TreeNodeView
from cache_service.hints import Hints
from cache_service.listener import QuietListener
from cache_service.owner_runs import OwnerRuns
from cache_service.read_rate import ReadRate
from cache_service.tree_walk import START, Place
from kvtier.blocks import MissReason, Tier
from kvtier.keys import NamespaceId
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.cache_state import index_state

BLOCK_BYTES = PAGE_BYTES - 96
NAMESPACE = NamespaceId(hashlib.sha256(b"a namespace").digest())


@pytest.fixture
def explain(cache: Cache) -> Any:
    return lambda chain: cache.explaining.prefix(NAMESPACE, 0, Chain.of(chain))


def whole_tree(cache: Cache, nodes_max: int = 1000, **only: Any) -> list[TreeNodeView]:
    place: Place | None = START
    nodes: list[TreeNodeView] = []
    while place is not None:
        part = cache.explaining.tree(place, only.get("namespace_id"), only.get("under"), nodes_max)
        assert not part.changed
        assert len(part.nodes) <= nodes_max
        nodes += part.nodes
        place = part.place if part.place is None else Place.decode(part.place.encode())
    return nodes


async def test_a_cached_chain_hits_whole_and_loads_in_no_time(
    client: Any, chain: Any, explain: Any
) -> None:
    await client.store(chain(1, 2, 3))
    said = explain(chain(1, 2, 3))
    assert (said.present_count, said.miss_reason, said.divergence) == (3, MissReason.NONE, None)
    assert [(s.tier, s.block_count, s.payload_bytes) for s in said.shares] == [
        (Tier.HOST, 3, 3 * BLOCK_BYTES)
    ]
    assert said.load_seconds == 0.0


async def test_a_miss_names_the_nearest_chain_that_goes_on_from_there(
    client: Any, chain: Any, explain: Any, clock: Any
) -> None:
    await client.store(chain("doc", "a", 1, 2))
    clock.advance(20)
    await client.store(chain("doc", "b"))
    clock.advance(5)
    where = explain(chain("doc", "c", 3)).divergence
    assert (where.index, where.chain_count) == (1, 2)
    near = where.nearest
    assert near.hash_prefix == chain("doc", "b")[1][:8]
    assert (near.depth, near.block_count, near.whole, near.unused_seconds) == (1, 1, True, 5)
    client.release(await client.acquire(chain("doc", "a")))
    near = explain(chain("doc", "c", 3)).divergence.nearest
    assert near.hash_prefix == chain("doc", "a")[1][:8]
    assert (near.depth, near.block_count, near.unused_seconds) == (3, 3, 0)


async def test_whoever_names_no_cached_block_learns_of_none(
    client: Any, chain: Any, explain: Any
) -> None:
    await client.store(chain("secret", 1, 2))
    said = explain(chain("guess", 1))
    assert (said.present_count, said.miss_reason) == (0, MissReason.NEVER_STORED)
    assert said.divergence.chain_count == 0
    assert said.divergence.nearest is None


async def test_a_namespace_without_blocks_misses_for_its_own_reason(
    client: Any, cache: Any, chain: Any
) -> None:
    await client.store(chain(1, 2))
    said = cache.explaining.prefix(bytes(32), 0, Chain.of(chain(1, 2)))
    assert (said.present_count, said.miss_reason) == (0, MissReason.OTHER_NAMESPACE)
    assert said.divergence.nearest is None


async def test_what_was_evicted_is_told_apart(client: Any, chain: Any, explain: Any) -> None:
    await client.store(chain("old"))
    for i in range(16):
        await client.store(chain(i))
    assert explain(chain("old")).miss_reason is MissReason.EVICTED


async def test_the_same_text_in_another_scope_explains_a_block_that_was_never_stored(
    client: Any, chain: Any, cache: Any
) -> None:
    await client.store(chain("acme", 1, 2))
    await client.store(chain("public", 1, 2, 3))
    await client.store(chain("own", 1))

    def said(asked: Any, *others: Any) -> Any:
        chains = [Chain.of(other) for other in others]
        return cache.explaining.prefix(NAMESPACE, 0, Chain.of(asked), others=chains)

    own, acme = chain("own", 1, 2, 3), chain("acme", 1, 2, 3)
    view = said(own, chain("nobody", 1, 2, 3), acme)
    assert (view.present_count, view.miss_reason) == (2, MissReason.OTHER_SCOPE)
    assert view.other_scope == OtherScopeView(1, 3)
    view = said(own, acme, chain("public", 1, 2, 3), chain("public", 1, 2, 3))
    assert view.other_scope == OtherScopeView(1, 4)
    for others in ([], [chain("nobody", 1)], [chain("acme", 1)]):  # no other has more
        view = said(own, *others)
        assert (view.miss_reason, view.other_scope) == (MissReason.NEVER_STORED, None)
    whole = said(chain("own", 1), acme)
    assert (whole.miss_reason, whole.other_scope) == (MissReason.NONE, OtherScopeView(0, 3))
    with pytest.raises(MalformedChainError):
        said(own, [])


async def test_what_its_own_past_explains_is_not_explained_by_another_scope(
    client: Any, chain: Any, cache: Any
) -> None:
    await client.store(chain("own"))
    for i in range(16):
        await client.store(chain(i))
    view = cache.explaining.prefix(
        NAMESPACE, 0, Chain.of(chain("own")), others=[Chain.of(chain(15))]
    )
    assert (view.miss_reason, view.other_scope) == (MissReason.EVICTED, OtherScopeView(0, 1))


async def test_with_whole_units_it_is_what_an_acquire_of_them_finds(
    client: Any, chain: Any, cache: Any
) -> None:
    hints = Hints(unit_ends=(1,), whole_units=True)
    reserved = await client.cache.reserve(client.session_id, "", chain(1, 2, 3, 4), hints)
    await client.commit(reserved, client.write(chain(1, 2, 3, 4), reserved))
    asked = Chain.of(chain(1, 2, 3, "else"))
    view = cache.explaining.prefix(NAMESPACE, 0, asked, whole_units=True)
    events = cache.acquire_resident(client.session_id, "r", asked, hints)
    assert (events[0].matched_count, events[0].miss_reason) == (2, MissReason.WITHIN_UNIT)
    assert (view.present_count, view.miss_reason) == (2, MissReason.WITHIN_UNIT)
    assert (view.stored_count, view.divergence.index) == (3, 3)
    assert view.divergence.nearest.hash_prefix == chain(1, 2, 3, 4)[3][:8]
    assert view.shares[0].block_count == 2
    plain = cache.explaining.prefix(NAMESPACE, 0, asked)
    assert (plain.present_count, plain.stored_count) == (3, 3)
    assert plain.miss_reason is MissReason.NEVER_STORED


async def test_an_acquire_is_explained_afterwards(
    client: Any, chain: Any, cache: Any, clock: Any
) -> None:
    await client.store(chain(1, 2))
    acquired = await client.acquire(chain(1, 2, 3, 4))
    clock.advance(7)
    (view,) = cache.explaining.found("r", "", None)
    assert view == cache.explaining.found("", acquired.match.lease_id, None)[0]
    assert (view.asked_count, view.matched_count, view.ready_count) == (4, 2, 2)
    assert view.match_reason is view.miss_reason is MissReason.NEVER_STORED
    assert (view.running, view.given_up, view.started_seconds) == (False, False, 7)
    assert (view.divergence.index, view.missing_cached_now) == (2, False)
    await client.store(chain(1, 2, 3))
    assert cache.explaining.found("r", "", None)[0].missing_cached_now


async def test_an_acquire_in_one_answer_is_explained_as_well(
    client: Any, chain: Any, cache: Any
) -> None:
    await client.store(chain(1, 2))
    cache.acquire_resident(client.session_id, "at once", chain(1, 2, 3))
    (view,) = cache.explaining.found("at once", "", None)
    assert (view.running, view.given_up) == (False, False)
    assert (view.asked_count, view.matched_count, view.ready_count) == (3, 2, 2)
    assert view.miss_reason is MissReason.NEVER_STORED


async def test_an_acquire_that_is_given_up_says_so(client: Any, chain: Any, cache: Any) -> None:
    await client.store(chain(1, 2))
    stream = cache.acquire(client.session_id, "gone", chain(1, 2), None)
    await anext(stream)
    assert cache.explaining.found("gone", "", None)[0].running
    await stream.aclose()
    view = cache.explaining.found("gone", "", None)[0]
    assert (view.running, view.given_up, view.ready_count) == (False, True, 0)


async def test_acquires_are_forgotten_in_order_and_foreign_ones_are_not_told(
    client: Any, chain: Any, cache: Any
) -> None:
    for i in range(ACQUIRES_MAX + 1):
        async for _ in cache.acquire(client.session_id, f"r{i}", chain("none"), None):
            pass
    assert len(cache.explaining.acquires) == ACQUIRES_MAX
    assert cache.explaining.found("r1", "", "")
    for request_id, owner in (("r0", None), ("r1", "another"), ("nobody", None)):
        with pytest.raises(AcquireUnknownError):
            cache.explaining.found(request_id, "", owner)


async def test_runs_are_nodes_and_forks_begin_new_ones(client: Any, chain: Any, cache: Any) -> None:
    await client.store(chain("doc", 1, "a", 2, 3))
    await client.store(chain("doc", 1, "b"))
    await client.store(chain("other"))
    client.release(await client.acquire(chain("doc", 1, "b")))
    nodes = whole_tree(cache)
    doc, *below = [node for node in nodes if node.block_hash != chain("other")[0]]
    assert (doc.block_hash, doc.last_block_hash) == tuple(chain("doc", 1))
    assert (doc.block_count, doc.child_count, doc.hit_count) == (2, 2, 1)
    assert {(n.block_count, n.hit_count) for n in below} == {(3, 0), (1, 1)}
    assert all(node.parent_block_hash == doc.last_block_hash for node in below)
    assert sum(node.block_count for node in nodes) == 7
    assert whole_tree(cache, nodes_max=1) == nodes
    assert whole_tree(cache, under=chain("doc", 1, "a")[2]) == [
        node for node in below if node.block_count == 3
    ]
    assert whole_tree(cache, namespace_id=bytes(32)) == []
    assert len(whole_tree(cache, namespace_id=doc.namespace_id)) == 4


async def test_a_node_is_of_one_owner(client: Any, chain: Any, cache: Any) -> None:
    owners = OwnerRuns(("", "acme", "acme/search"), (2, 3, 5))
    blocks = chain(1, 2, 3, 4, 5)
    reserved = await cache.reserve(client.session_id, "", blocks, Hints(owners=owners))
    await client.commit(reserved, client.write(blocks, reserved))
    nodes = whole_tree(cache)
    assert [(node.owner, node.block_count, node.child_count) for node in nodes] == [
        ("", 2, 1),
        ("acme", 1, 1),
        ("acme/search", 2, 0),
    ]
    assert [node.parent_block_hash for node in nodes] == [b"", blocks[1], blocks[2]]
    assert whole_tree(cache, nodes_max=1) == nodes


async def test_what_leaves_next_is_ranked_and_leased_blocks_are_not(
    client: Any, chain: Any, cache: Any
) -> None:
    await client.store(chain("first"))
    await client.store(chain("second"))
    held = await client.acquire(chain("second"))
    nodes = {node.block_hash: node for node in whole_tree(cache)}
    assert nodes[chain("first")[0]].host_leaving_rank == 1
    assert nodes[chain("second")[0]].host_leaving_rank == 0
    assert nodes[chain("second")[0]].pinned_count == 1
    assert cache._parts.index.host_victim() == cache._parts.index.tree.find(chain("first")[0])
    client.release(held)


async def test_a_walk_goes_on_past_a_tree_that_left_and_says_so(
    client: Any, chain: Any, cache: Any
) -> None:
    for name in ("a", "b", "c"):
        await client.store(chain(name, 1))
        await client.store(chain(name, 2))
    first = cache.explaining.tree(START, None, None, 1)
    index = cache._parts.index
    index.drop(index.tree.find(chain("a", 1)[0]), MissReason.EVICTED)
    rest = cache.explaining.tree(first.place, None, None, 100)
    assert rest.changed
    assert rest.place is None
    assert sum(node.block_count for node in rest.nodes) == 6
    with pytest.raises(BlockNotCachedError):
        cache.explaining.tree(START, None, chain("a", 1)[0], 1)


async def test_explaining_changes_nothing(
    client: Any, chain: Any, cache: Any, explain: Any
) -> None:
    await client.store(chain("doc", 1, 2))
    await client.store(chain("doc", 3))
    client.release(await client.acquire(chain("doc", 1)))
    before = index_state(cache)
    explain(chain("doc", 1, 2))
    explain(chain("doc", 4))
    cache.explaining.found("r", "", None)
    whole_tree(cache)
    assert index_state(cache) == before


async def test_loading_from_the_ssd_takes_what_was_measured(
    arena: Any, limits: Any, clock: Any, connect: Any, chain: Any, tmp_path: Any
) -> None:
    ssd = SsdTier.open(
        tmp_path / "ssd", capacity_bytes=6 * 17 * PAGE_BYTES, segment_bytes=17 * PAGE_BYTES
    )
    cache = Cache(arena, ssd, limits, clock, QuietListener())
    client = connect(cache)
    await client.store(chain("doc", 1, 2))
    for i in range(16):
        await client.store(chain(i))
        while cache.stats().pending_write_count:
            await asyncio.sleep(0.001)
    said = cache.explaining.prefix(NAMESPACE, 0, Chain.of(chain("doc", 1, 2)))
    assert said.tiers == bytes([Tier.SSD] * 3)
    assert (said.load_seconds, said.read_bytes_per_second) == (None, None)
    cache._parts.promoter.read_rate.landed(1000, 0.0, 0.5)
    said = cache.explaining.prefix(NAMESPACE, 0, Chain.of(chain("doc", 1, 2)))
    assert said.read_bytes_per_second == 2000
    assert said.load_seconds == 3 * BLOCK_BYTES / 2000
    await cache.drain()


def test_overlapping_reads_are_counted_once_in_time() -> None:
    rate = ReadRate()
    assert rate.seconds(1) is None
    assert rate.seconds(0) == 0.0
    rate.landed(100, 0.0, 1.0)
    rate.landed(100, 0.0, 1.0)
    assert rate.bytes_per_second == 200
    rate.landed(100, 0.0, 1.5)
    assert rate.bytes_per_second is not None
    assert rate.bytes_per_second == pytest.approx(200)
    rate.landed(800, 1000.0, 1001.0)
    assert 200 < rate.bytes_per_second < 800
