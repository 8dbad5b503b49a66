"""Many clients of one small cache load from the shared tier, store and let go, in any order: what
is read is what was stored, nothing is stranded, nothing leaks, no quota is passed."""

import asyncio
import contextlib
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cache_service.errors import PurgeRunningError
from cache_service.hints import Hints
from cache_service.owner_runs import OwnerRuns
from cache_service.purge_views import PurgeKind, PurgeTarget
from cache_service.quotas import Quota, Quotas
from cache_service.views import CacheLimits, CachePolicies, Transport
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from storage.errors import TierIOError
from storage.policy.choice import POLICIES
from storage.ssd.tier import SsdTier
from storage.tier import PAGE_BYTES
from tests.shared.hosts import Acquired, Host, acquire
from tests.unit.cache_service.conftest import BLOCK_BYTES, NAMESPACE, Client, HandClock, chain_of

LIMITS = CacheLimits(
    session_ttl_seconds=1000,
    lease_ttl_seconds=5,
    reservation_ttl_seconds=1000,
    room_wait_seconds=0.002,
    max_sessions=20,
    max_blocks_per_call=64,
    max_leases_per_session=20,
    max_reservations_per_session=20,
)
OWNERS = OwnerRuns(("", "acme", "acme/x"), (2, 9, 64))
SLABS = 20
HARD_BLOCKS = 7
QUOTAS = Quotas(
    {
        "acme": Quota(2 * BLOCK_BYTES, HARD_BLOCKS * BLOCK_BYTES),
        "*": Quota(host_soft_bytes=3 * BLOCK_BYTES),
    }
)
CHAINS: list[list[BlockHash]] = [
    chain_of(*range(24)),
    chain_of(*range(7), *("b" * 14)),
    chain_of(*("c" * 17)),
]

acts = st.tuples(
    st.sampled_from(["hit", "hit", "hit", "store", "one-off", "wait", "purge", "give up"]),
    st.integers(0, len(CHAINS) - 1),
    st.integers(1, 24),
)


def connected(host: Host) -> Client:
    shared = Transport.SHARED_MEMORY
    return Client(host.cache, host.cache.open_session(NAMESPACE, BLOCK_BYTES, 64, "c", shared))


class World:
    """A host that has all in the shared tier, and a small one."""

    def __init__(self, folder: Path, seed: int, policy: str, quotas: bool, ssd: bool) -> None:
        self.clock = HandClock()
        self.random = random.Random(seed)
        self.full = Host(folder / "shared", LIMITS, self.clock)
        tier = None
        if ssd:
            size = 16 * PAGE_BYTES
            tier = SsdTier.open(folder / "ssd", capacity_bytes=8 * size, segment_bytes=size)
        policies = CachePolicies(
            policy,
            quotas=QUOTAS if quotas else Quotas(),
            shared_writes=bool(self.random.randrange(2)),
        )
        self.small = Host(folder / "shared", LIMITS, self.clock, SLABS, policies, tier)
        self.small.store.before = self.pause

    def pause(self, _call: str) -> "asyncio.Future[None]":
        async def passes(turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        return asyncio.ensure_future(passes(self.random.randrange(30)))

    def break_engine(self) -> None:
        """From now on it is slow, hangs, refuses, and returns less, more or what others wrote."""
        seen: list[bytes] = [b""]

        async def hours() -> None:
            await asyncio.sleep(self.random.choice([0.01, 3600]))

        def before(call: str) -> "asyncio.Future[None] | None":
            kind = self.random.randrange(30)
            if kind == 0:
                raise TierIOError("Input/output error", operation=call)
            return asyncio.ensure_future(hours()) if kind == 1 else self.pause(call)

        def spoil(_name: str, raw: bytes) -> bytes | None:
            other = self.random.choice(seen)
            seen.append(raw)
            at = self.random.randrange(len(raw))
            flipped = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            broken = (None, other, raw[:at], raw + raw[:at], flipped, raw[:at] + other[at:])
            return self.random.choice((*broken, *[raw] * 12))

        self.small.store.before, self.small.store.spoil = before, spoil

    async def fill(self) -> None:
        client = connected(self.full)
        for chain in CHAINS:
            await client.store(chain, Hints(owners=OWNERS))
            await self.full.written()

    async def act(self, kind: str, chain: list[BlockHash], count: int) -> None:
        await asyncio.sleep(self.random.random() * 0.01)
        client = connected(self.small)
        part = chain[:count]
        if kind == "purge":
            target = PurgeTarget(PurgeKind.PREFIX, NAMESPACE, part[-1])
            with contextlib.suppress(PurgeRunningError):
                await self.small.cache.purging.start(target, dry_run=False)
        elif kind == "give up":
            acquiring = asyncio.ensure_future(acquire(client, part))
            for _ in range(3):
                await asyncio.sleep(self.random.random() * 0.004)
                acquiring.cancel()
            await asyncio.wait({acquiring})
        elif kind == "hit":
            match, ready, end = await acquire(client, part)
            # A lease that ended on the way protects nothing.
            if end.miss_reason is not MissReason.EXPIRED:
                client.check_payloads(part, Acquired(match, ready, end))
        elif kind == "wait":
            self.clock.advance(count)
            self.small.cache.tick()
        else:
            await client.store(part, Hints(one_off=kind == "one-off", owners=OWNERS))
        self.small.cache.check_integrity()
        self.small.cache.close_session(client.session_id)


@given(
    st.lists(acts, min_size=4, max_size=16),
    st.integers(0, 2**32),
    st.sampled_from(sorted(POLICIES)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_whatever_comes_at_once_nothing_wrong_is_read_and_nothing_leaks(
    actions: list[tuple[str, int, int]], seed: int, policy: str, quotas: bool, ssd: bool, bad: bool
) -> None:
    async def life(folder: Path) -> None:
        world = World(folder, seed, policy, quotas, ssd)
        await world.fill()
        if bad:
            world.break_engine()
        each = (world.act(kind, CHAINS[which], count) for kind, which, count in actions)
        await asyncio.gather(*each)
        await world.full.close()
        await world.small.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(life(Path(folder)))
