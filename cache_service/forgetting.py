"""ForgetQueue: hashes that left the cache and are still in the index on disk.

Invariant: a hash stays queued until the disk has durably forgotten it; the writer empties the queue
before it appends, so that a block stored anew is never forgotten by an old order. Event loop only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.keys import BlockHash
from storage.errors import StorageError

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["ForgetQueue"]


class ForgetQueue:
    """What is to be forgotten, in order."""

    def __init__(self, ssd: "SsdTier") -> None:
        self._ssd = ssd
        self._hashes: list[BlockHash] = []

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, hashes: Sequence[BlockHash]) -> None:
        self._hashes.extend(hashes)

    async def flush(self) -> None:
        """Has the disk forget all that is queued now. Raises TierIOError; they stay queued then."""
        if not self._hashes:
            return
        hashes, self._hashes = self._hashes, []
        try:
            await self._ssd.forget(hashes)
        except StorageError:
            self._hashes[:0] = hashes
            raise
