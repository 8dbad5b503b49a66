"""A worker's usage side as a process: its real journal, outbox and delivery, with clients
that are told what they used.

    python -m tests.soak.usage_worker DIRECTORY BILLING FIRST CLIENTS

Writes a line to standard output when a request began (`S NUMBER`) and when its client may be told
(`T NUMBER`): only after the journal said that the event is durable. What a number used follows from
the number. Ends, everything delivered, when its standard input does.
"""

import asyncio
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from journal.delivery import DeliverySettings
from kvtier.blocks import Tier
from worker.usage_delivery import UsageDelivery
from worker.usage_event import AdmittedRequest, ChargedTokens, UsageEnd, UsageEvent
from worker.usage_journal import UsageJournal, UsageOutbox

__all__ = ["event_of", "request_id_of"]

NOW = 1_755_000_000 * 10**9
FLUSH_SECONDS = 600


def request_id_of(number: int) -> str:
    return f"request-{number:09}"


def event_of(number: int) -> UsageEvent:
    """What request `number` uses."""
    request = AdmittedRequest(
        request_id=request_id_of(number),
        tenant_id=f"tenant-{number % 7}",
        model=f"model-{number % 3}",
        node="soak",
        client_request_id="",
        start_time_ns=NOW + number,
        project_id="soak",
        user_id="",
    )
    hits = {tier: number * 64 % (tier + 3) * 64 for tier in Tier}
    tokens = ChargedTokens(
        {tier: count for tier, count in hits.items() if count}, number % 64 + 1, number % 300
    )
    return UsageEvent(request, NOW + number + 10**9, UsageEnd.STOP, tokens, ttft_ns=10**6 + number)


class _Silent:
    def delivered(self, outcome: str, count: int) -> None:
        """Nobody listens."""

    def delivery_failed(self) -> None:
        """Nobody listens."""


async def main(directory: Path, billing: str, first: int, clients: int) -> None:
    journal = UsageJournal(directory)
    outbox = UsageOutbox(directory, journal.opening.acknowledged, lambda: journal.durable_sequence)
    delivery = UsageDelivery(
        outbox, DeliverySettings(billing, backoff_seconds=0.02, backoff_seconds_max=0.3), _Silent()
    )
    delivery.start()
    numbers = itertools.count(first)
    ending = asyncio.Event()

    async def client() -> None:
        while not ending.is_set():
            await _ask(journal, delivery, numbers)

    running = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.to_thread(sys.stdin.read)
    ending.set()
    await asyncio.gather(*running)
    delivered = await delivery.flush(FLUSH_SECONDS)
    await delivery.stop()
    journal.close()
    _say("DONE" if delivered else "NOT DELIVERED")


async def _ask(journal: UsageJournal, delivery: UsageDelivery, numbers: Iterator[int]) -> None:
    number = next(numbers)
    event = event_of(number)
    await journal.begin(event.request)
    _say(f"S {number}")
    await journal.end(event)
    delivery.wake()
    _say(f"T {number}")


def _say(line: str) -> None:
    """At once and whole: what was said before a kill was said."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
