"""Parts: the owners of the cache's state, built once, together, and shared by all its sides.

    arena, SSD tier, limits, clock -> index -> leases, reservations, room -> cold side -> lifetimes

Invariant: nothing here is replaced while the cache lives; each part alone writes its own state, and
a side changes it through that part's methods. Event loop only.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache_service.closing import Closing
from cache_service.cold_side import ColdSide
from cache_service.index import BlockIndex
from cache_service.lease import LeaseTable
from cache_service.lifetimes import Lifetimes
from cache_service.listener import CacheListener
from cache_service.promotion import Promoter
from cache_service.reservation import ReservationTable
from cache_service.room import HostRoom
from cache_service.session import SessionTable
from cache_service.ssd_health import SsdHealth
from cache_service.ssd_writer import SsdWriter
from cache_service.store_log import StoreLog
from cache_service.tally import Tally
from cache_service.verifier import Verifier
from cache_service.views import CacheLimits, CachePolicies
from storage.host.arena import HostArena
from storage.policy.choice import eviction_order

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["Parts", "build_parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a side of the cache may ask for in its constructor."""

    limits: CacheLimits
    clock: Callable[[], float]
    """Seconds, monotonic."""
    arena: HostArena
    tally: Tally
    index: BlockIndex
    sessions: SessionTable
    leases: LeaseTable
    reservations: ReservationTable
    room: HostRoom
    verifier: Verifier
    health: SsdHealth
    cold: ColdSide | None
    """None without an SSD tier, like the writer and the promoter."""
    stores: StoreLog
    closing: Closing
    lifetimes: Lifetimes
    """Ask it for sessions, and for the time before a deadline is looked at."""

    @property
    def writer(self) -> SsdWriter | None:
        return None if self.cold is None else self.cold.writer

    @property
    def promoter(self) -> Promoter | None:
        return None if self.cold is None else self.cold.promoter


def build_parts(
    arena: HostArena,
    ssd: "SsdTier | None",
    limits: CacheLimits,
    clock: Callable[[], float],
    listener: CacheListener,
    policies: CachePolicies,
    wall: Callable[[], float] = time.time,
) -> Parts:
    """The parts over an arena and, where given, an SSD tier, whose blocks are in the index then."""
    tally = Tally(listener)
    leaving = ssd is not None and policies.ssd_write_when == "leaving"
    index = BlockIndex(
        arena,
        eviction_order(policies.host_eviction, backed=leaving),
        eviction_order(policies.ssd_eviction),
        limits.evicted_memory_count,
        clock,
        wall,
    )
    if policies.quotas:
        index.limit(policies.quotas)
    sessions = SessionTable(limits.max_sessions, limits.session_ttl_seconds)
    leases = LeaseTable(index, limits.max_leases_per_session, limits.answer_memory_count)
    reservations = ReservationTable(
        index, arena, limits.max_reservations_per_session, limits.answer_memory_count
    )
    room = HostRoom(arena, index, tally, limits.room_wait_seconds)
    health = SsdHealth(clock, limits.ssd_retry_seconds)
    cold: ColdSide | None = None
    if ssd is not None:
        cold = ColdSide(ssd, arena, index, room, health, limits, policies, tally, clock)
        cold.recover()
    return Parts(
        limits=limits,
        clock=clock,
        arena=arena,
        tally=tally,
        index=index,
        sessions=sessions,
        leases=leases,
        reservations=reservations,
        room=room,
        verifier=Verifier(arena),
        health=health,
        cold=cold,
        stores=StoreLog(),
        closing=Closing(),
        lifetimes=Lifetimes(
            sessions, leases, reservations, room, tally, clock, limits.reservation_grace_seconds
        ),
    )
