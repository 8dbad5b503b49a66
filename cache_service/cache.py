"""Cache: the core of the service, behind its gRPC edge.

    sessions --> acquiring (lookup, lease, promote) --> release
        \\------> storing   (reserve, commit)        --> write behind to the SSD

Invariant: blocks that a live lease, reservation, read or write names do not leave; capacity is
exact in both tiers; a miss is a value with a reason and never an error. All state belongs to one
event loop; there are no locks. Every deadline is checked on every call, so `tick` only bounds how
long something expired lingers while nobody calls.
"""

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from cache_service.acquiring import Acquiring
from cache_service.chains import check_chain
from cache_service.cold_side import ColdSide
from cache_service.corrupt_reports import CorruptReports
from cache_service.errors import (
    BlockTooLargeForArenaError,
    LeaseExpiredError,
    LeaseUnknownError,
    NoSsdTierError,
    ReservationUnknownError,
)
from cache_service.index import BlockIndex
from cache_service.integrity import check_holders
from cache_service.lease import LeaseTable
from cache_service.listener import CacheListener
from cache_service.reservation import Reservation, ReservationState, ReservationTable
from cache_service.room import HostRoom
from cache_service.session import Session, SessionTable, wrong_block_size
from cache_service.ssd_health import SsdHealth
from cache_service.stats import collect_stats
from cache_service.storing import Storing
from cache_service.tally import Tally
from cache_service.verifier import Verifier
from cache_service.views import (
    AcquireEvent,
    CacheLimits,
    CachePolicies,
    CacheStats,
    PassView,
    PrefixView,
    ReservationView,
    SessionView,
    Transport,
)
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash, NamespaceId
from storage.errors import BlockTooLargeError
from storage.host.arena import HostArena
from storage.policy.choice import eviction_order
from storage.tier import Slab, rounded

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["Cache"]


DEFAULT_POLICIES = CachePolicies()
ROWS_AHEAD_MAX = 8_000_000
"""Blocks for which the index takes address space when a session opens; more cost a pause later."""


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
    ) -> None:
        self.instance_id = secrets.token_hex(16)
        self.arena = arena
        self._limits = limits
        self._clock = clock
        self._started = clock()
        self._tally = Tally(listener)
        self._index = BlockIndex(
            arena,
            eviction_order(policies.host_eviction),
            eviction_order(policies.ssd_eviction),
            limits.evicted_memory_count,
        )
        self._sessions = SessionTable(limits.max_sessions, limits.session_ttl_seconds)
        self._leases = LeaseTable(
            self._index, limits.max_leases_per_session, limits.answer_memory_count
        )
        self._reservations = ReservationTable(
            self._index, arena, limits.max_reservations_per_session, limits.answer_memory_count
        )
        self._room = HostRoom(arena, self._index, self._tally, limits.room_wait_seconds)
        self._verifier = Verifier(arena)
        health = SsdHealth(clock, limits.ssd_retry_seconds)
        self._cold: ColdSide | None = None
        if ssd is not None:
            self._cold = ColdSide(
                ssd, arena, self._index, self._room, health, limits, policies, self._tally, clock
            )
            self._cold.recover()
        writer = self._cold.writer if self._cold is not None else None
        promoter = self._cold.promoter if self._cold is not None else None
        self._acquiring = Acquiring(
            self._index, self._leases, promoter, writer, health, limits, clock, self._tally
        )
        self._storing = Storing(
            self._index,
            self._reservations,
            self._room,
            writer,
            health,
            self._verifier,
            limits,
            clock,
            self._tally,
        )
        self._reports = CorruptReports(self._index, self._verifier, writer, self._tally)
        self._draining = False

    # -- sessions ----------------------------------------------------------------------------------

    def open_session(
        self,
        namespace_id: NamespaceId,
        block_bytes: int,
        block_tokens: int,
        client_name: str,
        transport: Transport,
    ) -> SessionView:
        """Raises InvalidNamespaceError, InvalidBlockSizeError, BlockTooLargeForArenaError,
        TooManySessionsError.
        """
        now = self._expire()
        if block_bytes > 0:
            self._check_block_size(namespace_id, block_bytes)
        self._expect(block_bytes)
        session = self._sessions.open(
            namespace_id, block_bytes, block_tokens, client_name, transport, now
        )
        self._tally.session_opened(session.session_id, client_name)
        return SessionView(
            session.session_id,
            session.ticket,
            self._limits.session_ttl_seconds,
            self._limits.lease_ttl_seconds,
            self._limits.reservation_ttl_seconds,
            self._limits.max_blocks_per_call,
        )

    def close_session(self, session_id: str) -> None:
        """Ends a session and what it holds. Idempotent."""
        self._close(session_id, self._expire(), expired=False)

    def attach(self, ticket: bytes) -> str:
        """The session whose ticket the arena socket was shown; a ticket works once.

        Raises SessionUnknownError.
        """
        self._expire()
        return self._sessions.present(ticket)

    # -- reading -----------------------------------------------------------------------------------

    def lookup(self, session_id: str, chain: list[BlockHash]) -> PrefixView:
        """How much of the chain is present. Raises SessionUnknownError, MalformedChainError,
        TooManyBlocksError.
        """
        session = self._session(session_id)
        check_chain(chain, self._limits.max_blocks_per_call)
        return self._acquiring.lookup(session, chain)

    async def acquire(
        self,
        session_id: str,
        request_id: str,
        chain: list[BlockHash],
        load_timeout_seconds: float | None,
    ) -> AsyncGenerator[AcquireEvent, None]:
        """One MatchView, ReadyViews in order, one EndView. Closed earlier: the lease is released.

        Raises before the first event: SessionUnknownError, MalformedChainError,
        TooManyBlocksError, TooManyLeasesError. `request_id` is for attestation and logs.
        """
        session = self._session(session_id)
        check_chain(chain, self._limits.max_blocks_per_call)
        events = self._acquiring.acquire(session, chain, load_timeout_seconds)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    def release(self, session_id: str, lease_id: str, corrupt: list[BlockHash]) -> None:
        """Ends a lease. Idempotent. Blocks reported as corrupt are checked, then dropped if so.

        Raises SessionUnknownError.
        """
        self._session(session_id)
        if corrupt:
            try:
                lease = self._leases.find(session_id, lease_id)
            except (LeaseUnknownError, LeaseExpiredError):
                return
            reported = set(corrupt)
            readable = lease.rows[: lease.ready_count]
            self._reports.take(r for r in readable if self._index.tree.block_hash(r) in reported)
        self._leases.release(session_id, lease_id)
        self._room.changed()

    def renew(self, session_id: str, ids: Sequence[str]) -> dict[str, float | None]:
        """Seconds until each lease or reservation ends from now; None: unknown or expired.

        Raises SessionUnknownError.
        """
        self._session(session_id)
        now = self._clock()
        renewed: dict[str, float | None] = {}
        for each in ids:
            if self._leases.renew(session_id, each, now + self._limits.lease_ttl_seconds):
                renewed[each] = self._limits.lease_ttl_seconds
            elif self._reservations.renew(
                session_id, each, now + self._limits.reservation_ttl_seconds
            ):
                renewed[each] = self._limits.reservation_ttl_seconds
            else:
                renewed[each] = None
        return renewed

    def leased_block(self, session_id: str, lease_id: str, index: int) -> tuple[Slab, int]:
        """Slab and payload bytes of a readable block; `index` counts from the chain's first.

        Raises SessionUnknownError, LeaseUnknownError, LeaseExpiredError, InvalidRangeError.
        """
        self._session(session_id)
        row = self._leases.row(session_id, lease_id, index)
        return self._index.tree.slab(row), self._index.tree.payload_bytes(row)

    # -- storing -----------------------------------------------------------------------------------

    async def reserve(
        self, session_id: str, request_id: str, chain: list[BlockHash]
    ) -> ReservationView:
        """Slabs for the blocks of a whole chain that are missing.

        Raises SessionUnknownError, MalformedChainError, TooManyBlocksError,
        TooManyReservationsError.
        """
        session = self._session(session_id)
        check_chain(chain, self._limits.max_blocks_per_call)
        if self._draining:
            return ReservationView("", 0.0, (), (), len(chain), MissReason.UNAVAILABLE)
        return await self._storing.reserve(session, request_id, chain)

    def reserved_slab(self, session_id: str, reservation_id: str, index: int) -> tuple[Slab, int]:
        """Slab and payload bytes of block `index` of the reservation's chain.

        Raises SessionUnknownError, ReservationUnknownError, ReservationExpiredError,
        InvalidRangeError.
        """
        session = self._session(session_id)
        slab = self._reservations.slab(session_id, reservation_id, index)
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
            found = self._reservations.find(session_id, reservation_id)
        except ReservationUnknownError:
            return
        if isinstance(found, Reservation) and found.state is ReservationState.OPEN:
            self._reservations.end(found, ReservationUnknownError, None)
            self._room.changed()

    # -- life --------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ends what is overdue and wakes the SSD writer. Call every 200 ms on the loop."""
        self._expire()
        if self._cold is not None:
            self._cold.writer.wake()
            self._cold.scrubbing.start()

    def stats(self) -> CacheStats:
        """Counts and sizes. Changes nothing."""
        return collect_stats(
            instance_id=self.instance_id,
            uptime_seconds=self._clock() - self._started,
            arena=self.arena,
            index=self._index,
            sessions=self._sessions,
            leases=self._leases,
            reservations=self._reservations,
            room=self._room,
            cold=self._cold,
            ready_bytes=self._acquiring.ready_bytes,
            counters=self._tally.counters,
        )

    async def verify(self, bytes_per_second: int) -> AsyncGenerator[PassView, None]:
        """Reads and checks every block on the SSD, drops what is bad; see `scrubbing.py`.

        Raises before the first view: NoSsdTierError, VerifyRunningError.
        """
        if self._cold is None:
            raise NoSsdTierError("this cache keeps nothing on an SSD: there is nothing to verify")
        async with aclosing(self._cold.scrubbing.verify(bytes_per_second)) as views:
            async for view in views:
                yield view

    async def drain(self) -> None:
        """Takes no more blocks, finishes commits, writes what waits, closes the SSD tier."""
        self._draining = True
        await self._storing.drain()
        await self._reports.drain()
        if self._cold is not None:
            await self._cold.drain()
        self._verifier.close()

    def check_integrity(self) -> None:
        """Sum of parts = whole over every owner; for tests."""
        for owner in (self._index, self._sessions, self._leases, self._reservations, self.arena):
            owner.check_integrity()
        holders = [self._leases.pins(), self._reservations.pins(), self._reports.pins()]
        if self._cold is not None:
            self._cold.writer.check_integrity()
            holders += [self._cold.writer.pins(), self._cold.promoter.pins()]
        loading = self._cold.promoter.loading_count if self._cold is not None else 0
        reserved, slabs = self._reservations.slabs(), self.arena.slab_count
        check_holders(self._index.tree, holders, reserved, slabs, loading)

    # -- below -------------------------------------------------------------------------------------

    def _session(self, session_id: str) -> Session:
        return self._sessions.find(session_id, self._expire())

    def _check_block_size(self, namespace_id: NamespaceId, block_bytes: int) -> None:
        known = self._index.namespace_payload_bytes(namespace_id)
        if known is not None and known != block_bytes:
            raise wrong_block_size(block_bytes, known)
        try:
            self.arena.slab_bytes(block_bytes)
        except BlockTooLargeError as error:
            raise BlockTooLargeForArenaError(str(error), **error.metadata) from error

    def _expect(self, block_bytes: int) -> None:
        """Makes room in the index for as many blocks of this size as the tiers hold."""
        if block_bytes > 0:
            capacity = self.arena.capacity_bytes
            if self._cold is not None:
                capacity += self._cold.ssd.stats().capacity_bytes
            self._index.tree.reserve(min(capacity // rounded(block_bytes), ROWS_AHEAD_MAX))

    def _expire(self) -> float:
        """Ends everything whose deadline passed; returns the time it went by."""
        now = self._clock()
        for session_id in self._sessions.due(now):
            self._close(session_id, now, expired=True)
        leases = self._leases.expire(now)
        if leases:
            self._tally.leases_expired(leases)
        reservations = self._reservations.expire(now, self._limits.reservation_grace_seconds)
        if reservations:
            self._tally.reservations_expired(reservations)
        if leases or self._reservations.free_rested(now):
            self._room.changed()
        return now

    def _close(self, session_id: str, now: float, *, expired: bool) -> None:
        if self._sessions.close(session_id) is None:
            return
        self._leases.release_session(session_id)
        rest_until = now + self._limits.reservation_grace_seconds
        for reservation in self._reservations.of_session(session_id):
            # A commit under way runs to its end: its blocks are whole, others may use them.
            if reservation.state is not ReservationState.COMMITTING:
                self._reservations.end(reservation, ReservationUnknownError, rest_until)
        self._room.changed()
        self._tally.session_closed(session_id, expired)
