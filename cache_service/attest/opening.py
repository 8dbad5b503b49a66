"""Opening and ending what attests: journal, delivery, and what the run before left behind.

    lock the journal -> LOST for leases it left open -> a gap, if it was killed -> alive -> deliver

Invariant: no lease is given before the run before has been accounted for. Main thread and its loop.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cache_service.attest.attestation import Attested, Gap, GapReason
from cache_service.attest.dialect import ATTESTATION_FORMAT, Begun
from cache_service.attest.metrics import AttestMetrics
from cache_service.attest.wire import AttestationCourier
from cache_service.attest.witness import ALIVE_FILE, Identity, Witness
from journal.delivery import Delivery, DeliverySettings
from journal.journal import Journal, JournalLimits
from journal.outbox import Outbox
from journal.segment import sync_directory

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["Attestation"]

log = logging.getLogger(__name__)

FLUSH_SECONDS_MAX = 3.0
"""At the end: until billing has the last ones. The journal keeps what it does not take."""


class Attestation:
    """All that a service that attests has beside its cache. `start` once, `stop` at the end."""

    def __init__(
        self,
        directory: Path,
        node: str,
        limits: JournalLimits,
        delivery: DeliverySettings,
        metrics: AttestMetrics,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Opens the journal. Raises JournalLockedError, JournalDirectoryError."""
        self._directory = directory
        self._node = node
        self._wall_clock_ns = wall_clock_ns
        self._journal: Journal[Begun, Attested] = Journal(
            ATTESTATION_FORMAT, directory, limits, wall_clock_ns=wall_clock_ns
        )
        opening = self._journal.opening
        metrics.watch(
            lambda: self._journal.used_bytes, opening.undelivered_count + opening.lost_count
        )
        outbox = Outbox(
            ATTESTATION_FORMAT,
            directory,
            opening.acknowledged,
            lambda: self._journal.durable_sequence,
        )
        self._metrics = metrics
        self._delivery = Delivery(outbox, AttestationCourier(), delivery, metrics)

    async def start(self, instance_id: str) -> Witness:
        """Raises AttestationFailedError when the journal cannot be written."""
        await self._account_for_killed()
        self._note_start(instance_id)
        self._delivery.start()
        identity = Identity(self._node, instance_id)
        witness = Witness(self._journal, identity, self._written, self._wall_clock_ns)
        self._metrics.watch_gaps(lambda: witness.unwritten_count)
        return witness

    def meter_storage(
        self, cache: "Cache", clock_ns: Callable[[], int], interval_seconds: float
    ) -> None:
        """After `start`."""
        identity = Identity(self._node, cache.instance_id)
        cache.meter_storage(self._journal, identity, self._written, clock_ns, interval_seconds)

    async def stop(self) -> None:
        """After the witness was closed."""
        if not await self._delivery.flush(FLUSH_SECONDS_MAX):
            log.warning("attestations stay in the journal until the next start")
        await self._delivery.stop()
        self._journal.close()

    def _written(self, count: int) -> None:
        self._metrics.written(count)
        self._delivery.wake()

    async def _account_for_killed(self) -> None:
        path = self._directory / ALIVE_FILE
        try:
            alive_ns, instance_id = path.stat().st_mtime_ns, path.read_text("ascii", "replace")
        except FileNotFoundError:
            return
        now_ns = max(self._wall_clock_ns(), alive_ns)
        gap = Gap(
            f"gap/{instance_id}/killed/{now_ns}",
            self._node,
            instance_id,
            alive_ns,
            now_ns,
            GapReason.KILLED,
        )
        log.warning(
            "the service before this one was killed; what its last leases served is not known",
            extra={
                "instance_id": instance_id,
                "lost_leases": self._journal.opening.lost_count,
                "gap_seconds": round((now_ns - alive_ns) / 1e9, 3),
            },
        )
        await self._journal.end(gap)
        self._metrics.written(1)

    def _note_start(self, instance_id: str) -> None:
        """Raises OSError."""
        path = self._directory / ALIVE_FILE
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="ascii") as file:
            file.write(instance_id)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        sync_directory(self._directory)
