"""Expiring: takes blocks whose time is over out of every tier, and has the SSD know the ends.

    a tick -> the next slice of rows -> leaves that are over leave, and what they continued
                                     -> ends that moved, of blocks on the SSD, are written down

An expired block is a miss from its second on, whoever asks; this only gives back what it takes. A
pass over all rows begins every few seconds at most, while any block has an end.

Invariant: what one tick does is bounded; a block leaves after all that continue it, and none that
is held. An end that was moved and not yet written is an earlier one after a crash. Event loop only.
"""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from cache_service.block_tree import NOWHERE
from cache_service.parts import Parts
from cache_service.side import Side
from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from storage.errors import StorageError

__all__ = ["Expiring"]

log = logging.getLogger(__name__)

SLICE_ROWS = 65_536
"""Looked at by one tick: about 50 microseconds."""
LEAVE_MAX = 512
"""Blocks that leave in one tick: a few milliseconds."""
SAVE_MAX = 4096
"""Ends written with one call."""
PASS_SECONDS = 5.0
"""From the begin of a pass to that of the next: a busy block's end is written so often at most."""


class Expiring(Side):
    """One pass after the other."""

    def __init__(self, parts: Parts) -> None:
        self._index = parts.index
        self._writer = parts.writer
        self._ssd = None if parts.cold is None else parts.cold.ssd
        self._room = parts.room
        self._tally = parts.tally
        self._clock: Callable[[], float] = parts.clock
        self._next: int | None = None
        """Where the pass under way goes on; None between passes."""
        self._pass_due = self._clock()
        self._saving: asyncio.Task[None] | None = None

    def tick(self) -> None:
        if self._next is None:
            if not len(self._index.expiries) or self._clock() < self._pass_due:
                return
            self._next, self._pass_due = 0, self._clock() + PASS_SECONDS
        start, end = self._next, min(self._next + SLICE_ROWS, self._high())
        if self._leave(start, end) and self._save(start, end):
            self._next = end if end < self._high() else None

    async def drain(self) -> None:
        """Writes down every end that moved."""
        while self._saving is not None or self._slice_unsaved(0, self._high()):
            if self._saving is None:
                self._save(0, self._high())
            if self._saving is not None:
                await asyncio.wait({self._saving})

    def check_integrity(self) -> None:
        assert self._next is None or self._next <= self._high()

    # -- a slice -----------------------------------------------------------------------------------

    def _high(self) -> int:
        return self._index.tree.directory.row_high

    def _leave(self, start: int, end: int) -> bool:
        """Lets expired blocks go; False when there are more than one tick may take."""
        columns = self._index.tree.columns
        leaves = columns.array("expire_second")[start:end] <= self._index.expiries.now()
        leaves &= columns.array("cached")[start:end].astype(bool)
        leaves &= columns.array("first_child")[start:end] == NOWHERE
        left = 0
        forgotten: list[BlockHash] = []
        for row in (np.flatnonzero(leaves) + start).tolist():
            if left >= LEAVE_MAX:
                break
            left += self._leave_upwards(row, LEAVE_MAX - left, forgotten)
        if left:
            self._tally.blocks_expired(left)
            if self._writer is not None and forgotten:
                self._writer.forget(forgotten)
            self._room.changed()
        return left < LEAVE_MAX

    def _leave_upwards(self, row: int, count_max: int, forgotten: list[BlockHash]) -> int:
        """Takes out a leaf and what was before it, as long as that is a leaf then and over too."""
        tree, over = self._index.tree, self._index.expiries.over
        count = 0
        while count < count_max and row != NOWHERE:
            if tree.has_children(row) or tree.pins(row) or not over(row):
                break
            parent = tree.parent(row)
            forgotten += self._index.drop(row, MissReason.EXPIRED)
            count += 1
            row = parent
        return count

    # -- ends on the SSD ---------------------------------------------------------------------------

    def _slice_unsaved(self, start: int, end: int) -> list[int]:
        columns = self._index.tree.columns
        unsaved = columns.array("expiry_unsaved")[start:end].astype(bool)
        unsaved &= columns.array("segment")[start:end] != NOWHERE
        unsaved &= columns.array("cached")[start:end].astype(bool)
        rows: list[int] = (np.flatnonzero(unsaved)[:SAVE_MAX] + start).tolist()
        return rows

    def _save(self, start: int, end: int) -> bool:
        """Starts to write down ends that moved; False when it has to be asked again."""
        if self._ssd is None:
            return True
        if self._saving is not None:
            return False
        rows = self._slice_unsaved(start, end)
        if not rows:
            return True
        tree, columns = self._index.tree, self._index.tree.columns
        ends: list[tuple[BlockHash, int]] = []
        for row in rows:
            columns.expiry_unsaved[row] = 0
            ends.append((tree.block_hash(row), columns.expire_second[row]))
        self._saving = asyncio.get_running_loop().create_task(self._write(ends))
        return len(rows) < SAVE_MAX

    async def _write(self, ends: list[tuple[BlockHash, int]]) -> None:
        """What cannot be written stays an earlier end on the disk: a miss after a restart, no more.
        A disk that fails is noticed by who writes blocks."""
        assert self._ssd is not None
        try:
            await self._ssd.save_expiries(ends)
        except StorageError as error:
            log.warning("the ends of blocks could not be written", extra={"problem": str(error)})
        finally:
            self._saving = None
