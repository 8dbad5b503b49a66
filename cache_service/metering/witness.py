"""StorageWitness: hands what the meter says to the attestation journal.

    each interval    --> begins: the hour so far, by the id that its end will have
    each full hour   --> ends: the hour
    the service ends --> ends: what there is

A begin whose end is missing is what a killed service kept at least: the next start ends it so. So a
kill loses at most an interval of what was kept, and nothing is told twice, since each hour of each
sort has one id. What the journal cannot write it keeps, and writes when it can. Event loop only.
"""

import asyncio
import hashlib
from collections.abc import Callable

from cache_service.attest.attestation import Attested, StorageUse
from cache_service.attest.dialect import Begun
from cache_service.attest.witness import Identity
from cache_service.metering.holding import HOUR_NS
from cache_service.metering.meter import HourUse, StorageMeter
from cache_service.metering.rows import RowMeter
from cache_service.side import Side
from journal.format import Begin, End
from journal.journal import Journal

__all__ = ["StorageWitness", "storage_use"]


class StorageWitness(Side):
    """Of one run of the service."""

    def __init__(
        self,
        journal: Journal[Begun, Attested],
        identity: Identity,
        meter: StorageMeter,
        rows: RowMeter,
        written: Callable[[int], None],
        clock_ns: Callable[[], int],
        interval_seconds: float,
    ) -> None:
        """`written` is told how many more are durable, to be delivered; `interval_seconds`: how
        often the hour so far is noted.
        """
        self._interval_ns = round(interval_seconds * 1e9)
        self._journal = journal
        self._identity = identity
        self._meter = meter
        self._rows = rows
        self._written_more = written
        self._clock_ns = clock_ns
        self._noted_ns = clock_ns()
        self._under_way: set[asyncio.Future[None]] = set()
        self._owed = 0

    def tick(self) -> None:
        self._end(self._meter.take_hours())
        now_ns = self._clock_ns()
        if now_ns - self._noted_ns < self._interval_ns or self._journal.full or self._under_way:
            return
        self._noted_ns = now_ns
        self._submit([Begin(storage_use(self._identity, each)) for each in self._meter.uses()], 0)

    async def drain(self) -> None:
        self._rows.close()
        self._end(self._meter.close())
        if self._under_way:
            await asyncio.wait(self._under_way)

    def check_integrity(self) -> None:
        self._rows.check_integrity()

    def _end(self, hours: list[HourUse]) -> None:
        self._submit([End(storage_use(self._identity, each)) for each in hours], len(hours))

    def _submit(self, records: list[Begin[Begun] | End[Attested]], count: int) -> None:
        if not records:
            return
        done = self._journal.submit(records)
        self._under_way.add(done)
        done.add_done_callback(lambda each: self._written(each, count))

    def _written(self, done: "asyncio.Future[None]", count: int) -> None:
        self._under_way.discard(done)
        self._owed += count
        if not done.cancelled() and done.exception() is None and self._owed:
            self._written_more(self._owed)
            self._owed = 0


def storage_use(identity: Identity, found: HourUse) -> StorageUse:
    """Its id is that of the run, hour, organisation, model and tier."""
    sort, use = found.sort, found.use
    digest = hashlib.sha256(f"{sort.tenant_id}\0{sort.model}".encode()).hexdigest()[:32]
    hour, tier = found.start_ns // HOUR_NS, sort.tier.name.lower()
    return StorageUse(
        attestation_id=f"storage/{identity.instance_id}/{hour}/{tier}/{digest}",
        node=identity.node,
        instance_id=identity.instance_id,
        tenant_id=sort.tenant_id,
        model=sort.model,
        tier=sort.tier,
        start_time_ns=found.start_ns,
        end_time_ns=found.end_ns,
        token_milliseconds=use.token_milliseconds,
        maximum_tokens=use.maximum_tokens,
        started_tokens=use.started_tokens,
    )
