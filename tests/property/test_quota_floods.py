"""Two tenants with soft quotas that memory can hold at once: one floods it, in whatever order, and
the other never has less than it had, up to its quota, and always gets what it stores within it."""

import asyncio
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cache_service.cache import Cache
from cache_service.hints import Hints
from cache_service.listener import QuietListener
from cache_service.owner_runs import OwnerRuns
from cache_service.quotas import Quota, Quotas
from cache_service.views import CacheLimits, CachePolicies, Transport
from storage.host.arena import HostArena
from storage.policy.choice import POLICIES
from storage.tier import PAGE_BYTES
from tests.unit.cache_service.conftest import (
    BLOCK_BYTES,
    NAMESPACE,
    Client,
    HandClock,
    chain_of,
)

SLABS = 16
QUIET_SOFT = 6
FLOOD_SOFT = 5

stores = st.tuples(st.just("store"), st.sampled_from(["quiet", "flood"]), st.integers(1, 9))
floods = st.tuples(st.sampled_from(["store", "one-off"]), st.just("flood"), st.integers(1, 20))
uses = st.tuples(st.just("use"), st.sampled_from(["quiet", "flood"]), st.integers(0, 50))


class Crowd:
    """A cache of sixteen slabs and what each tenant stored, by tenant."""

    def __init__(self, policy: str) -> None:
        soft = {"quiet": QUIET_SOFT, "flood": FLOOD_SOFT}
        quotas = {name: Quota(host_soft_bytes=n * BLOCK_BYTES) for name, n in soft.items()}
        self.clock = HandClock()
        self.arena = HostArena(SLABS * PAGE_BYTES, extent_bytes=4 * PAGE_BYTES)
        policies = CachePolicies(quotas=Quotas(quotas), host_eviction=policy)
        limits = CacheLimits(room_wait_seconds=0.2, max_blocks_per_call=64)
        self.cache = Cache(self.arena, None, limits, self.clock, QuietListener(), policies)
        opened = self.cache.open_session(
            NAMESPACE, BLOCK_BYTES, 64, "test", Transport.SHARED_MEMORY
        )
        self.client = Client(self.cache, opened)
        self.chains: dict[str, list[list[Any]]] = {"quiet": [], "flood": []}
        self.names = count()

    def held(self, tenant: str) -> int:
        accounts = self.cache._parts.index.accounts
        assert accounts is not None
        sizes = {view.name: view.host_bytes // BLOCK_BYTES for view in accounts.views(10)}
        return sizes.get(tenant, 0)

    async def act(self, kind: str, tenant: str, number: int) -> None:
        self.clock.advance(1)
        if kind == "use":
            if self.chains[tenant]:
                chain = self.chains[tenant][number % len(self.chains[tenant])]
                self.client.release(await self.client.acquire(chain))
            return
        before = self.held(tenant)
        chain = chain_of(*(f"{tenant} {next(self.names)}" for _ in range(number)))
        hints = Hints(one_off=kind == "one-off", owners=OwnerRuns((tenant,), (64,)))
        committed = await self.client.store(chain, hints)
        if committed:
            self.chains[tenant].append(chain[:committed])
        if tenant == "quiet" and before + number <= QUIET_SOFT:
            assert committed == number, "what is within its quota was refused"
            assert self.held(tenant) == before + number, "its own blocks left for it"


@given(st.lists(stores | floods | uses, min_size=5, max_size=40), st.sampled_from(sorted(POLICIES)))
@settings(max_examples=150, deadline=None)
def test_a_flood_takes_nothing_that_is_within_another_tenants_quota(
    actions: list[tuple[str, str, int]], policy: str
) -> None:
    async def life() -> None:
        crowd, floor = Crowd(policy), 0
        for kind, tenant, number in actions:
            await crowd.act(kind, tenant, number)
            held = crowd.held("quiet")
            assert held >= floor, "it has less than its quota, and had it before"
            floor = max(floor, min(held, QUIET_SOFT))
            assert held + crowd.held("flood") <= SLABS
        await crowd.cache.drain()
        crowd.arena.close()

    asyncio.run(life())
