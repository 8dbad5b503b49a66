"""Unit saving: has the SSD know where prefix units end that were found after the block was written.

    a tick -> marks that came since -> rows of the SSD's index, every few seconds at most

Invariant: one write at a time, of a bounded number. What cannot be written is lost with the next
restart, and makes a hit longer or shorter, no more. Event loop only.
"""

import asyncio
import logging
from collections.abc import Sequence

from cache_service.parts import Parts
from cache_service.side import Side
from kvtier.keys import BlockHash
from storage.errors import StorageError

__all__ = ["UnitSaving"]

log = logging.getLogger(__name__)

SAVE_MAX = 4096
"""Marks written with one call."""
SAVE_SECONDS = 5.0
"""From one write to the next: a crash loses marks of so long."""


class UnitSaving(Side):
    """One write after the other. Without an SSD nothing is ever unsaved."""

    def __init__(self, parts: Parts) -> None:
        self._unit_ends = parts.index.unit_ends
        self._ssd = None if parts.cold is None else parts.cold.ssd
        self._clock = parts.clock
        self._due = self._clock()
        self._saving: asyncio.Task[None] | None = None

    def tick(self) -> None:
        if self._saving is None and self._unit_ends.unsaved_count and self._clock() >= self._due:
            self._due = self._clock() + SAVE_SECONDS
            self._save()

    async def drain(self) -> None:
        """Writes down every mark that came."""
        while self._saving is not None or self._unit_ends.unsaved_count:
            if self._saving is None:
                self._save()
            if self._saving is not None:
                await asyncio.wait({self._saving})

    def _save(self) -> None:
        hashes = self._unit_ends.take_unsaved(SAVE_MAX)
        if hashes:
            self._saving = asyncio.get_running_loop().create_task(self._write(hashes))

    async def _write(self, hashes: Sequence[BlockHash]) -> None:
        assert self._ssd is not None
        try:
            await self._ssd.save_unit_ends(hashes)
        except StorageError as error:
            log.warning("ends of prefix units could not be written", extra={"problem": str(error)})
        finally:
            self._saving = None
