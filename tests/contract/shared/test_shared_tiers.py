"""What the shared tier promises over every engine, sealed and in clear."""

import dataclasses
import itertools
import random

import pytest

from kvtier.keys import NamespaceId
from storage.shared.levels import Extent
from storage.shared.tier import SharedTier
from storage.tier import NO_PARENT
from tests.shared.chains import BLOCK_BYTES, NAMESPACE, block_of, get, names, put, put_turns, view


async def test_a_conversation_is_found_to_its_last_block(tier: SharedTier) -> None:
    chain = names(150, "conversation")
    await put_turns(tier, chain, [37, 52, 101, 139])
    found = await tier.find(view(chain), 0)
    assert found[0].start == 0
    assert await get(tier, chain, found) == 139


async def test_a_prefix_is_continued_from_where_it_ends(tier: SharedTier) -> None:
    chain = names(150, "continued")
    await put_turns(tier, chain, [37, 139])
    for position in (1, 10, 16, 63, 64, 100, 136, 138):
        found = await tier.find(view(chain), position)
        assert found[0].start <= position < found[0].end, position
        assert all(a.end == b.start for a, b in itertools.pairwise(found))
        assert await get(tier, chain, found) == 139, position
    assert await tier.find(view(chain), 139) == []


async def test_a_chain_whose_beginning_is_not_named_is_found_too(tier: SharedTier) -> None:
    chain = names(100, "middle")
    await put_turns(tier, chain, [90])
    found = await tier.find(view(chain, 41), 41)
    memory = {at: memoryview(bytearray(BLOCK_BYTES)) for at in range(41, found[0].end)}
    blocks = await tier.read(view(chain, 41), found[0], memory)
    assert blocks is not None
    assert found[-1].end == 90


async def test_what_parts_from_the_chain_is_not_found(tier: SharedTier) -> None:
    one, other = names(80, "one"), names(80, "other")
    await put_turns(tier, one, [80])
    assert await tier.find(view(other), 0) == []
    mixed = [*one[:21], *other[21:]]
    found = await tier.find(view(mixed), 0)
    assert await get(tier, mixed, found) == 16


async def test_chains_that_part_where_one_was_said_to_end_share_all_before(
    tier: SharedTier,
) -> None:
    one, other = names(80, "one"), names(80, "other")
    await put_turns(tier, one, [80], stops=[21])
    mixed = [*one[:21], *other[21:]]
    found = await tier.find(view(mixed), 0)
    assert await get(tier, mixed, found) == 21


async def test_another_namespace_has_nothing(tier: SharedTier) -> None:
    chain = names(20, "namespaces")
    await put_turns(tier, chain, [20])
    elsewhere = dataclasses.replace(view(chain), namespace_id=NamespaceId(bytes(32)))
    assert await tier.find(elsewhere, 0) == []
    assert await tier.read(elsewhere, Extent(0, 16), {}) is None


async def test_what_is_there_is_not_written_again(tier: SharedTier) -> None:
    chain = names(4, "twice")
    assert await put(tier, chain, Extent(0, 4)) > 4 * BLOCK_BYTES
    assert await put(tier, chain, Extent(0, 4)) == 0


async def test_tables_say_of_each_block_what_was_said(tier: SharedTier) -> None:
    chain = names(4, "table")
    blocks = [
        block_of(chain[0]),
        block_of(chain[1], "acme")._replace(unit_end=True),
        block_of(chain[2], "acme/search")._replace(expire_second=1_900_000_000),
        block_of(chain[3], "acme/search"),
    ]
    payloads = [memoryview(bytes(BLOCK_BYTES))] * 4
    await tier.write(view(chain), Extent(0, 4), NO_PARENT, blocks, payloads)
    assert await tier.read(view(chain), Extent(0, 4), {}) == blocks


async def test_forgotten_blocks_are_found_no_more(tier: SharedTier) -> None:
    chain = names(70, "forgotten")
    await put_turns(tier, chain, [40, 70])
    await tier.forget(NAMESPACE, BLOCK_BYTES, chain[20:])
    assert [each.end for each in await tier.find(view(chain), 0)] == [16]


async def test_a_namespace_is_forgotten_whole(tier: SharedTier) -> None:
    chain = names(70, "namespace")
    await put_turns(tier, chain, [70])
    other = dataclasses.replace(view(chain), namespace_id=NamespaceId(b"o" * 32))
    await tier.write(other, Extent(0, 1), chain[0], [block_of(chain[0])], [memoryview(bytes(4000))])
    assert await tier.forget_all(NAMESPACE) == 7
    assert await tier.find(view(chain), 0) == []
    assert await tier.find(other, 0) == [Extent(0, 1)]
    assert await tier.forget_all(None) == 1
    assert await tier.find(other, 0) == []


@pytest.mark.parametrize("seed", range(4))
async def test_random_conversations_are_found_whole(tier: SharedTier, seed: int) -> None:
    chance = random.Random(seed)
    chain = names(chance.randint(50, 400), f"random {seed}")
    ends = sorted(chance.sample(range(1, len(chain)), 5))
    await put_turns(tier, chain, ends)
    position = chance.randrange(ends[-1])
    found = await tier.find(view(chain), position)
    assert await get(tier, chain, found) == ends[-1]
