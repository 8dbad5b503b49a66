"""Shredding: the data keys of what was purged are destroyed: no copy of the SSD's bytes opens.

    purge, nothing of it can be committed meanwhile --> the SSD forgets --> its keys are destroyed

Invariants: only of a whole organisation or of everything, because those have keys; from the moment
of destruction nothing of it is read by this process, and with `DURABLE` by none after it. A disk
that hangs is not waited for: the keys go when it answers, before anything is encrypted again. Why
in this order, and what it proves: docs/adr/0022. Event loop; the file is written on the tier's
thread.
"""

import asyncio
import logging

from cache_service.errors import NotEncryptedError
from cache_service.parts import Parts
from cache_service.purge_views import KeyDestruction, PurgeKind, PurgeTarget, ShredView
from storage.errors import StorageError
from storage.ssd.key_ring import Destroyed
from storage.ssd.tier import SsdTier

__all__ = ["Shredding"]

log = logging.getLogger(__name__)


class Shredding:
    """One purge's shred."""

    def __init__(self, parts: Parts, target: PurgeTarget) -> None:
        """Raises NotEncryptedError."""
        assert target.shreddable
        if parts.cold is None or not parts.cold.ssd.encryption.enabled:
            raise NotEncryptedError(
                "nothing is encrypted here, so there is no key to destroy: purge without shredding,"
                " or set ssd.encryption for what is stored from then on"
            )
        self._ssd: SsdTier = parts.cold.ssd
        self._clear = parts.cold.clear
        self._organisation = None if target.kind is PurgeKind.EVERYTHING else target.owner
        self._wait_seconds = parts.limits.forget_wait_seconds
        self._clear_count = 0

    def look(self, row: int) -> None:
        """Notes a block that is about to be taken out."""
        self._clear_count += self._clear.holds(row)

    def would(self) -> ShredView:
        """What `destroy` would do now."""
        key_ids = self._ssd.data_keys(self._organisation)
        return self._view(key_ids, KeyDestruction.NONE)

    async def destroy(self) -> ShredView:
        """Destroys the keys; bounded."""
        asked = self._ssd.data_keys(self._organisation)
        destroying = asyncio.get_running_loop().create_task(
            self._ssd.destroy_keys(self._organisation)
        )
        # Whoever waits for a call of the tier waits until it has ended; so this does not.
        await asyncio.wait({destroying}, timeout=self._wait_seconds)
        if not destroying.done():
            # The call of the tier holds the task until it has ended.
            destroying.add_done_callback(_ended_late)
            log.warning("data keys are not destroyed yet: the disk does not answer")
            return self._view(asked, KeyDestruction.PENDING)
        try:
            done = destroying.result()
        except StorageError as error:
            log.warning("data keys are not destroyed", extra={"problem": str(error)})
            return self._view((), KeyDestruction.PENDING)
        if not done.durable:
            log.warning("data keys are still on the disk", extra={"problem": done.problem})
            return self._view(done.key_ids, KeyDestruction.PENDING)
        return self._view(done.key_ids, KeyDestruction.DURABLE)

    def _view(self, key_ids: tuple[bytes, ...], destruction: KeyDestruction) -> ShredView:
        segments = self._ssd.encryption.clear_segment_count
        return ShredView(key_ids, destruction, self._clear_count, segments)


def _ended_late(task: "asyncio.Task[Destroyed]") -> None:
    if task.cancelled() or task.exception() is not None or not task.result().durable:
        log.warning("data keys are still on the disk, or were not destroyed: shred again")
