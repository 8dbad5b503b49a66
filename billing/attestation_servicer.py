"""AttestationService's edge: check, call, convert; no decisions.

Runs on the event loop; a comparison walks the ledger on the verifier's thread, and hands over what
it found a page at a time.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
from sqlalchemy import Connection

from billing.errors import TooManyEventsError
from billing.places import Places
from billing.reconciling import Reconciliation
from billing.servicer import EVENTS_MAX, RECORDING_MAX, UsageParts
from billing.wire import period_of
from billing.wire_attestation import (
    attestation_outcome_message,
    attestation_submission_of,
    difference_message,
    summary_message,
)
from kvtier.v1 import attestation_pb2 as pb
from kvtier.v1 import attestation_pb2_grpc

__all__ = ["AttestationServicer"]

COMPARING_MAX = 8
"""Calls that compare, all but one of which wait."""

PAGES_MAX = 4
"""Pages of differences that wait for their reader."""

LOOK_SECONDS = 0.5
"""Between two looks whether the reader is still there."""

Context = grpc.aio.ServicerContext[Any, Any]


class AttestationServicer(attestation_pb2_grpc.AttestationServiceServicer):
    """Counts the calls under way; holds no other state."""

    def __init__(self, parts: UsageParts) -> None:
        self._parts = parts
        self._recording = Places(RECORDING_MAX)
        self._comparing = Places(COMPARING_MAX)

    async def RecordAttestations(
        self, request: pb.RecordAttestationsRequest, context: Context
    ) -> pb.RecordAttestationsResponse:
        count = len(request.attestations)
        if count > EVENTS_MAX:
            raise TooManyEventsError(
                f"{count} attestations in a call; send at most {EVENTS_MAX}", events_max=EVENTS_MAX
            )
        with self._recording.one():
            submissions = await asyncio.get_running_loop().run_in_executor(
                self._parts.intake,
                lambda: [attestation_submission_of(each) for each in request.attestations],
            )
            outcomes = await asyncio.wrap_future(self._parts.ledger.attest(submissions))
        self._parts.metrics.attested(outcomes)
        return pb.RecordAttestationsResponse(outcomes=map(attestation_outcome_message, outcomes))

    async def ReconcileUsage(
        self, request: pb.ReconcileUsageRequest, context: Context
    ) -> AsyncGenerator[pb.ReconcileUsageResponse, None]:
        period, tenant = period_of(request), request.tenant_id
        loop = asyncio.get_running_loop()
        pages: asyncio.Queue[pb.ReconcileUsageResponse | None] = asyncio.Queue(PAGES_MAX)
        left = threading.Event()

        def stopping() -> bool:
            return left.is_set() or self._parts.stopping.is_set()

        def put(page: pb.ReconcileUsageResponse | None) -> None:
            asyncio.run_coroutine_threadsafe(_put(pages, page, stopping), loop).result()

        def compare(connection: Connection) -> None:
            walk = Reconciliation(connection, period, tenant, self._parts.clock_ns(), stopping)
            for found in walk.run():
                if found:
                    put(pb.ReconcileUsageResponse(differences=map(difference_message, found)))
            put(pb.ReconcileUsageResponse(summary=summary_message(walk)))

        def walked() -> None:
            try:
                self._parts.store.read(compare)
            finally:
                put(None)

        with self._comparing.one():
            done = loop.run_in_executor(self._parts.verifier, walked)
            try:
                while (page := await pages.get()) is not None:
                    yield page
                await done
            finally:
                left.set()


async def _put(
    pages: "asyncio.Queue[pb.ReconcileUsageResponse | None]",
    page: pb.ReconcileUsageResponse | None,
    stopping: Callable[[], bool],
) -> None:
    """Waits for the reader, but not for one that went away."""
    while not stopping():
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await pages.put(page)
        except TimeoutError:
            continue
        return
