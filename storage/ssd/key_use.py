"""What recovery finds out about keys: which blocks they open, which need them, what is in clear.

Invariant: a block is kept only if it is in clear or its key is here, and then its checksum is as it
is, not masked. One recovery, opening thread.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from storage.ssd.block_rows import BlockRows, key_numbers, owner_numbers
from storage.ssd.encryption import organisation_of
from storage.ssd.format import RecordHeader
from storage.ssd.key_ring import KeyRing
from storage.tier import PAGE_BYTES

__all__ = ["KeyUse"]


class KeyUse:
    """Of one store."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self.gone_hashes: set[bytes] = set()
        """Of blocks whose key is gone."""
        self.highest_sequence = 0
        """Of records whose key is gone."""
        self.used: set[tuple[str, int]] = set()
        """Organisation and number of each key that a block needs."""
        self.clear_ends: NDArray[np.int64] = np.zeros(0, np.int64)
        """By segment id: no block at or behind that offset is in clear; 0: none at all. Without
        segments where nothing is encrypted."""

    def note_gone(self, header: RecordHeader) -> None:
        """A record whose key is gone."""
        self.gone_hashes.add(header.record.block_hash)
        self.highest_sequence = max(self.highest_sequence, header.sequence)

    def kept(self, rows: BlockRows, owners: Mapping[int, str], segment_count: int) -> BlockRows:
        """The rows that can be read, unmasked. `owners` by number."""
        readable = self._keys.unmasked_rows(rows, owners)
        if self.gone_hashes or len(readable) < len(rows):
            self.gone_hashes.update(rows.hashes.tolist())
            self.gone_hashes.difference_update(readable.hashes.tolist())
        if self._keys.enabled:
            self._look(readable, owners, segment_count)
        return readable

    def problems(self) -> list[str]:
        if not self.gone_hashes:
            return []
        return [
            f"{len(self.gone_hashes)} blocks are encrypted under data keys that were destroyed or"
            " are lost; they are dropped"
        ]

    def _look(self, rows: BlockRows, owners: Mapping[int, str], segment_count: int) -> None:
        numbers = key_numbers(rows)
        clear = numbers == 0
        self.clear_ends = np.zeros(segment_count, np.int64)
        ends = rows["offset"][clear].astype(np.int64) + PAGE_BYTES
        np.maximum.at(self.clear_ends, rows["segment_id"][clear].astype(np.int64), ends)
        pairs = owner_numbers(rows)[~clear].astype(np.uint64) << np.uint64(8) | numbers[~clear]
        for pair in np.unique(pairs).tolist():
            self.used.add((organisation_of(owners.get(pair >> 8, "")), pair & 0xFF))
