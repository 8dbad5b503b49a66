"""Storing: reserve which blocks are missing, commit them all or none.

    reserve: claim hashes -> take slabs (evicting leaves) -> answer     (invisible until committed)
    commit:  [verify] -> wait for the parents others store -> enter the index, parents first

Invariant: a block becomes visible only together with its parent and with its payload complete; a
reservation that ends otherwise leaves no trace. Event loop; checksums are computed on one thread of
its own.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cache_service.accounts import Account
from cache_service.block_tree import ABSENT, NOWHERE
from cache_service.chains import Chain
from cache_service.errors import (
    ChecksumCountMismatchError,
    ChecksumMismatchError,
    ReservationUnknownError,
    SessionUnknownError,
)
from cache_service.hints import NO_HINTS, Hints
from cache_service.index import HostCopy
from cache_service.parts import Parts
from cache_service.reservation import (
    Outcome,
    Reservation,
    ReservationState,
)
from cache_service.session import Session
from cache_service.side import Side
from cache_service.store_checks import (
    answer,
    check_landed,
    fresh_from,
    is_run,
    parents_present,
)
from cache_service.store_claims import StoreClaims
from cache_service.views import ReservationView, Transport
from kvtier.blocks import MissReason
from storage.tier import Slab

if TYPE_CHECKING:
    from cache_service.shared_side import SharedSide

__all__ = ["Storing"]

STEP_BLOCKS = 256
"""Blocks handled between two looks at the event loop: about half a millisecond's work."""


class Storing(Side):
    """The writing side."""

    def __init__(self, parts: Parts, shared: "SharedSide | None" = None) -> None:
        self._shared = shared
        self._index = parts.index
        self._sessions = parts.sessions
        self._reservations = parts.reservations
        self._claims = StoreClaims(parts.index, parts.reservations, parts.room)
        self._room = parts.room
        self._writer = parts.writer
        self._health = parts.health
        self._verifier = parts.verifier
        self._stores = parts.stores
        self._closing = parts.closing
        self._limits = parts.limits
        self._clock = parts.clock
        self._listener = parts.tally
        self._commits: set[asyncio.Task[int]] = set()

    async def reserve(
        self, session: Session, request_id: str, chain: Chain, hints: Hints = NO_HINTS
    ) -> ReservationView:
        """Raises TooManyReservationsError, SessionUnknownError when the session ends meanwhile."""
        repeat = self._reservations.of_request(session.session_id, request_id, chain)
        if repeat is not None:
            await repeat.formed.wait()
            if repeat.state is ReservationState.OPEN:
                return self._view(repeat)
            # Being committed: nobody may write into its slabs now; what it stores is here soon.
            await repeat.ended.wait()
            if not self._sessions.alive(session.session_id):
                raise SessionUnknownError("the session ended during the call")
        reservation = Reservation(session.session_id, request_id, chain, hints)
        self._plan(session, reservation)
        if not reservation.missing:
            if reservation.refused_count:
                self._listener.blocks_refused(reservation.refused_count, reservation.refused_reason)
            return self._view(reservation)
        deadline = self._clock() + self._limits.reservation_ttl_seconds
        self._reservations.enter(reservation, deadline)
        try:
            await self._take_slabs(session, reservation)
        except BaseException:
            self._reservations.end(reservation, ReservationUnknownError, None)
            raise
        return self._formed(reservation)

    def _plan(self, session: Session, reservation: Reservation) -> None:
        """Decides which blocks are missing, and what holds their parents."""
        tree = self._index.tree
        found = tree.find_chain(reservation.chain)
        kind = tree.namespaces.number(session.namespace_id, session.block_bytes)
        ssd_available = self._health.available
        leading = tree.served_count(found, kind, host_only=not ssd_available)
        rows: list[int] = found.tolist()
        hashes = list(reservation.chain[leading:])
        claimants = self._reservations.claimants(hashes)
        # From here on nobody has them and nobody stores them: the usual end of a chain.
        fresh = fresh_from(found[leading:], claimants) + leading
        present = rows[:leading]
        previous = rows[leading - 1] if leading else NOWHERE
        before: Reservation | None = None
        for position in range(leading, len(rows)):
            block_hash, row = hashes[position - leading], rows[position]
            claimant = claimants[position - leading]
            if claimant is not None:
                if claimant not in reservation.waits_for:
                    reservation.waits_for.append(claimant)
                claimant.stands_for(reservation)
            elif row != ABSENT and tree.kind(row) != kind:
                reservation.refused_count = len(reservation.chain) - position
                reservation.refused_reason = MissReason.OTHER_NAMESPACE
                break
            elif row == ABSENT or not (ssd_available or tree.in_host(row)):
                reservation.missing.append(position)
                reservation.hashes.append(block_hash)
                if previous != NOWHERE:
                    reservation.parents.append(previous)
                elif before is not None:
                    reservation.continues.append((before, reservation.chain[position - 1]))
                if position == fresh:
                    reservation.missing += range(fresh + 1, len(rows))
                    reservation.hashes += hashes[fresh + 1 - leading :]
                    break
            else:
                present.append(row)
            previous, before = row, claimant
        self._mark_units(reservation, rows)
        if not reservation.one_off:
            if present:
                expiries = self._index.expiries
                expiries.extend(present[-1], expiries.until(reservation.ttl_seconds))
            self._lift(present)
            self._index.refresh(reversed(present))

    def _mark_units(self, reservation: Reservation, rows: Sequence[int]) -> None:
        """`rows` are those of the chain's blocks, now."""
        ends = reservation.unit_ends
        self._index.unit_ends.mark(rows[i] for i in ends if 0 <= i < len(rows))

    def _mark_fork(self, reservation: Reservation, parent: int) -> None:
        """A new block is about to continue `parent`."""
        if reservation.marks_forks and parent != NOWHERE and self._index.tree.has_children(parent):
            self._index.unit_ends.mark([parent])

    def _lift(self, rows: Sequence[int]) -> None:
        """Blocks of a chain are wanted by who does not call them one-off."""
        lifted = self._index.one_offs.lift(rows)
        if lifted and self._writer is not None:
            # New only now, as far as the SSD is concerned.
            self._writer.committed(lifted)

    async def _take_slabs(self, session: Session, reservation: Reservation) -> None:
        busy = self._writer.busy if self._writer is not None else _never
        patience = self._room.patience()
        account: Account | None = None
        size = session.block_bytes
        while left := len(reservation.missing) - len(reservation.slabs):
            count = min(left, STEP_BLOCKS)
            if self._index.accounts is not None:
                claim = self._claims.claim(reservation, size, count, busy, patience)
                account, count = await claim
                if not count:
                    return
            if reservation.one_off:
                slabs = self._room.take_spare(size, count)
            else:
                slabs = self._room.take_up_to(size, count, account)
            if not slabs and not reservation.one_off:
                if account is not None and count > 1:
                    # While it waits no more counts as borrowed than it waits for.
                    self._claims.give_back(reservation, (count - 1) * size)
                    count = 1
                slab = await self._room.take_waiting(size, busy, patience, account)
                slabs = [] if slab is None else [slab]
            if reservation.state is ReservationState.ENDED:
                for slab in slabs:
                    self._room.give_back(slab)
                return
            if account is not None and len(slabs) < count:
                self._claims.give_back(reservation, (count - len(slabs)) * size)
            if not slabs:
                self._reservations.refuse_tail(reservation, MissReason.ARENA_FULL)
                return
            reservation.slabs += slabs
            if left > len(slabs):
                await asyncio.sleep(0)

    def _formed(self, reservation: Reservation) -> ReservationView:
        if reservation.state is ReservationState.ENDED:
            raise SessionUnknownError("the session or its reservation ended during the call")
        if reservation.refused_count:
            self._listener.blocks_refused(reservation.refused_count, reservation.refused_reason)
        if not reservation.slabs:
            self._reservations.end(reservation, ReservationUnknownError, None)
        else:
            reservation.state = ReservationState.OPEN
            reservation.formed.set()
        return self._view(reservation)

    def _view(self, reservation: Reservation) -> ReservationView:
        if not reservation.slabs:
            return ReservationView(
                "", 0.0, (), (), reservation.refused_count, reservation.refused_reason
            )
        expire_at = self._reservations.deadline(reservation)
        return ReservationView(
            reservation.reservation_id,
            max(0.0, expire_at - self._clock()),
            tuple(reservation.missing),
            tuple(reservation.slabs),
            reservation.refused_count,
            reservation.refused_reason,
        )

    async def commit(
        self, session: Session, reservation_id: str, checksums: Sequence[int], verify: bool
    ) -> int:
        """Blocks that are visible now; the first answer again when it was committed before.

        0 when a block these continue was not stored after all, or a purge of them is running: then
        nothing is kept, a miss.
        Raises ReservationUnknownError, ReservationExpiredError, ChecksumCountMismatchError,
        ChecksumMismatchError; of a bulk session ReservationIncompleteError.
        """
        found = self._reservations.find(session.session_id, reservation_id)
        if not isinstance(found, Reservation):
            return answer(found, reservation_id)
        if found.commit is None:
            if found.state is not ReservationState.OPEN:
                raise ReservationUnknownError("the reservation is not formed yet")
            if session.transport is Transport.BULK:
                check_landed(found)
            if len(checksums) != len(found.missing):
                raise ChecksumCountMismatchError(
                    f"{len(found.missing)} blocks are reserved, {len(checksums)} checksums came",
                    reserved_count=len(found.missing),
                )
            found.state = ReservationState.COMMITTING
            found.commit = asyncio.get_running_loop().create_task(
                self._commit(session, found, list(checksums), verify)
            )
            self._commits.add(found.commit)
            found.commit.add_done_callback(self._committed)
        # The commit runs to its end even when this caller goes away.
        return await asyncio.shield(found.commit)

    async def drain(self) -> None:
        """Returns when no commit is under way."""
        while self._commits:
            await asyncio.wait(set(self._commits))

    def _committed(self, task: "asyncio.Task[int]") -> None:
        self._commits.discard(task)
        if not task.cancelled():
            # Looked at here too: the caller may have gone away, and nobody else would.
            task.exception()

    async def _commit(
        self, session: Session, reservation: Reservation, checksums: list[int], verify: bool
    ) -> int:
        try:
            outcome = await self._decide(session, reservation, checksums, verify)
        except BaseException:
            self._reservations.end(reservation, ReservationUnknownError, None)
            raise
        self._reservations.end(reservation, outcome, None)
        self._room.changed()
        return answer(outcome, reservation.reservation_id)

    async def _decide(
        self, session: Session, reservation: Reservation, checksums: list[int], verify: bool
    ) -> Outcome:
        if verify and not await self._verifier.matches(
            reservation.hashes, reservation.slabs, checksums, session.block_bytes
        ):
            return ChecksumMismatchError
        await self._await_parents(reservation)
        rows: list[int] = self._index.tree.find_chain(reservation.chain).tolist()
        if self._closing.covers(session, rows, reservation.owners):
            self._listener.blocks_refused(len(reservation.missing), MissReason.PURGED)
            return 0
        if not parents_present(reservation, rows):
            self._listener.blocks_refused(len(reservation.missing), MissReason.EVICTED)
            return 0
        return self._enter(session, reservation, checksums, rows)

    async def _await_parents(self, reservation: Reservation) -> None:
        """Gives others who store our blocks' parents a bounded time to finish."""
        waiting = [other.ended.wait() for other in reservation.waits_for]
        if not waiting:
            return
        try:
            async with asyncio.timeout(self._limits.room_wait_seconds):
                await asyncio.gather(*waiting)
        except TimeoutError:
            return

    def _enter(
        self, session: Session, reservation: Reservation, checksums: list[int], rows: list[int]
    ) -> int:
        """Makes the blocks visible, parents first. `rows` are the chain's, now. From here on
        nothing can fail."""
        slabs, reservation.slabs = reservation.slabs, []
        entered = self._enter_run(session, reservation, slabs, checksums, rows)
        if entered is None:
            entered = self._enter_each(session, reservation, slabs, checksums, rows)
        self._reservations.hold_for_others(reservation)
        if reservation.unit_ends:
            now: list[int] = self._index.tree.find_chain(reservation.chain).tolist()
            self._mark_units(reservation, now)
        if entered:
            first = self._index.tree.block_hash(entered[0])
            self._stores.note(reservation.request_id, session.namespace_id, first)
        if not reservation.one_off:
            self._lift([row for row in rows if row != ABSENT])
            if self._writer is not None:
                self._writer.committed(entered)
        if self._shared is not None:
            self._shared.committed(session, reservation)
        self._listener.blocks_committed(len(entered), len(entered) * session.block_bytes)
        return len(entered)

    def _enter_run(
        self,
        session: Session,
        reservation: Reservation,
        slabs: list[Slab],
        checksums: list[int],
        rows: list[int],
    ) -> list[int] | None:
        """Rows of the blocks, entered together; None unless they are consecutive, all new and like
        others."""
        first, end = reservation.missing[0], reservation.missing[-1] + 1
        all_new = rows[first:end].count(ABSENT) == end - first
        if reservation.one_off or not all_new or not is_run(reservation.missing):
            return None
        chain, parent = reservation.chain[first:end], rows[first - 1] if first else NOWHERE
        self._mark_fork(reservation, parent)
        entered = self._index.add_run(
            chain,
            parent,
            session.namespace_id,
            session.block_bytes,
            session.number,
            slabs,
            checksums,
        )
        expiries = self._index.expiries
        expiries.enter_run(entered, expiries.until(reservation.ttl_seconds))
        for owner, start, stop in reservation.owners.runs(first, end):
            self._index.owners.enter_run(entered[start - first : stop - first], owner)
        return entered

    def _enter_each(
        self,
        session: Session,
        reservation: Reservation,
        slabs: list[Slab],
        checksums: list[int],
        rows: list[int],
    ) -> list[int]:
        tree, expiries = self._index.tree, self._index.expiries
        until = expiries.until(reservation.ttl_seconds)
        copies: list[HostCopy] = []
        stored = zip(reservation.missing, reservation.hashes, slabs, checksums, strict=True)
        for position, block_hash, slab, checksum in stored:
            row = rows[position]
            if row == ABSENT:
                parent = rows[position - 1] if position else NOWHERE
                self._mark_fork(reservation, parent)
                row = self._index.add(
                    block_hash, parent, session.namespace_id, session.block_bytes, session.number
                )
                rows[position] = row
                self._index.owners.enter(row, reservation.owners.at(position))
                if reservation.one_off and not self._index.keeping.kept(row):
                    self._index.one_offs.mark(row)
                    # It keeps nothing alive that is before it.
                    until = until if parent == NOWHERE else min(until, expiries.of(parent))
                expiries.enter(row, until)
            elif tree.in_host(row):
                # Its SSD copy could not be asked when we reserved, and was promoted since.
                self._room.give_back(slab)
                continue
            copies.append((row, slab, checksum))
        self._index.put_host_many(copies)
        return [row for row, _, _ in copies]


def _never() -> bool:
    return False
