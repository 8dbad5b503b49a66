"""ForgetQueue: hashes that left the cache and are still in the index on disk.

Invariant: a hash stays queued until the disk has durably forgotten it; the writer empties the queue
before it appends, so that a block stored anew is never forgotten by an old order. After a purge
these are many, and go a slice at a time: the disk's thread holds the interpreter while it hands one
over. Event loop only.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.keys import BlockHash
from storage.errors import StorageError

if TYPE_CHECKING:
    from storage.ssd.tier import SsdTier

__all__ = ["SLICE_HASHES", "ForgetQueue"]

SLICE_HASHES = 1024
"""About 1 ms of the interpreter, and one flush of the disk."""


class ForgetQueue:
    """What is to be forgotten, in order."""

    def __init__(self, ssd: "SsdTier") -> None:
        self._ssd = ssd
        self._hashes: list[BlockHash] = []
        self._waiting: list[asyncio.Future[None]] = []
        """Who waits for the next flush to begin and to end."""

    @property
    def due(self) -> bool:
        """True when there is something to forget, or somebody who waits for a flush."""
        return bool(self._hashes or self._waiting)

    def add(self, hashes: Sequence[BlockHash]) -> None:
        self._hashes.extend(hashes)

    def next_flush(self) -> "asyncio.Future[None]":
        """Ends with the next flush that begins, as that one does: with TierIOError or without."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        return waiting

    async def flush(self) -> None:
        """Has the disk forget all that is queued now. Raises TierIOError; they stay queued then."""
        hashes, self._hashes = self._hashes, []
        waiting, self._waiting = self._waiting, []
        done = 0
        try:
            while done < len(hashes):
                await self._ssd.forget(hashes[done : done + SLICE_HASHES])
                done += SLICE_HASHES
        except StorageError as error:
            self._hashes[:0] = hashes[done:]
            for each in waiting:
                if not each.done():
                    each.set_exception(error)
            raise
        for each in waiting:
            if not each.done():
                each.set_result(None)
