"""Cache: the core of the service, behind its gRPC edge.

    sessions --> acquiring (lookup, lease, promote) --> release
        \\------> storing   (reserve, commit)        --> write behind to the SSD

Invariant: blocks that a live lease, reservation, read or write names do not leave; capacity is
exact in both tiers; a miss is a value with a reason and never an error. All state belongs to one
event loop; there are no locks. Every deadline is checked on every call, so `tick` only bounds how
long something expired lingers while nobody calls. `parts.py` builds the owners of state, `side.py`
says what a side of the cache is; each is entered with one line here.
"""

import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from cache_service.acquiring import Acquiring
from cache_service.attest.attestation import Attested
from cache_service.attest.dialect import Begun
from cache_service.attest.side import Attesting
from cache_service.attest.witness import Identity, Witness
from cache_service.block_sizes import check_block_size, expect_blocks
from cache_service.bulk.transfers import Transfers
from cache_service.chains import check_chain
from cache_service.corrupt_reports import CorruptReports
from cache_service.errors import (
    LeaseExpiredError,
    LeaseUnknownError,
    NoSsdTierError,
    ReservationUnknownError,
)
from cache_service.events.log import EventLog
from cache_service.events.watching import Watching
from cache_service.expiring import Expiring
from cache_service.explaining import Explaining
from cache_service.hints import NO_HINTS, Hints
from cache_service.integrity import check_holders
from cache_service.listener import CacheListener
from cache_service.metering.metering import StorageMetering
from cache_service.owner_views import OwnersView
from cache_service.parts import build_parts
from cache_service.pins import Pins
from cache_service.prewarming import Prewarming
from cache_service.purging import Purging
from cache_service.reservation import Reservation, ReservationState
from cache_service.session import Session
from cache_service.shared_side import SharedSide
from cache_service.side import Side
from cache_service.stats import collect_stats
from cache_service.storing import Storing
from cache_service.unit_saving import UnitSaving
from cache_service.views import (
    AcquireEvent,
    AttachedView,
    CacheLimits,
    CachePolicies,
    CacheStats,
    PassView,
    PrefixView,
    ReservationView,
    SessionView,
    Transport,
)
from journal.journal import Journal
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.host.arena import HostArena
from storage.tier import Slab

if TYPE_CHECKING:
    from storage.shared.tier import SharedTier
    from storage.ssd.tier import SsdTier

__all__ = ["Cache"]

SideT = TypeVar("SideT", bound=Side)

DEFAULT_POLICIES = CachePolicies()


class Cache:
    """Sessions, leases and reservations over a host arena and, where given, an SSD tier.

    Takes over both: `drain` closes the SSD tier; the arena is its caller's to close after that.
    """

    def __init__(
        self,
        arena: HostArena,
        ssd: "SsdTier | None",
        limits: CacheLimits,
        clock: Callable[[], float],
        listener: CacheListener,
        policies: CachePolicies = DEFAULT_POLICIES,
        wall: Callable[[], float] = time.time,
        shared: "SharedTier | None" = None,
    ) -> None:
        """`clock`: seconds, monotonic; `wall`: Unix seconds, for what outlives a start."""
        self.instance_id = secrets.token_hex(16)
        self.arena = arena
        self._started = clock()
        self._draining = False
        self._sides: list[Side] = []
        self._metering: StorageMetering | None = None
        self._parts = parts = build_parts(arena, ssd, limits, clock, listener, policies, wall)
        self.shared: SharedSide | None = None
        if shared is not None:
            self.shared = SharedSide(parts, shared, writes=policies.shared_writes)
        self._acquiring = Acquiring(parts, self.shared)
        self._storing = self._enter(Storing(parts, self.shared))
        self._reports = self._enter(CorruptReports(parts))
        self.bulk = self._enter(Transfers(parts))
        """What the threads of the bulk lane are given; see `cache_service/bulk/`."""
        events = self._enter(EventLog(parts.index, limits))
        self.watching = Watching(events, self.instance_id, limits, clock, parts.tally)
        self.explaining = self._enter(Explaining(parts, self._acquiring))
        self._enter(Expiring(parts))
        self._enter(UnitSaving(parts))
        self.pins = self._enter(Pins(parts, wall))
        self.prewarming = self._enter(Prewarming(parts))
        self.purging = self._enter(
            Purging(parts, self.explaining.acquires, self.pins, shared=self.shared)
        )
        if self.shared is not None:
            self._enter(self.shared)
        # The cold side last: what the others finish may still have to reach the SSD.
        if parts.cold is not None:
            self._enter(parts.cold)

    def attest(self, witness: Witness) -> None:
        """From now on `witness` is told of every lease, and ticked. Once, before there is one."""
        self._acquiring.witness = self._parts.leases.witness = witness
        self._enter(Attesting(witness, self._parts.leases))

    def meter_storage(
        self,
        journal: Journal[Begun, Attested],
        identity: Identity,
        written: Callable[[int], None],
        clock_ns: Callable[[], int],
        interval_seconds: float = 60.0,
    ) -> None:
        """From now on what is kept stored is metered. Once, before there is a session."""
        made = StorageMetering(
            self._parts.index, journal, identity, written, clock_ns, interval_seconds
        )
        self._metering = made
        self._enter(made.witness)

    # -- sessions ----------------------------------------------------------------------------------

    def open_session(
        self,
        namespace_id: NamespaceId,
        block_bytes: int,
        block_tokens: int,
        client_name: str,
        transport: Transport,
        owner: str = "",
        not_after: float = math.inf,
        model: str = "",
    ) -> SessionView:
        """`not_after`: the Unix second at which `owner`'s right to it ends; `model`: what is kept
        of the namespace is metered as.

        Raises InvalidNamespaceError, InvalidBlockSizeError, BlockTooLargeForArenaError,
        TooManySessionsError.
        """
        now = self._parts.lifetimes.expire()
        if block_bytes > 0:
            check_block_size(self._parts, namespace_id, block_bytes)
            expect_blocks(self._parts, block_bytes)
        session = self._parts.sessions.open(
            namespace_id, block_bytes, block_tokens, client_name, transport, now, owner, not_after
        )
        if self._metering is not None:
            self._metering.session_opened(namespace_id, model, block_tokens)
        self._parts.tally.session_opened(session.session_id, client_name)
        limits = self._parts.limits
        return SessionView(
            session.session_id,
            session.ticket,
            limits.session_ttl_seconds,
            limits.lease_ttl_seconds,
            limits.reservation_ttl_seconds,
            limits.max_blocks_per_call,
        )

    def maps_arena(self, session_id: str) -> bool:
        """Whether the session's client reads and writes slabs itself. Keeps nothing alive."""
        return self._parts.sessions.transport(session_id) is Transport.SHARED_MEMORY

    def session_owner(self, session_id: str) -> str | None:
        """Who opened it; None when there is no such session."""
        return self._parts.sessions.owner(session_id)

    def close_session(self, session_id: str) -> None:
        """Ends a session and what it holds. Idempotent."""
        self._parts.lifetimes.close(session_id)

    def attach(self, ticket: bytes) -> AttachedView:
        """The session whose ticket the arena socket was shown; a ticket works once.

        Raises SessionUnknownError.
        """
        self._parts.lifetimes.expire()
        session = self._parts.sessions.present(ticket)
        return AttachedView(session.session_id, session.not_after)

    # -- reading -----------------------------------------------------------------------------------

    def lookup(self, session_id: str, chain: Sequence[BlockHash]) -> PrefixView:
        """How much of the chain is present. Raises SessionUnknownError, MalformedChainError,
        TooManyBlocksError.
        """
        session = self._session(session_id)
        checked = check_chain(chain, self._parts.limits.max_blocks_per_call)
        return self._acquiring.lookup(session, checked)

    def acquire_resident(
        self,
        session_id: str,
        request_id: str,
        chain: Sequence[BlockHash],
        hints: Hints = NO_HINTS,
    ) -> list[AcquireEvent]:
        """All events of an acquire with nothing to load; else none. Raises as `acquire`."""
        session = self._session(session_id)
        checked = check_chain(chain, self._parts.limits.max_blocks_per_call)
        events = self._acquiring.acquire_resident(session, request_id, checked, hints)
        self.explaining.acquires.enter(session, request_id, checked, events)
        return events

    async def acquire(
        self,
        session_id: str,
        request_id: str,
        chain: Sequence[BlockHash],
        load_timeout_seconds: float | None,
        hints: Hints = NO_HINTS,
        recompute_seconds: float | None = None,
    ) -> AsyncGenerator[AcquireEvent, None]:
        """One MatchView, ReadyViews in order, one EndView. Closed earlier: the lease is released.

        `recompute_seconds`: what a block costs the caller to compute; None: unknown.
        Raises before the first event: SessionUnknownError, MalformedChainError,
        TooManyBlocksError, TooManyLeasesError. `request_id` is for whoever asks why, later.
        """
        session = self._session(session_id)
        checked = check_chain(chain, self._parts.limits.max_blocks_per_call)
        events = self._acquiring.acquire(
            session, request_id, checked, load_timeout_seconds, hints, recompute_seconds
        )
        record = self.explaining.acquires.follow(session, request_id, checked)
        try:
            async for event in events:
                record.note(event, checked)
                yield event
        finally:
            record.close()
            await events.aclose()

    def release(self, session_id: str, lease_id: str, corrupt: Sequence[BlockHash]) -> None:
        """Ends a lease. Idempotent. Blocks reported as corrupt are checked, then dropped if so.

        Raises SessionUnknownError.
        """
        self._session(session_id)
        if corrupt:
            try:
                lease = self._parts.leases.find(session_id, lease_id)
            except (LeaseUnknownError, LeaseExpiredError):
                return
            reported = set(corrupt)
            readable = lease.rows[: lease.ready_count]
            tree = self._parts.index.tree
            rows = [row for row in readable if tree.block_hash(row) in reported]
            self._parts.leases.note_corrupt(lease, len(rows))
            self._reports.take(rows)
        self._parts.leases.release(session_id, lease_id)
        self._parts.room.changed()

    def give_back(self, session_id: str, lease_ids: Sequence[str]) -> None:
        """As `release` for each. Raises SessionUnknownError."""
        if lease_ids:
            self._session(session_id)
            for lease_id in lease_ids:
                self._parts.leases.release(session_id, lease_id)
            self._parts.room.changed()

    def renew(self, session_id: str, ids: Sequence[str]) -> dict[str, float | None]:
        """Seconds until each lease or reservation ends from now; None: unknown or expired.

        Raises SessionUnknownError.
        """
        self._session(session_id)
        parts, limits, now = self._parts, self._parts.limits, self._parts.clock()
        lease_end = now + limits.lease_ttl_seconds
        reservation_end = now + limits.reservation_ttl_seconds
        renewed: dict[str, float | None] = {}
        for each in ids:
            if parts.leases.renew(session_id, each, lease_end):
                renewed[each] = limits.lease_ttl_seconds
            elif parts.reservations.renew(session_id, each, reservation_end):
                renewed[each] = limits.reservation_ttl_seconds
            else:
                renewed[each] = None
        return renewed

    def leased_block(self, session_id: str, lease_id: str, index: int) -> tuple[Slab, int]:
        """Slab and payload bytes of a readable block; `index` counts from the chain's first.

        Raises SessionUnknownError, LeaseUnknownError, LeaseExpiredError, InvalidRangeError.
        """
        self._session(session_id)
        row = self._parts.leases.row(session_id, lease_id, index)
        return self._parts.index.tree.slab(row), self._parts.index.tree.payload_bytes(row)

    # -- storing -----------------------------------------------------------------------------------

    async def reserve(
        self,
        session_id: str,
        request_id: str,
        chain: Sequence[BlockHash],
        hints: Hints = NO_HINTS,
    ) -> ReservationView:
        """Slabs for the blocks of a whole chain that are missing.

        Raises SessionUnknownError, MalformedChainError, TooManyBlocksError,
        TooManyReservationsError.
        """
        session = self._session(session_id)
        checked = check_chain(chain, self._parts.limits.max_blocks_per_call)
        if self._draining:
            return ReservationView("", 0.0, (), (), len(chain), MissReason.UNAVAILABLE)
        return await self._storing.reserve(session, request_id, checked, hints)

    def reserved_slab(self, session_id: str, reservation_id: str, index: int) -> tuple[Slab, int]:
        """Slab and payload bytes of block `index` of the reservation's chain.

        Raises SessionUnknownError, ReservationUnknownError, ReservationExpiredError,
        InvalidRangeError.
        """
        session = self._session(session_id)
        slab = self._parts.reservations.slab(session_id, reservation_id, index)
        return slab, session.block_bytes

    async def commit(
        self, session_id: str, reservation_id: str, checksums: Sequence[int], verify: bool
    ) -> int:
        """Makes a reservation's blocks visible, all or none; again: the first answer.

        Raises SessionUnknownError, ReservationUnknownError, ReservationExpiredError,
        ChecksumCountMismatchError, and with `verify` ChecksumMismatchError.
        """
        session = self._session(session_id)
        return await self._storing.commit(session, reservation_id, checksums, verify)

    def abort(self, session_id: str, reservation_id: str) -> None:
        """Gives a reservation back; the client writes into its slabs no more. Idempotent.

        Raises SessionUnknownError.
        """
        self._session(session_id)
        try:
            found = self._parts.reservations.find(session_id, reservation_id)
        except ReservationUnknownError:
            return
        if isinstance(found, Reservation) and found.state is ReservationState.OPEN:
            self._parts.reservations.end(found, ReservationUnknownError, None)
            self._parts.room.changed()

    # -- life --------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ends what is overdue and starts what is due. Call every 200 ms on the loop."""
        self._parts.lifetimes.expire()
        for side in self._sides:
            side.tick()

    def stats(self) -> CacheStats:
        """Counts and sizes. Changes nothing."""
        parts = self._parts
        return collect_stats(
            instance_id=self.instance_id,
            uptime_seconds=parts.clock() - self._started,
            arena=self.arena,
            index=parts.index,
            sessions=parts.sessions,
            leases=parts.leases,
            reservations=parts.reservations,
            room=parts.room,
            cold=parts.cold,
            ready_bytes=self._acquiring.ready_bytes,
            event_count=self.watching.last_sequence,
            watcher_count=self.watching.watcher_count,
            bulk=self.bulk,
            pin_count=len(self.pins),
            counters=parts.tally.counters,
        )

    def owners(self, count: int, *, tenants: bool = False) -> OwnersView:
        """The owners of blocks that have most, at most so many; `tenants`: organisations."""
        return self._parts.index.owners.view(count, tenants=tenants)

    async def verify(self, bytes_per_second: int) -> AsyncGenerator[PassView, None]:
        """Reads and checks every block on the SSD, drops what is bad; see `scrubbing.py`.

        Raises before the first view: NoSsdTierError, VerifyRunningError.
        """
        cold = self._parts.cold
        if cold is None:
            raise NoSsdTierError("this cache keeps nothing on an SSD: there is nothing to verify")
        async with aclosing(cold.scrubbing.verify(bytes_per_second)) as views:
            async for view in views:
                yield view

    async def drain(self) -> None:
        """Takes no more blocks, finishes commits, writes what waits, closes the SSD tier."""
        self._draining = True
        for side in self._sides:
            await side.drain()
        self._parts.verifier.close()

    def check_integrity(self) -> None:
        """Sum of parts = whole over every owner; for tests."""
        parts = self._parts
        for owner in (parts.index, parts.sessions, parts.leases, parts.reservations, parts.arena):
            owner.check_integrity()
        holders = [parts.leases.pins(), parts.reservations.pins()]
        for side in self._sides:
            side.check_integrity()
            holders.append(side.pins())
        loading = parts.promoter.loading_count if parts.promoter is not None else 0
        loading += self.shared.slab_count if self.shared is not None else 0
        reserved, slabs = parts.reservations.slabs(), parts.arena.slab_count
        check_holders(parts.index.tree, holders, reserved, slabs, loading)

    # -- below -------------------------------------------------------------------------------------

    def _enter(self, side: SideT) -> SideT:
        """From now on the cache ticks, drains and checks it, in the order of entering."""
        self._sides.append(side)
        return side

    def _session(self, session_id: str) -> Session:
        return self._parts.lifetimes.session(session_id)
