"""Witness: notes what each lease served, and hands it to the journal once a tick.

    opened --> fresh --tick--> begun (its begin is in the journal)
    ended  ------------------> waits --tick--> the journal, synced

A lease that begins and ends between two ticks is one record. Whoever acquires or releases waits for
no disk: a lease costs some microseconds of the loop, and the journal has a thread of its own.

Invariant: every lease that ended while the service lived is attested once, or counted in a gap;
what waits is bounded. A gap begins where the last thing that is known to be in the journal ends, so
that it may be too long and is never too short. Event loop only.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from cache_service.attest.attestation import (
    Attested,
    Gap,
    GapReason,
    LeaseAttestation,
    LeaseEnd,
    LeaseGrant,
    TierBlocks,
)
from cache_service.attest.dialect import Begun
from cache_service.lease import Lease, LeaseHow
from cache_service.session import Session
from journal.format import Begin, End
from journal.journal import Journal
from kvtier.blocks import Tier

__all__ = ["ALIVE_FILE", "Identity", "Witness"]

log = logging.getLogger(__name__)

UNWRITTEN_MAX = 50_000
"""Attestations that wait for a journal that cannot be written; about 20 MB."""

ALIVE_FILE = "alive"
"""Its time of change says when the service last was: what a killed one leaves behind."""

_ENDS = {
    LeaseHow.RELEASED: LeaseEnd.RELEASED,
    LeaseHow.NOTHING_READY: LeaseEnd.NOTHING_READY,
    LeaseHow.ABANDONED: LeaseEnd.ABANDONED,
    LeaseHow.EXPIRED: LeaseEnd.EXPIRED,
    LeaseHow.SESSION_CLOSED: LeaseEnd.SESSION_CLOSED,
    LeaseHow.SESSION_EXPIRED: LeaseEnd.SESSION_EXPIRED,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who attests."""

    node: str
    instance_id: str


@dataclass(slots=True)
class _Note:
    """What was known when the lease was given."""

    grant: LeaseGrant
    tiers: bytes
    """Of its blocks, in chain order."""


class Witness:
    """Of one run of the service. `tick` every 200 ms; `close` once no call comes any more."""

    def __init__(
        self,
        journal: Journal[Begun, Attested],
        identity: Identity,
        written: Callable[[int], None],
        wall_clock_ns: Callable[[], int],
    ) -> None:
        """`written` is told how many more are durable, to be delivered."""
        self._journal = journal
        self._identity = identity
        self._written_more = written
        self._wall_clock_ns = wall_clock_ns
        self._notes: dict[str, _Note] = {}
        self._fresh: dict[str, LeaseGrant] = {}
        """Not ended, and their begin is not in the journal."""
        self._behind = False
        """A begin from before the last tick is not in the journal."""
        self._waits: list[Attested] = []
        self._under_way: asyncio.Future[None] | None = None
        self._ticked_ns = wall_clock_ns()
        """Everything up to then was handed to the journal."""
        self._dropped = 0
        self._dropped_since_ns = 0
        self._gaps = 0
        self._owed = 0
        """Attestations that the journal could not write yet."""
        self.attested_count = 0
        self.unwritten_count = 0
        """Leases that are in a gap instead."""

    @property
    def open_count(self) -> int:
        return len(self._notes)

    def opened(
        self, lease: Lease, session: Session, request_id: str, owner: str, tiers: bytes
    ) -> None:
        """`lease` was given for a request; `tiers`: where its blocks were."""
        grant = LeaseGrant(
            lease.lease_id,
            request_id,
            session.client_name,
            session.session_id,
            self._identity.node,
            self._identity.instance_id,
            owner,
            session.namespace_id,
            session.block_tokens,
            self._wall_clock_ns(),
            _by_tier(tiers, len(tiers)),
        )
        self._notes[lease.lease_id] = _Note(grant, tiers)
        self._fresh[lease.lease_id] = grant

    def ended(self, lease: Lease, how: LeaseHow) -> None:
        self._end(lease.lease_id, lease.ready_count, lease.corrupt_count, _ENDS[how])

    def tick(self) -> None:
        """Hands on what came together, unless the journal still has the last of it."""
        if self._under_way is not None:
            return
        if not self._journal.unwritten_count and not self._dropped and not self._behind:
            self._note_alive()
        self._ticked_ns = self._wall_clock_ns()
        self._close_gap()
        if not self._waits and (not self._fresh or self._journal.full):
            self._behind = bool(self._fresh)
            return
        fresh, self._fresh = self._fresh, {}
        waits, self._waits = self._waits, []
        records: list[Begin[Begun] | End[Attested]] = [Begin(grant) for grant in fresh.values()]
        records += [End(event) for event in waits]
        self._under_way = self._journal.submit(records)
        self._under_way.add_done_callback(lambda done: self._written(done, fresh, len(waits)))

    async def close(self, leases: dict[str, Lease]) -> None:
        """Attests what is open still, `leases` by id, and returns when all is durable or given up;
        says that the service ended well."""
        for lease_id in list(self._notes):
            lease = leases.get(lease_id)
            ready, corrupt = (lease.ready_count, lease.corrupt_count) if lease else (0, 0)
            self._end(lease_id, ready, corrupt, LeaseEnd.STOPPED)
        await self._settled()
        self.tick()
        await self._settled()
        if self._waits or self._dropped or self._journal.unwritten_count:
            log.error("not every lease is attested; the next start says so")
            return
        (self._journal.directory / ALIVE_FILE).unlink(missing_ok=True)

    async def _settled(self) -> None:
        if self._under_way is not None:
            await asyncio.wait([self._under_way])

    def _end(self, lease_id: str, ready: int, corrupt: int, end: LeaseEnd) -> None:
        note = self._notes.pop(lease_id, None)
        if note is None:
            return
        self._fresh.pop(lease_id, None)
        served = note.grant.granted
        if ready < len(note.tiers):
            served = _by_tier(note.tiers, ready)
        now_ns = max(self._wall_clock_ns(), note.grant.start_time_ns)
        if self._room():
            self._waits.append(LeaseAttestation(note.grant, now_ns, end, served, corrupt))
            self.attested_count += 1
            return
        start_ns = note.grant.start_time_ns
        if not self._dropped or start_ns < self._dropped_since_ns:
            self._dropped_since_ns = start_ns
        self._dropped += 1
        self.unwritten_count += 1

    def _room(self) -> bool:
        waiting = len(self._waits) + self._journal.unwritten_count
        return waiting < UNWRITTEN_MAX and not self._journal.full

    def _close_gap(self) -> None:
        """Writes down what could not be attested, once something can be again."""
        if not self._dropped or not self._room():
            return
        self._gaps += 1
        self._waits.append(
            Gap(
                f"gap/{self._identity.instance_id}/{self._gaps}",
                self._identity.node,
                self._identity.instance_id,
                self._dropped_since_ns,
                max(self._wall_clock_ns(), self._dropped_since_ns),
                GapReason.UNWRITTEN,
                self._dropped,
            )
        )
        self._dropped = 0

    def _written(
        self, done: "asyncio.Future[None]", begun: dict[str, LeaseGrant], count: int
    ) -> None:
        self._under_way = None
        failed = not done.cancelled() and done.exception() is not None
        self._behind = failed
        if failed:
            # The journal keeps ends that it could not write, and no begins.
            still = {name: grant for name, grant in begun.items() if name in self._notes}
            self._fresh = still | self._fresh
        if not failed and count:
            self._written_more(count + self._owed)
            self._owed = 0
        elif failed:
            self._owed += count  # The journal has them, and writes them when it can.

    def _note_alive(self) -> None:
        """All up to the tick before is in the journal."""
        # Where that cannot be said the file's time stays old, and a gap would be long.
        with contextlib.suppress(OSError):
            os.utime(self._journal.directory / ALIVE_FILE, ns=(self._ticked_ns, self._ticked_ns))


def _by_tier(tiers: bytes, count: int) -> TierBlocks:
    """Of the first so many blocks."""
    return TierBlocks(*(tiers.count(tier, 0, count) for tier in (Tier.HOST, Tier.SSD, Tier.SHARED)))
