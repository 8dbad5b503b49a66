"""Cache services' cores that have one shared tier, a directory, and what clients do with them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache_service.cache import Cache
from cache_service.hints import ChainPlace, Hints
from cache_service.listener import QuietListener
from cache_service.views import CacheLimits, CachePolicies, EndView, MatchView, ReadyView
from kvtier.keys import BlockHash
from storage.host.arena import HostArena
from storage.shared.object_store import open_object_store
from storage.shared.tier import SharedLimits, SharedTier
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.shared.faulty_store import FaultyStore

ROOT = Hints(place=ChainPlace(0, BlockHash(b"")))
LIMITS = SharedLimits(0.2, 0.4)


class Host:
    """A cache service's core on the directory that all hosts have."""

    def __init__(
        self,
        path: Path,
        limits: CacheLimits,
        clock: Callable[[], float],
        slabs: int = 64,
        policies: CachePolicies | None = None,
        ssd: SsdTier | None = None,
        shared_limits: SharedLimits = LIMITS,
    ) -> None:
        self.arena = HostArena(slabs * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        self.store = FaultyStore(open_object_store(f"file://{path}", {}))
        tier = SharedTier(self.store, shared_limits)
        policies = policies or CachePolicies()
        quiet = QuietListener()
        self.cache = Cache(self.arena, ssd, limits, clock, quiet, policies, shared=tier)

    @property
    def counters(self) -> Any:
        return self.cache.stats().counters

    async def written(self) -> None:
        """Returns when the shared tier has what was stored here."""
        assert self.cache.shared is not None
        while self.cache.shared.writer.pending_count:
            await asyncio.sleep(0.001)
        self.cache.check_integrity()

    async def close(self) -> None:
        self.store.before = lambda _call: None
        await self.cache.drain()
        self.cache.check_integrity()
        self.arena.close()


class Gate:
    """Holds reads of a host's store back until it is opened: before, or after the engine read."""

    def __init__(self, host: Host, *, after: bool = False) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        if after:
            host.store.after = self._hold
        else:
            host.store.before = self._hold

    def _hold(self, call: str) -> "asyncio.Future[bool] | None":
        if call != "read":
            return None
        self.reached.set()
        return asyncio.ensure_future(self.opened.wait())


class Acquired:
    """All that was said of one acquire."""

    def __init__(self, match: MatchView, ready: list[ReadyView], end: EndView) -> None:
        self.match, self.ready, self.end = match, ready, end
        self.ready_count = end.ready_count


async def acquire(
    client: Any, chain: list[BlockHash], hints: Hints = ROOT, timeout: float = 5.0
) -> tuple[MatchView, list[ReadyView], EndView]:
    events: list[Any] = []
    async for event in client.cache.acquire(client.session_id, "r", chain, timeout, hints):
        client.cache.check_integrity()
        events.append(event)
    client.cache.check_integrity()
    return events[0], events[1:-1], events[-1]


async def hit(client: Any, chain: list[BlockHash], **how: Any) -> EndView:
    """Acquires, compares every byte, releases."""
    match, ready, end = await acquire(client, chain, **how)
    client.check_payloads(chain, Acquired(match, ready, end))
    client.cache.release(client.session_id, match.lease_id, [])
    return end
