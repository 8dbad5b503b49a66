"""Owner rows of the index: the owners that block rows name by number; and which number is whose.

Whose a block is, is a text that the owner of the tier gives: nothing is decided by it here. It
stands whole in the record's header, so that it is not lost with the index.

Invariant: a number means one owner for as long as a block row names it, and its row is durable with
the first of them. The layout is frozen: it is on disk (docs/formats/segment.md). Written by whoever
has the index: the opening thread, then the writer's.
"""

import itertools
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from storage.errors import TierIOError
from storage.ssd.block_rows import (
    OWNER_NUMBER_MAX,
    OWNER_SHIFT,
    BlockRows,
    block_row,
    sealed_row,
)
from storage.ssd.format import OWNER_BYTES_MAX, RecordHeader

__all__ = [
    "OWNER_KEY",
    "OwnerNumbers",
    "owner_entry",
    "owner_key",
    "read_owner",
    "whose_is_known",
]

OWNER_KEY = b"o"
"""First byte of an owner row's key; the number follows."""

_SEAL_BYTES = 8


class OwnerNumbers:
    """Numbers by owner; 0 is nobody's."""

    def __init__(self, known: Mapping[int, str]) -> None:
        self._numbers = {owner: number for number, owner in known.items()}
        taken = frozenset(known)
        self._free = (number for number in itertools.count(1) if number not in taken)
        self._new: list[tuple[int, str]] = []

    def number(self, owner: str) -> int:
        """Raises TierIOError when there are no numbers left."""
        if not owner:
            return 0
        number = self._numbers.get(owner)
        if number is None:
            number = next(self._free)
            if number > OWNER_NUMBER_MAX:
                raise TierIOError(
                    f"the SSD index has had {OWNER_NUMBER_MAX} owners of blocks since it was"
                    " opened: open it again, which forgets those that own nothing"
                )
            self._numbers[owner] = number
            self._new.append((number, owner))
        return number

    def known(self) -> dict[int, str]:
        """Owners by number."""
        return {number: owner for owner, number in self._numbers.items()}

    def keep(self, owners: Collection[str]) -> list[int]:
        """Forgets all but these; the numbers that had a row. They are free only at the next open,
        when nothing names them for certain."""
        kept = frozenset(owners)
        gone = {owner: number for owner, number in self._numbers.items() if owner not in kept}
        for owner in gone:
            del self._numbers[owner]
        new = {number for number, _ in self._new}
        self._new = [(number, owner) for number, owner in self._new if owner in kept]
        return [number for number in gone.values() if number not in new]

    def row_of(self, header: RecordHeader) -> tuple[bytes, bytes]:
        """The block row of a record; `take_new` then has its owner's, where that is needed."""
        return block_row(header, self.number(header.owner))

    def take_new(self) -> list[tuple[int, str]]:
        """What has no row yet; it is the caller's to write now."""
        new, self._new = self._new, []
        return new


def whose_is_known(blocks: BlockRows, owners: Collection[int]) -> NDArray[np.bool_]:
    """True for rows that are nobody's or whose owner's number is among `owners`."""
    numbers = blocks["codec_owner"] >> OWNER_SHIFT
    if not numbers.any():
        return np.ones(len(blocks), np.bool_)
    known: NDArray[np.bool_] = np.isin(numbers, np.array([0, *owners], np.uint32))
    return known


def owner_key(number: int) -> bytes:
    return OWNER_KEY + number.to_bytes(4, "big")


def owner_entry(number: int, owner: str) -> tuple[bytes, bytes]:
    """Key and value."""
    key = owner_key(number)
    return key, sealed_row(key, owner.encode())


def read_owner(key: bytes, value: bytes) -> tuple[int, str] | None:
    """(number, owner); None for a row that does not match its checksum."""
    fields = value[:-_SEAL_BYTES]
    if value != sealed_row(key, fields) or not 0 < len(fields) <= OWNER_BYTES_MAX:
        return None
    return int.from_bytes(key[1:], "big"), fields.decode()
