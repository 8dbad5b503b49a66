"""Billing is gone for as long as it takes to serve an hour's requests: nobody waits for it, nothing
is lost, and what the outbox takes on the disk is given back.
"""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import grpc

from journal.delivery import DeliverySettings
from journal.journal import JournalLimits
from kvtier.v1 import usage_pb2 as pb
from kvtier.v1 import usage_pb2_grpc
from tests.soak.usage_worker import event_of
from worker.usage_delivery import UsageDelivery
from worker.usage_journal import UsageJournal, UsageOutbox
from worker.usage_journal_format import USAGE_FORMAT

HOUR_EVENTS = 14_400
"""Four requests a second."""

BEFORE = 300
CLIENTS = 64


class Counts:
    def __init__(self) -> None:
        self.failures = 0

    def delivered(self, outcome: str, count: int) -> None:
        assert outcome in ("accepted", "duplicate")

    def delivery_failed(self) -> None:
        self.failures += 1


def _start(directory: Path, address: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "billing", "--set", "security.development=true"]
    for setting in (f"data_directory={directory}", "log.level=ERROR", f"listen={address}"):
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["listen"]


async def _serve(journal: UsageJournal, delivery: UsageDelivery, numbers: range) -> None:
    async def client(mine: range) -> None:
        for number in mine:
            event = event_of(number)
            await journal.begin(event.request)
            await journal.end(event)
            delivery.wake()

    shares = [range(numbers.start + n, numbers.stop, CLIENTS) for n in range(CLIENTS)]
    await asyncio.gather(*map(client, shares))


async def test_an_hour_without_billing_slows_nobody_and_loses_nothing(tmp_path: Path) -> None:
    process, address = _start(tmp_path / "billing", "127.0.0.1:0")
    limits = JournalLimits(segment_bytes=256 << 10)
    journal = UsageJournal(tmp_path / "journal", limits)
    outbox = UsageOutbox(journal.directory, 0, lambda: journal.durable_sequence)
    counts = Counts()
    settings = DeliverySettings(address, backoff_seconds=0.05, backoff_seconds_max=0.5)
    delivery = UsageDelivery(outbox, settings, counts)
    delivery.start()
    await _serve(journal, delivery, range(BEFORE))
    process.send_signal(signal.SIGKILL)
    process.communicate()

    # Every client is served to its end while nobody takes an event.
    await _serve(journal, delivery, range(BEFORE, BEFORE + HOUR_EVENTS))
    assert counts.failures >= 1
    assert outbox.acknowledged < HOUR_EVENTS
    waiting = journal.used_bytes
    assert waiting < limits.capacity_bytes

    process, address = _start(tmp_path / "billing", address)
    assert await delivery.flush(120)
    await delivery.stop()
    journal.close()
    segments = USAGE_FORMAT.segment_paths(journal.directory)
    assert len(segments) <= 2
    assert (
        sum(path.stat().st_size for path in USAGE_FORMAT.segment_paths(journal.directory))
        < waiting / 4
    )
    async with grpc.aio.insecure_channel(address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        found = await stub.VerifyLedger(pb.VerifyLedgerRequest(), timeout=120)
        (row,) = (await stub.GetUsage(pb.GetUsageRequest(), timeout=60)).rows
    process.send_signal(signal.SIGTERM)
    process.communicate()
    told = [event_of(number).tokens for number in range(BEFORE + HOUR_EVENTS)]
    assert (found.verified, found.entry_count, found.refused_count) == (True, len(told), 0)
    assert row.tokens.hit_tokens == sum(each.hit_tokens for each in told)
    assert row.tokens.miss_tokens == sum(each.miss_tokens for each in told)
    assert row.tokens.completion_tokens == sum(each.completion_tokens for each in told)
