"""SharedPurging: what a purge deletes from the shared tier.

    noted -> left over -> writes under way end -> deleted -> forgotten here
                 ^---- not deleted: again, 5 s later, 10, ... 300 ----'

Everything of a namespace, or everything, is listed and deleted. Of other targets this host knows
the blocks that it had: the extents that end with one of them are deleted, at every size. Other
extents that hold one of them stay until the engine expires them, and the receipt says so.

Invariants: a name is left over until the engine has deleted it, and what is left over is not loaded
here; it lasts as long as the process and is at most `LEFT_MAX` blocks. Each try is bounded in time,
one at a time. Nothing is said to be deleted while this host still writes it. Event loop only.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from itertools import islice

from cache_service.parts import Parts
from cache_service.purge_views import PurgeKind, PurgeTarget, SharedForgetting
from cache_service.shared_writer import SharedWriter
from kvtier.breaker import Breaker
from kvtier.keys import BlockHash, NamespaceId
from storage.errors import StorageError
from storage.shared.tier import SharedTier

__all__ = ["SharedPurging"]

log = logging.getLogger(__name__)

LEFT_MAX = 1_000_000
"""Blocks, about 100 bytes each."""

AT_ONCE = 300
"""Blocks of one call; their extents are three times as many."""

RETRY_SECONDS = 5.0
RETRY_SECONDS_MAX = 300.0

Kind = tuple[NamespaceId, int]
"""Namespace and block bytes."""


class SharedPurging:
    """One purge's at a time, and what is left over of those before."""

    def __init__(
        self, parts: Parts, tier: SharedTier, writer: SharedWriter, breaker: Breaker
    ) -> None:
        self._tree = parts.index.tree
        self._seconds = parts.limits.forget_wait_seconds
        self._clock: Callable[[], float] = parts.clock
        self._tier = tier
        self._writer = writer
        self._breaker = breaker
        self._noted: dict[Kind, dict[BlockHash, None]] = {}
        self._left: dict[Kind, dict[BlockHash, int]] = {}
        """Each with the turn in which it was noted last."""
        self._left_whole: dict[NamespaceId | None, int] = {}
        """The same of namespaces; None: everything."""
        self._turn = 0
        """Counts what is noted: what is noted again while it is deleted is left over still."""
        self._trying = asyncio.Lock()
        self._retry: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._wait = RETRY_SECONDS
        writer.lost = self.keep

    @property
    def left_count(self) -> int:
        """Blocks whose extents are still to be deleted, those of whole namespaces aside."""
        return sum(map(len, self._left.values()))

    def covers(self, namespace_id: NamespaceId, block_bytes: int, last: BlockHash) -> bool:
        """Whether the extent that ends with this block is still to be deleted."""
        if self._left_whole and (None in self._left_whole or namespace_id in self._left_whole):
            return True
        return last in self._left.get((namespace_id, block_bytes), ())

    def note(self, rows: list[int]) -> None:
        """Blocks that are about to be taken out."""
        for row in rows:
            kind = self._tree.namespaces.kind(self._tree.kind(row))
            self._noted.setdefault(kind, {})[self._tree.block_hash(row)] = None

    def keep(self, kind: Kind, hashes: Iterable[BlockHash]) -> None:
        """These have left the cache, and the shared tier may have extents that end with them."""
        self._turn += 1
        self._left.setdefault(kind, {}).update(dict.fromkeys(hashes, self._turn))
        self._trim()

    async def delete(self, target: PurgeTarget) -> tuple[SharedForgetting, int]:
        """Deletes what the purge names, after it took out all that was noted. How far that went,
        and how many of its blocks' extents may still be there."""
        noted, self._noted = self._noted, {}
        whole = target.kind in (PurgeKind.NAMESPACE, PurgeKind.EVERYTHING)
        self._turn += 1
        if whole:
            self._left_whole[target.namespace_id] = self._turn
        else:
            for kind, hashes in noted.items():
                self._left.setdefault(kind, {}).update(dict.fromkeys(hashes, self._turn))
        await self._try()
        if whole:
            pending, count = target.namespace_id in self._left_whole, 0
        else:
            count = sum(each in self._left.get(kind, ()) for kind in noted for each in noted[kind])
            pending = bool(count)
        self._trim()
        if pending:
            return SharedForgetting.PENDING, count
        return (SharedForgetting.WHOLE if whole else SharedForgetting.KNOWN), 0

    def tick(self) -> None:
        """Tries again what is left over, when it is time."""
        due = self._left or self._left_whole
        if due and self._retry is None and self._clock() >= self._retry_at and self._breaker.ready:
            self._retry = asyncio.get_running_loop().create_task(self._try())

    async def drain(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.wait({self._retry})
        if self._left or self._left_whole:
            log.error(
                "purged blocks may still be in the shared tier: purge again",
                extra={"blocks": self.left_count, "namespaces": len(self._left_whole)},
            )

    # -- one try -----------------------------------------------------------------------------------

    async def _try(self) -> None:
        """Deletes what is left over, as far as it gets in time."""
        try:
            async with asyncio.timeout(self._seconds), self._trying:
                await self._writer.settled()
                await self._delete_left()
        except (StorageError, TimeoutError) as error:
            log.warning("a purge has not reached the shared tier", extra={"problem": str(error)})
            self._retry_at = self._clock() + self._wait
            self._wait = min(2 * self._wait, RETRY_SECONDS_MAX)
        else:
            self._wait = RETRY_SECONDS
        finally:
            # Whatever was seen to be there may be gone.
            self._writer.gone()
            if self._retry is asyncio.current_task():
                self._retry = None

    async def _delete_left(self) -> None:
        while self._left_whole:
            namespace_id, turn = next(iter(self._left_whole.items()))
            await self._tier.forget_all(namespace_id)
            if self._left_whole[namespace_id] == turn:
                del self._left_whole[namespace_id]
        while self._left:
            kind, left = next(iter(self._left.items()))
            part = dict(islice(left.items(), AT_ONCE))
            await self._tier.forget(*kind, list(part))
            for block_hash, turn in part.items():
                if left.get(block_hash) == turn:
                    del left[block_hash]
            if not left:
                del self._left[kind]

    def _trim(self) -> None:
        """What is too much to be remembered has been said to be left, and is not tried again."""
        too_many = self.left_count - LEFT_MAX
        if too_many > 0:
            log.error("too much is left in the shared tier", extra={"blocks": too_many})
        for left in self._left.values():
            while left and too_many > 0:
                left.popitem()
                too_many -= 1
