"""StorageMetering: the meter of one run of the service, put together. Sessions name its models.

Event loop only.
"""

import time
from collections.abc import Callable
from pathlib import Path

from cache_service.attest.attestation import Attested
from cache_service.attest.dialect import Begun
from cache_service.attest.witness import Identity
from cache_service.index import BlockIndex
from cache_service.metering.meter import StorageMeter
from cache_service.metering.models import ModelNames
from cache_service.metering.rows import RowMeter
from cache_service.metering.witness import StorageWitness
from journal.journal import Journal
from kvtier.keys import NamespaceId

__all__ = ["MODELS_FILE", "StorageMetering", "steady_clock_ns"]

MODELS_FILE = "models.json"
"""Beside the attestation journal."""


class StorageMetering:
    """`witness` is the cache's side."""

    def __init__(
        self,
        index: BlockIndex,
        journal: Journal[Begun, Attested],
        identity: Identity,
        written: Callable[[int], None],
        clock_ns: Callable[[], int],
        interval_seconds: float,
    ) -> None:
        """What the index has already is metered from now on. `clock_ns` never goes back."""
        meter = StorageMeter(clock_ns)
        self._names = ModelNames(Path(journal.directory) / MODELS_FILE)
        self._rows = RowMeter(index.tree, meter, self._names, index.owners.tenant)
        self._rows.enter_all()
        index.owners.meter = self._rows
        self.witness = StorageWitness(
            journal, identity, meter, self._rows, written, clock_ns, interval_seconds
        )

    def session_opened(self, namespace_id: NamespaceId, model: str, block_tokens: int) -> None:
        if self._names.note(namespace_id, model, block_tokens):
            self._rows.named(namespace_id)


def steady_clock_ns() -> Callable[[], int]:
    """Nanoseconds since 1970 UTC: the wall clock of now, and the monotonic one from here on, which
    no correction of the wall clock moves back."""
    behind_ns = time.time_ns() - time.monotonic_ns()
    return lambda: behind_ns + time.monotonic_ns()
