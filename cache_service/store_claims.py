"""StoreClaims: room on its blocks' accounts for a reservation, before it takes slabs.

Invariant: what a reservation has claimed is in `reservation.claims` until it ends, whoever ends it;
what it could not have is refused with QUOTA, and remembered for later misses. A part of the storing
side; event loop only.
"""

from bisect import bisect_left
from collections.abc import Callable

from cache_service.accounts import Account
from cache_service.block_tree import ABSENT
from cache_service.index import BlockIndex
from cache_service.reservation import Reservation, ReservationState, ReservationTable
from cache_service.room import HostRoom
from kvtier.blocks import MissReason

__all__ = ["StoreClaims"]

REMEMBERED_MAX = 64
"""Refused blocks of which a later miss can be told: the first is the one that is missed."""


class StoreClaims:
    """Asked only where quotas are set."""

    def __init__(self, index: BlockIndex, reservations: ReservationTable, room: HostRoom) -> None:
        self._index = index
        self._reservations = reservations
        self._room = room

    async def claim(
        self,
        reservation: Reservation,
        block_bytes: int,
        count: int,
        busy: Callable[[], bool],
        patience: float,
    ) -> tuple[Account | None, int]:
        """The account of the next blocks, and how many it has room for: at most `count`, and those
        that follow each other on it. 0: the tail was refused, or the reservation has ended."""
        accounts = self._index.accounts
        assert accounts is not None
        start, missing, owners = len(reservation.slabs), reservation.missing, reservation.owners
        account = accounts.of_path(owners.at(missing[start]))
        end = owners.end(missing[start])
        if end is not None:
            count = bisect_left(missing, end, start, start + count) - start
        if account is None:
            return None, count
        if reservation.one_off:
            # It pushes nobody out, its own account's blocks neither.
            claimed = accounts.claim_host(account, block_bytes, count)
        else:
            claimed = await self._room.claim_waiting(account, block_bytes, count, busy, patience)
        if reservation.state is ReservationState.ENDED:
            accounts.unclaim_host(account, claimed * block_bytes)
            return account, 0
        if claimed:
            reservation.claims.append((account, claimed * block_bytes))
            return account, claimed
        accounts.unclaim_host(account, 0)
        for block_hash in reservation.hashes[start : start + REMEMBERED_MAX]:
            if self._index.tree.find(block_hash) == ABSENT:
                self._index.absences.remember(block_hash, MissReason.QUOTA)
        self._reservations.refuse_tail(reservation, MissReason.QUOTA)
        return account, 0

    def give_back(self, reservation: Reservation, size: int) -> None:
        """Of the last claim, what there was no slab for. REQUIRES: the reservation goes on."""
        accounts = self._index.accounts
        assert accounts is not None
        account, claimed = reservation.claims.pop()
        reservation.claims.append((account, claimed - size))
        accounts.unclaim_host(account, size)
