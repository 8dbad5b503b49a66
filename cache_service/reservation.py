"""ReservationTable: which blocks are being stored, by whom, into which slabs, until when.

    forming --> open --> committing --> committed (n)
       |         |  \\------> expired
       \\---------+---------> aborted

A reservation claims the hashes it will store: nobody else is given a slab for them meanwhile. The
blocks before its first missing one are kept by pins on the parents that are cached already.

Slabs go back when a reservation ends without a commit. Where the client may still be writing (it
expired, or its session ended) they rest in quarantine first, so that a late write cannot land in
another block. Where a thread of this process is writing (bulk lane), they go back when it says that
it stopped.

Invariant: a hash is claimed by at most one live reservation; a slab is in exactly one of: a live
reservation, an ended one that is still written, quarantine, the index, a read in flight, the
arena's free slabs. Event loop only.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum

from cache_service.accounts import Account
from cache_service.block_tree import ABSENT
from cache_service.chains import Chain
from cache_service.deadlines import Deadlines
from cache_service.errors import (
    CacheError,
    InvalidRangeError,
    ReservationExpiredError,
    ReservationUnknownError,
    TooManyReservationsError,
)
from cache_service.hints import NO_HINTS, Hints
from cache_service.index import BlockIndex
from cache_service.remembered import Remembered
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from storage.host.arena import HostArena
from storage.tier import NEVER, Slab

__all__ = ["Outcome", "Reservation", "ReservationState", "ReservationTable"]

Outcome = int | type[CacheError]
"""How a reservation ended: blocks committed, or the error that a later commit gets."""


class ReservationState(Enum):
    FORMING = "forming"
    OPEN = "open"
    COMMITTING = "committing"
    ENDED = "ended"


class Reservation:
    """A live reservation. Changed by the table and the storing side of the cache only."""

    def __init__(
        self, session_id: str, request_id: str, chain: Chain, hints: Hints = NO_HINTS
    ) -> None:
        self.reservation_id = secrets.token_hex(16)
        self.session_id = session_id
        self.request_id = request_id
        self.chain = chain
        self.one_off = hints.one_off
        """False once somebody without that hint wants what this one stores."""
        self.ttl_seconds = NEVER if hints.ttl_seconds is None else hints.ttl_seconds
        """The longest that somebody wants what this one stores."""
        self.owners = hints.owners
        """Whose the blocks of the chain are."""
        self.state = ReservationState.FORMING
        self.missing: list[int] = []
        """Positions in the chain of the blocks to store, ascending."""
        self.hashes: list[BlockHash] = []
        """Those blocks'."""
        self.slabs: list[Slab] = []
        self.claims: list[tuple[Account, int]] = []
        """What its slabs count on accounts, in payload bytes."""
        self.parents: list[int] = []
        """Rows of cached parents of missing blocks, pinned."""
        self.waits_for: list[Reservation] = []
        """Reservations of others that are storing parents of our blocks."""
        self.continues: list[tuple[Reservation, BlockHash]] = []
        """Blocks of others that ours follow at once."""
        self.awaited_by: dict[str, list[BlockHash]] = {}
        """Live reservation that continues blocks of ours -> which."""
        self.unit_ends = hints.unit_ends
        self.marks_forks = hints.marks_forks
        self.refused_count = 0
        self.refused_reason = MissReason.NONE
        self.formed = asyncio.Event()
        self.ended = asyncio.Event()
        self.commit: asyncio.Task[int] | None = None
        self.written_within = False
        """A thread of this process is writing into the slabs; see `begin_writing`."""
        self.landed_count = 0
        """Leading ones of `missing` that came in whole over a bulk lane."""

    def stands_for(self, other: "Reservation") -> None:
        """`other` wants blocks that this one is storing."""
        self.one_off &= other.one_off
        self.ttl_seconds = max(self.ttl_seconds, other.ttl_seconds)


class ReservationTable:
    """Live reservations, who claims which hash, ended ones' answers, and the quarantine."""

    def __init__(
        self, index: BlockIndex, arena: HostArena, per_session_max: int, memory_count: int
    ) -> None:
        self._index = index
        self._arena = arena
        self._per_session_max = per_session_max
        self._live: dict[str, Reservation] = {}
        self._by_session: dict[str, dict[str, Reservation]] = {}
        self._claims: dict[BlockHash, Reservation] = {}
        self._deadlines = Deadlines()
        self._answers: Remembered[tuple[str, Outcome]] = Remembered(memory_count)
        self._quarantine: deque[tuple[float, Slab]] = deque()
        self._written: dict[str, list[Slab]] = {}
        """Ended reservation -> slabs that a thread of this process still writes into."""

    def __len__(self) -> int:
        return len(self._live)

    @property
    def quarantined_count(self) -> int:
        return len(self._quarantine)

    def claimants(self, hashes: Sequence[BlockHash]) -> list[Reservation | None]:
        """Who stores each of them now."""
        return list(map(self._claims.get, hashes)) if self._claims else [None] * len(hashes)

    def of_request(self, session_id: str, request_id: str, chain: Chain) -> Reservation | None:
        """The session's live reservation for a request and chain; an empty id names none."""
        if not request_id:
            return None
        for held in self._by_session.get(session_id, {}).values():
            if held.request_id == request_id and held.chain == chain:
                return held
        return None

    def enter(self, reservation: Reservation, deadline: float) -> None:
        """Makes a forming reservation live, with its claims and pins.

        Raises TooManyReservationsError.
        """
        held = self._by_session.setdefault(reservation.session_id, {})
        if len(held) >= self._per_session_max:
            raise TooManyReservationsError(
                f"this session holds {len(held)} reservations; commit or abort some first",
                reservation_count=len(held),
            )
        held[reservation.reservation_id] = reservation
        self._live[reservation.reservation_id] = reservation
        self._deadlines.set(reservation.reservation_id, deadline)
        assert self._claims.keys().isdisjoint(reservation.hashes)
        self._claims.update(dict.fromkeys(reservation.hashes, reservation))
        for parent in reservation.parents:
            self._index.pin(parent)
        for other, block_hash in reservation.continues:
            # Held for us from the moment it is there; until then nobody can evict it.
            other.awaited_by.setdefault(reservation.reservation_id, []).append(block_hash)

    def hold_for_others(self, reservation: Reservation) -> None:
        """Pins what others continue, until they end: what they wait for has just been entered."""
        for reservation_id, hashes in reservation.awaited_by.items():
            for row in map(self._index.tree.find, hashes):
                if row != ABSENT:
                    self._index.pin(row)
                    self._live[reservation_id].parents.append(row)
        reservation.awaited_by.clear()

    def refuse_tail(self, reservation: Reservation, reason: MissReason) -> None:
        """Gives up the claims for which there is no slab."""
        kept = len(reservation.slabs)
        for block_hash in reservation.hashes[kept:]:
            del self._claims[block_hash]
        reservation.refused_count += len(reservation.missing) - kept
        reservation.refused_reason = reason
        del reservation.missing[kept:], reservation.hashes[kept:]

    def find(self, session_id: str, reservation_id: str) -> Reservation | Outcome:
        """A live reservation, or how it ended. Raises ReservationUnknownError."""
        reservation = self._live.get(reservation_id)
        if reservation is not None and reservation.session_id == session_id:
            return reservation
        answer = self._answers.get(reservation_id)
        if answer is not None and answer[0] == session_id:
            return answer[1]
        raise ReservationUnknownError(
            "this session has no such reservation", reservation_id=reservation_id
        )

    def slab(self, session_id: str, reservation_id: str, index: int) -> Slab:
        """Where block `index` of the chain goes. Raises as `find`, and InvalidRangeError."""
        found = self.find(session_id, reservation_id)
        if not isinstance(found, Reservation):
            if isinstance(found, int):
                raise ReservationUnknownError("the reservation is committed already")
            raise found(ENDED_MESSAGE, reservation_id=reservation_id)
        if found.state is not ReservationState.OPEN or index not in found.missing:
            raise InvalidRangeError(f"block {index} is not reserved here", index=index)
        return found.slabs[found.missing.index(index)]

    def renew(self, session_id: str, reservation_id: str, deadline: float) -> bool:
        """False when there is no such live reservation in the session."""
        reservation = self._live.get(reservation_id)
        if reservation is None or reservation.session_id != session_id:
            return False
        # One that is being committed may have been given more than that.
        self._deadlines.set(reservation_id, max(deadline, self.deadline(reservation)))
        return True

    def deadline(self, reservation: Reservation) -> float:
        return self._deadlines.at(reservation.reservation_id)

    def end(self, reservation: Reservation, outcome: Outcome, rest_until: float | None) -> None:
        """Takes a reservation out. Slabs it still has are freed, at `rest_until` if given."""
        if reservation.state is ReservationState.ENDED:
            return
        reservation.state = ReservationState.ENDED
        del self._live[reservation.reservation_id]
        held = self._by_session[reservation.session_id]
        del held[reservation.reservation_id]
        if not held:
            del self._by_session[reservation.session_id]
        self._deadlines.remove(reservation.reservation_id)
        if self._index.accounts is not None:
            for account, size in reservation.claims:
                self._index.accounts.unclaim_host(account, size)
            reservation.claims.clear()
        self._answers.put(reservation.reservation_id, (reservation.session_id, outcome))
        for block_hash in reservation.hashes:
            del self._claims[block_hash]
        for parent in reservation.parents:
            self._index.unpin(parent)
        if reservation.written_within:
            self._written[reservation.reservation_id] = list(reservation.slabs)
        else:
            self._let_go(reservation.slabs, rest_until)
        reservation.slabs.clear()
        reservation.parents.clear()
        for other, _ in reservation.continues:
            other.awaited_by.pop(reservation.reservation_id, None)
        reservation.continues.clear()
        reservation.waits_for.clear()
        reservation.awaited_by.clear()
        reservation.formed.set()
        reservation.ended.set()

    def begin_writing(self, reservation: Reservation) -> None:
        """A thread of this process writes into its slabs: until `end_writing` they are not free,
        whatever becomes of the reservation. REQUIRES: open, and nobody writes yet."""
        assert reservation.state is ReservationState.OPEN
        assert not reservation.written_within
        reservation.written_within = True

    def end_writing(self, reservation: Reservation, landed_count: int) -> bool:
        """The thread stopped writing; so many leading blocks came in whole, by it and before.
        True when slabs became free."""
        assert landed_count >= reservation.landed_count
        reservation.written_within = False
        reservation.landed_count = landed_count
        slabs = self._written.pop(reservation.reservation_id, [])
        self._let_go(slabs, None)
        return bool(slabs)

    def _let_go(self, slabs: Iterable[Slab], rest_until: float | None) -> None:
        for slab in slabs:
            if rest_until is None:
                self._arena.free(slab)
            else:
                self._quarantine.append((rest_until, slab))

    def of_session(self, session_id: str) -> list[Reservation]:
        return list(self._by_session.get(session_id, {}).values())

    def expire(self, now: float, grace_seconds: float) -> int:
        """Ends every reservation whose deadline passed, except one that is being committed."""
        count = 0
        for reservation_id in self._deadlines.due(now):
            reservation = self._live[reservation_id]
            if reservation.state is ReservationState.COMMITTING:
                self._deadlines.set(reservation_id, now + grace_seconds)
                continue
            self.end(reservation, ReservationExpiredError, now + grace_seconds)
            count += 1
        return count

    def free_rested(self, now: float) -> int:
        """Frees slabs whose rest is over; returns how many."""
        count = 0
        while self._quarantine and self._quarantine[0][0] <= now:
            self._arena.free(self._quarantine.popleft()[1])
            count += 1
        return count

    def pins(self) -> dict[int, int]:
        """How often each block is held as a parent, for integrity checks."""
        counts: dict[int, int] = {}
        for reservation in self._live.values():
            for parent in reservation.parents:
                counts[parent] = counts.get(parent, 0) + 1
        return counts

    def slabs(self) -> list[Slab]:
        """Every slab of live reservations, of ended ones that are still written and of the
        quarantine, for integrity checks."""
        held = [slab for r in self._live.values() for slab in r.slabs]
        written = [slab for slabs in self._written.values() for slab in slabs]
        return held + written + [slab for _, slab in self._quarantine]

    def check_integrity(self) -> None:
        assert len(self._deadlines) == len(self._live)
        claimed = {h: r for r in self._live.values() for h in r.hashes}
        assert claimed == self._claims
        assert sum(len(r.missing) for r in self._live.values()) == len(claimed), "claimed twice"
        for reservation in self._live.values():
            assert reservation.state is not ReservationState.ENDED
            assert reservation.awaited_by.keys() <= self._live.keys()
            if reservation.state is not ReservationState.FORMING:
                assert len(reservation.slabs) == len(reservation.missing)
        listed = {r.reservation_id for held in self._by_session.values() for r in held.values()}
        assert listed == set(self._live)
        rests = [at for at, _ in self._quarantine]
        assert rests == sorted(rests), "the quarantine is in order of release"


ENDED_MESSAGE = "the reservation ended and nothing of it was kept; reserve again"
