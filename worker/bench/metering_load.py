"""A worker's usage side under load, for `kvtier bench metering`: its journal, outbox and delivery.

    python -m worker.bench.metering_load DIRECTORY BILLING EVENTS CLIENTS RATE

Serves so many requests, by so many clients at a time, at most RATE a second (0: as fast as they
go), until billing has every event. Writes one JSON object: when it began and ended, by the
machine's monotonic clock, and what the journal cost each request, in milliseconds.
"""

import asyncio
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from journal.delivery import DeliverySettings
from kvtier.blocks import Tier
from kvtier.collecting import leave_out_of_collections
from kvtier.prompt_proof import COMMITMENT_BYTES, DIGEST_BYTES, MARK_BYTES, PROOF_SCHEME
from worker.usage_delivery import UsageDelivery
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    PromptProof,
    ProvenRun,
    UsageEnd,
    UsageEvent,
)
from worker.usage_journal import UsageJournal, UsageOutbox

__all__ = ["main"]

FLUSH_SECONDS = 600.0


class _Silent:
    def delivered(self, outcome: str, count: int) -> None:
        if outcome not in ("accepted", "duplicate"):
            raise ValueError(f"billing answered {outcome}")

    def delivery_failed(self) -> None:
        """It is tried again."""


async def serve(directory: Path, billing: str, events: int, clients: int, rate: float) -> None:
    journal = UsageJournal(directory)
    outbox = UsageOutbox(directory, journal.opening.acknowledged, lambda: journal.durable_sequence)
    delivery = UsageDelivery(outbox, DeliverySettings(billing), _Silent())
    delivery.start()
    costs: list[float] = []
    node = directory.name
    began, cpu_began = time.perf_counter(), time.process_time()

    async def client(mine: range) -> None:
        for number in mine:
            if rate:
                await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            event = _event(node, number)
            asked = time.perf_counter()
            await journal.begin(event.request)
            begun = time.perf_counter()
            # Here the engine works: what a request waits for is before and after.
            await asyncio.sleep(0)
            ended = time.perf_counter()
            await journal.end(event)
            costs.append((begun - asked + time.perf_counter() - ended) * 1_000)
            delivery.wake()

    await asyncio.gather(*(client(range(first, events, clients)) for first in range(clients)))
    if not await delivery.flush(FLUSH_SECONDS):
        raise TimeoutError("billing did not take every event")
    span = (began, time.perf_counter())
    await delivery.stop()
    journal.close()
    cpu_us = (time.process_time() - cpu_began) / events * 1e6
    print(json.dumps({"span": span, "costs_ms": costs, "cpu_us_per_event": cpu_us}))


def _event(node: str, number: int) -> UsageEvent:
    """A document question: most of its prompt from the cache."""
    now_ns = time.time_ns()
    request = AdmittedRequest(
        request_id=f"{node}-{number}",
        tenant_id=f"tenant-{number % 50}",
        model=f"model-{number % 4}",
        node=node,
        client_request_id="",
        start_time_ns=now_ns,
        project_id=f"project-{number % 2}",
        user_id="",
    )
    tokens = ChargedTokens({Tier.GPU: 1_024, Tier.HOST: 2_944, Tier.SSD: 64}, 64, number % 300)
    return UsageEvent(request, now_ns, UsageEnd.STOP, tokens, ttft_ns=31_000_000, proof=_PROOF)


_BLOCKS: tuple[dict[Tier | None, int], ...] = (
    {Tier.GPU: 16},
    {Tier.HOST: 46},
    {Tier.SSD: 1},
    {None: 1},
)

_PROOF = PromptProof(
    scheme=PROOF_SCHEME,
    block_tokens=64,
    commitment=bytes(COMMITMENT_BYTES),
    namespace_mark=bytes(MARK_BYTES),
    runs=tuple(ProvenRun(dict(blocks), bytes(DIGEST_BYTES)) for blocks in _BLOCKS),
)
"""As long as a real one: what it takes to make one is the engine's side."""


def main() -> int:
    directory, billing, events, clients, rate = sys.argv[1:]
    with ExitStack() as parts:
        leave_out_of_collections(parts)  # as a worker that has started
        asyncio.run(serve(Path(directory), billing, int(events), int(clients), float(rate)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
