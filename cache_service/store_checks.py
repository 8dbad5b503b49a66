"""What storing asks of a reservation and of what is there. Pure; event loop."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cache_service.block_tree import ABSENT
from cache_service.errors import ChecksumMismatchError, ReservationIncompleteError
from cache_service.reservation import ENDED_MESSAGE, Outcome, Reservation

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["answer", "check_landed", "fresh_from", "is_run", "parents_present"]


def fresh_from(found: "NDArray[np.int64]", claimants: Sequence[Reservation | None]) -> int:
    """Where the blocks begin of which none is cached, nor claimed by anybody."""
    known = found != ABSENT
    if len(claimants) - claimants.count(None):
        known |= np.fromiter((each is not None for each in claimants), bool, len(claimants))
    return int(np.flatnonzero(known)[-1]) + 1 if known.any() else 0


def is_run(positions: Sequence[int]) -> bool:
    """Whether ascending positions are consecutive."""
    return positions[-1] - positions[0] == len(positions) - 1


def parents_present(reservation: Reservation, rows: Sequence[int]) -> bool:
    if is_run(reservation.missing):
        first = reservation.missing[0]
        return first == 0 or rows[first - 1] != ABSENT
    ours = set(reservation.missing)
    return all(
        position == 0 or position - 1 in ours or rows[position - 1] != ABSENT
        for position in reservation.missing
    )


def check_landed(reservation: Reservation) -> None:
    """Raises ReservationIncompleteError unless every block came in whole over the bulk lane."""
    landed_count, missing = reservation.landed_count, reservation.missing
    short = missing[landed_count] if landed_count < len(missing) else None
    if short is not None or reservation.written_within:
        raise ReservationIncompleteError(
            f"block {short} was not received whole; send it, then commit"
            if short is not None
            else "the reservation is still being received; commit after that",
            index=-1 if short is None else short,
        )


def answer(outcome: Outcome, reservation_id: str) -> int:
    if isinstance(outcome, int):
        return outcome
    if outcome is ChecksumMismatchError:
        raise ChecksumMismatchError(
            "a payload does not match its checksum; nothing was kept",
            reservation_id=reservation_id,
        )
    raise outcome(ENDED_MESSAGE, reservation_id=reservation_id)
