"""What the cache gives a side and asks of it, seen by a side that keeps one block."""

import dataclasses
from typing import Any

import pytest

from cache_service.cache import Cache
from cache_service.errors import SessionUnknownError
from cache_service.listener import QuietListener
from cache_service.parts import Parts, build_parts
from cache_service.side import Side
from cache_service.views import CachePolicies
from kvtier.keys import BlockHash

ARENA_BLOCKS = 16


class Keeping(Side):
    """Keeps a block in the cache until it is drained."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rows: list[int] = []
        self.sessions_at_ticks: list[int] = []

    def keep(self, session_id: str, block_hash: BlockHash) -> None:
        self._parts.lifetimes.session(session_id)
        row = self._parts.index.tree.find(block_hash)
        self._parts.index.pin(row)
        self._rows.append(row)

    def tick(self) -> None:
        self.sessions_at_ticks.append(len(self._parts.sessions))

    def pins(self) -> dict[int, int]:
        return dict.fromkeys(self._rows, 1)

    async def drain(self) -> None:
        while self._rows:
            self._parts.index.unpin(self._rows.pop())


class KeepingCache(Cache):
    """A cache with one more side, as `cache.py` itself enters them."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.keeping = self._enter(Keeping(self._parts))


@pytest.fixture
def keeping_cache(arena: Any, limits: Any, clock: Any) -> KeepingCache:
    return KeepingCache(arena, None, limits, clock, QuietListener())


async def test_what_a_side_pins_stays_and_is_accounted_for_until_it_drains(
    keeping_cache: Any, connect: Any, chain: Any
) -> None:
    client, kept = connect(keeping_cache), chain("kept")
    await client.store(kept)
    keeping_cache.keeping.keep(client.session_id, kept[0])
    keeping_cache.check_integrity()
    for i in range(2 * ARENA_BLOCKS):
        await client.store(chain(i))
    assert client.present(kept) == 1
    await keeping_cache.drain()
    keeping_cache.check_integrity()
    assert keeping_cache.keeping.pins() == {}


def test_a_side_is_ticked_after_what_is_overdue_was_ended(
    keeping_cache: Any, connect: Any, clock: Any, limits: Any
) -> None:
    connect(keeping_cache)
    keeping_cache.tick()
    clock.advance(limits.session_ttl_seconds + 1)
    keeping_cache.tick()
    assert keeping_cache.keeping.sessions_at_ticks == [1, 0]


def test_a_side_is_refused_a_session_that_is_overdue(
    keeping_cache: Any, connect: Any, clock: Any, limits: Any, chain: Any
) -> None:
    client = connect(keeping_cache)
    clock.advance(limits.session_ttl_seconds + 1)
    with pytest.raises(SessionUnknownError):
        keeping_cache.keeping.keep(client.session_id, chain(1)[0])


def test_parts_cannot_be_replaced(arena: Any, limits: Any, clock: Any) -> None:
    parts = build_parts(arena, None, limits, clock, QuietListener(), CachePolicies())
    with pytest.raises(dataclasses.FrozenInstanceError):
        parts.cold = None  # type: ignore[misc]
    assert (parts.cold, parts.writer, parts.promoter) == (None, None, None)
    parts.verifier.close()
