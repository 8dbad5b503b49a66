"""SharedPurging: what a purge deletes from the shared tier.

Everything of a namespace, or everything, is listed and deleted. Of other targets this host knows
the blocks that it had: the extents that end with one of them are deleted, at every size. Extents of
blocks that only other hosts have stay until the engine expires them, and the receipt says so.

Invariant: bounded in time; what is not deleted by then is said to be pending. Event loop only.
"""

import asyncio
import logging

from cache_service.parts import Parts
from cache_service.purge_views import PurgeKind, PurgeTarget, SharedForgetting
from cache_service.shared_writer import SharedWriter
from kvtier.keys import BlockHash, NamespaceId
from storage.errors import StorageError
from storage.shared.tier import SharedTier

__all__ = ["SharedPurging"]

log = logging.getLogger(__name__)


class SharedPurging:
    """One purge's at a time."""

    def __init__(self, parts: Parts, tier: SharedTier, writer: SharedWriter) -> None:
        self._tree = parts.index.tree
        self._seconds = parts.limits.forget_wait_seconds
        self._tier = tier
        self._writer = writer
        self._noted: dict[tuple[NamespaceId, int], list[BlockHash]] = {}

    def note(self, rows: list[int]) -> None:
        """Blocks that are about to be taken out."""
        for row in rows:
            kind = self._tree.namespaces.kind(self._tree.kind(row))
            self._noted.setdefault(kind, []).append(self._tree.block_hash(row))

    async def delete(self, target: PurgeTarget) -> SharedForgetting:
        """Deletes what the purge names, after it took out all that was noted."""
        noted, self._noted = self._noted, {}
        self._writer.gone()
        whole = target.kind in (PurgeKind.NAMESPACE, PurgeKind.EVERYTHING)
        try:
            async with asyncio.timeout(self._seconds):
                if whole:
                    await self._tier.forget_all(target.namespace_id)
                else:
                    for (namespace_id, block_bytes), hashes in noted.items():
                        await self._tier.forget(namespace_id, block_bytes, hashes)
        except (StorageError, TimeoutError) as error:
            log.warning("a purge has not reached the shared tier", extra={"problem": str(error)})
            return SharedForgetting.PENDING
        return SharedForgetting.WHOLE if whole else SharedForgetting.KNOWN
