"""Delivery to billing over real gRPC, against a ledger that misbehaves in every allowed way."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

import worker.usage_delivery
from journal.delivery import DeliverySettings
from journal.journal import JournalLimits
from kvtier.blocks import Tier
from kvtier.v1 import usage_pb2, usage_pb2_grpc
from worker.prompt_proof import DIGESTS_MAX
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
from worker.usage_wire import event_message

ACCEPTED, DUPLICATE = usage_pb2.RECORD_STATUS_ACCEPTED, usage_pb2.RECORD_STATUS_DUPLICATE
CONFLICT, REJECTED = usage_pb2.RECORD_STATUS_CONFLICT, usage_pb2.RECORD_STATUS_REJECTED


class Ledger(usage_pb2_grpc.UsageServiceServicer):
    """Keeps events by request id; `faults` are raised or answered by the next calls, in order."""

    def __init__(self) -> None:
        self.events: dict[str, usage_pb2.UsageEvent] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.faults: list[Callable] = []
        self.poison = ""
        self.batches: list[int] = []
        self.under_way = 0
        self.at_once = 0
        """The most calls that there were at a time."""

    async def RecordUsage(self, request, context):
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)
        try:
            return await self._answer(request, context)
        finally:
            self.under_way -= 1

    async def _answer(self, request, context):
        self.batches.append(len(request.events))
        if self.faults:
            answer = await self.faults.pop(0)(self, request, context)
            if answer is not None:
                return answer
        if self.poison in {e.request_id for e in request.events}:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "cannot be read")
        return usage_pb2.RecordUsageResponse(outcomes=[self._record(e) for e in request.events])

    def _record(self, event):
        if event.request_id in self.refused:
            status, reason = self.refused[event.request_id]
        elif event.request_id in self.events:
            status, reason = DUPLICATE, ""
            assert self.events[event.request_id] == event
        else:
            status, reason = ACCEPTED, ""
            self.events[event.request_id] = event
        return usage_pb2.RecordOutcome(request_id=event.request_id, status=status, reason=reason)


async def unavailable(ledger, request, context):
    await context.abort(grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")


async def recorded_but_the_answer_is_lost(ledger, request, context):
    for event in request.events:
        ledger._record(event)
    await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")


async def answers_for_other_events(ledger, request, context):
    return usage_pb2.RecordUsageResponse(
        outcomes=[usage_pb2.RecordOutcome(request_id="other", status=ACCEPTED)]
    )


async def answers_without_a_status(ledger, request, context):
    return usage_pb2.RecordUsageResponse(
        outcomes=[usage_pb2.RecordOutcome(request_id=e.request_id) for e in request.events]
    )


async def goes_through(ledger, request, context):
    return None


async def goes_through_late(ledger, request, context):
    await asyncio.sleep(0.01)


class Counts:
    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures = 0

    def delivered(self, outcome: str, count: int) -> None:
        self.outcomes[outcome] += count

    def delivery_failed(self) -> None:
        self.failures += 1


def event(name: str) -> UsageEvent:
    request = AdmittedRequest(name, "acme", "demo", "node-1", "", 1_000_000_000)
    return UsageEvent(request, 2_000_000_000, UsageEnd.STOP, ChargedTokens({Tier.GPU: 1}, 2, 3))


@asynccontextmanager
async def billing(ledger: Ledger, address: str = "127.0.0.1:0"):
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    usage_pb2_grpc.add_UsageServiceServicer_to_server(ledger, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def delivering(journal: UsageJournal, address: str, counts: Counts, **settings):
    outbox = UsageOutbox(
        journal.directory, journal.opening.acknowledged, lambda: journal.durable_sequence
    )
    settings = {"backoff_seconds": 0.01, "backoff_seconds_max": 0.05, **settings}
    delivery = UsageDelivery(outbox, DeliverySettings(address, **settings), counts)
    delivery.start()
    try:
        yield delivery
    finally:
        await delivery.stop()


async def deliver_all(tmp_path: Path, ledger: Ledger, names: list[str], **settings) -> Counts:
    journal = UsageJournal(tmp_path)
    counts = Counts()
    await asyncio.gather(*(journal.end(event(name)) for name in names))
    async with (
        billing(ledger) as address,
        delivering(journal, address, counts, **settings) as delivery,
    ):
        assert await delivery.flush(30)
    journal.close()
    assert all_delivered(tmp_path)
    return counts


def all_delivered(directory: Path) -> bool:
    journal = UsageJournal(directory)
    undelivered = journal.opening.undelivered_count
    journal.close()
    return undelivered == 0


def dead_letters(directory: Path) -> list[dict]:
    return [json.loads(x) for x in (directory / "dead_letters.jsonl").read_text().splitlines()]


async def test_every_event_arrives_in_batches(tmp_path):
    ledger = Ledger()
    names = [f"r{i}" for i in range(2200)]
    counts = await deliver_all(tmp_path, ledger, names)
    assert set(ledger.events) == set(names)
    assert counts.outcomes == {"accepted": 2200}
    assert max(ledger.batches) <= 1_000


async def test_a_call_takes_no_more_than_grpc_does(tmp_path):
    ledger = Ledger()
    journal, counts = UsageJournal(tmp_path), Counts()
    run = ProvenRun({None: DIGESTS_MAX}, bytes(32))
    proof = PromptProof(1, 64, bytes(16), bytes(16), (run,), 1, bytes(32 * DIGESTS_MAX))
    large = [replace(event(f"r{i}"), proof=proof) for i in range(200)]
    assert len(event_message(large[0]).SerializeToString()) * len(large) > 4 << 20
    await asyncio.gather(*map(journal.end, large))
    async with billing(ledger) as address, delivering(journal, address, counts) as delivery:
        assert await delivery.flush(30)
    journal.close()
    assert counts.outcomes == {"accepted": 200}
    assert counts.failures == 0
    assert len(ledger.batches) > 2


async def test_two_calls_are_on_their_way_where_more_waits_than_one_takes(tmp_path):
    ledger = Ledger()
    ledger.faults = [goes_through_late] * 10
    names = [f"r{i}" for i in range(95)]
    counts = await deliver_all(tmp_path, ledger, names, batch_events_max=10)
    assert ledger.at_once == 2
    assert set(ledger.events) == set(names)
    assert sorted(ledger.batches) == [5] + [10] * 9
    assert counts.outcomes == {"accepted": 95}


async def test_behind_a_batch_that_is_not_full_nothing_is_sent_before_its_answer(tmp_path):
    ledger = Ledger()
    ledger.faults = [goes_through_late] * 3
    await deliver_all(tmp_path, ledger, [f"r{i}" for i in range(9)], batch_events_max=10)
    assert (ledger.at_once, ledger.batches) == (1, [9])


async def test_events_written_while_delivering_arrive_too(tmp_path):
    ledger = Ledger()
    journal = UsageJournal(tmp_path)
    counts = Counts()
    async with billing(ledger) as address, delivering(journal, address, counts) as delivery:
        for i in range(50):
            await journal.end(event(f"r{i}"))
            delivery.wake()
        assert await delivery.flush(30)
    journal.close()
    assert len(ledger.events) == 50


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_acknowledged_before_billing_has_it_whatever_happens_to_the_calls(
    tmp_path, seed, monkeypatch
):
    """Two calls at a time that fail, lose their answer, say nonsense, come back out of turn, take a
    part of a batch or are spoilt by one event, in segments of a few events; new ones are written
    meanwhile."""
    chance, ledger, counts = random.Random(seed), Ledger(), Counts()
    # A call takes about five of a batch's seven events, now and then.
    size = len(event_message(event("r000")).SerializeToString())
    monkeypatch.setattr(worker.usage_delivery, "CALL_BYTES_MAX", chance.choice([5 * size, 1 << 20]))
    faults = [
        *(unavailable, recorded_but_the_answer_is_lost),
        *(answers_for_other_events, answers_without_a_status),
    ]
    good = [goes_through, goes_through_late]
    ledger.faults = [chance.choice([*faults, *good, *good]) for _ in range(40)]
    names = [f"r{i:03}" for i in range(160)]
    ledger.poison = names[chance.randrange(160)]
    journal = UsageJournal(tmp_path, JournalLimits(segment_bytes=2_000))
    acknowledge, acknowledged = UsageOutbox.acknowledge, 0

    def checked(outbox, sequence, refused=()):
        nonlocal acknowledged
        for end in outbox.pending(10_000):
            if end.sequence <= sequence:
                assert end.name in (*ledger.events, ledger.poison)
                acknowledged += 1
        acknowledge(outbox, sequence, refused)

    monkeypatch.setattr(UsageOutbox, "acknowledge", checked)
    for name in names[:100]:
        await journal.end(event(name))
    settings = {"batch_events_max": 7, "backoff_seconds": 0.001, "backoff_seconds_max": 0.005}
    async with (
        billing(ledger) as address,
        delivering(journal, address, counts, **settings) as delivery,
    ):
        for name in names[100:]:
            await journal.end(event(name))
            delivery.wake()
            await asyncio.sleep(chance.choice([0, 0.002]))
        assert await delivery.flush(30)
    journal.close()
    # A call whose answer was lost may have recorded that one too.
    assert {*ledger.events, ledger.poison} == set(names)
    assert acknowledged == 160
    assert ledger.at_once == 2
    assert [letter["request"]["request_id"] for letter in dead_letters(tmp_path)] == [ledger.poison]
    assert counts.outcomes["accepted"] + counts.outcomes["duplicate"] == 159
    assert all_delivered(tmp_path)


async def test_an_outage_delays_and_loses_nothing(tmp_path):
    ledger = Ledger()
    ledger.faults = [unavailable, unavailable, unavailable]
    counts = await deliver_all(tmp_path, ledger, ["a", "b"])
    assert set(ledger.events) == {"a", "b"}
    assert counts.failures == 3


async def test_an_answer_that_was_lost_becomes_a_duplicate_not_a_second_charge(tmp_path):
    ledger = Ledger()
    ledger.faults = [recorded_but_the_answer_is_lost]
    counts = await deliver_all(tmp_path, ledger, ["a", "b"])
    assert counts.outcomes == {"duplicate": 2}
    assert len(ledger.events) == 2


async def test_nonsense_answers_acknowledge_nothing(tmp_path):
    ledger = Ledger()
    ledger.faults = [answers_for_other_events, answers_without_a_status]
    counts = await deliver_all(tmp_path, ledger, ["a", "b"])
    assert counts.failures == 2
    assert counts.outcomes == {"accepted": 2}


async def test_refused_events_are_kept_and_the_others_go_through(tmp_path):
    ledger = Ledger()
    ledger.refused = {"b": (CONFLICT, "CONTENT"), "c": (REJECTED, "HIT_MISS_SUM")}
    counts = await deliver_all(tmp_path, ledger, ["a", "b", "c", "d"])
    assert set(ledger.events) == {"a", "d"}
    assert counts.outcomes == {"accepted": 2, "conflict": 1, "rejected": 1}
    kept = {x["request"]["request_id"]: (x["status"], x["reason"]) for x in dead_letters(tmp_path)}
    assert kept == {"b": ("CONFLICT", "CONTENT"), "c": ("REJECTED", "HIT_MISS_SUM")}


async def test_one_event_that_spoils_the_call_is_found_and_the_others_go_through(tmp_path):
    ledger = Ledger()
    ledger.poison = "r7"
    names = [f"r{i}" for i in range(20)]
    await deliver_all(tmp_path, ledger, names)
    assert set(ledger.events) == set(names) - {"r7"}
    assert [x["request"]["request_id"] for x in dead_letters(tmp_path)] == ["r7"]


async def test_billing_that_is_down_slows_no_request_and_gets_all_later(tmp_path):
    ledger = Ledger()
    async with billing(ledger) as address:
        pass
    journal = UsageJournal(tmp_path)
    counts = Counts()
    async with delivering(journal, address, counts) as delivery:
        for i in range(20):
            await journal.end(event(f"r{i}"))
            delivery.wake()
        assert not ledger.events
        async with billing(ledger, address):
            assert await delivery.flush(60)
    journal.close()
    assert len(ledger.events) == 20
    assert counts.outcomes == {"accepted": 20}


async def test_after_an_outage_events_wait_for_our_backoff_and_for_no_other(tmp_path):
    """The transport backs off by itself, up to minutes."""
    async with billing(Ledger()) as address:
        pass
    journal = UsageJournal(tmp_path)
    await journal.end(event("a"))
    ledger = Ledger()
    async with delivering(journal, address, Counts()) as delivery:
        await asyncio.sleep(3)
        async with billing(ledger, address):
            assert await delivery.flush(1)
    journal.close()
    assert set(ledger.events) == {"a"}


class Cable:
    """A TCP connection's way through a network that can be cut without a word to either end."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: list[asyncio.Task[None]] = []

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, int(self._port))
        whole = self._whole
        self._tasks += [
            asyncio.create_task(self._pump(reader, back, whole)),
            asyncio.create_task(self._pump(there, writer, whole)),
        ]

    def cut(self) -> None:
        """Connections there are carry nothing any more; new ones do."""
        self._whole.clear()
        self._whole = asyncio.Event()
        self._whole.set()

    async def _pump(self, reader, writer, whole: asyncio.Event) -> None:
        try:
            while raw := await reader.read(65_536):
                if whole.is_set():
                    writer.write(raw)
                    await writer.drain()
        finally:
            writer.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_connection_that_went_dead_without_a_word_is_replaced(tmp_path):
    journal = UsageJournal(tmp_path)
    ledger = Ledger()
    async with billing(ledger) as address:
        cable = Cable(address)
        server = await asyncio.start_server(cable.carry, "127.0.0.1", 0)
        through = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with delivering(journal, through, Counts(), call_timeout_seconds=0.3) as delivery:
            await journal.end(event("before"))
            delivery.wake()
            assert await delivery.flush(5)
            cable.cut()
            await journal.end(event("after"))
            delivery.wake()
            assert await delivery.flush(5)
        server.close()
        await cable.close()
    journal.close()
    assert set(ledger.events) == {"before", "after"}


async def test_stopping_in_an_outage_keeps_the_events_for_the_next_start(tmp_path):
    journal = UsageJournal(tmp_path)
    await journal.end(event("a"))
    async with delivering(journal, "127.0.0.1:1", Counts()) as delivery:
        assert not await delivery.flush(0.05)
    journal.close()
    ledger = Ledger()
    await deliver_all(tmp_path, ledger, ["b"])
    assert set(ledger.events) == {"a", "b"}
