"""A request at the edge has one usage event that says what was done, however slow or odd its end.

The engine here does only what a test tells it to: a real one between two steps.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.blocks import MissReason, Tier
from kvtier.errors import KvtierError
from kvtier.keys import PUBLIC_SCOPE
from worker import generation
from worker.generation import Generation, GenerationPlan, Settled
from worker.requests import (
    EndReason,
    EngineRequest,
    EngineUsage,
    EventSink,
    RequestEnded,
    RequestId,
    TokenEvent,
)
from worker.usage_event import UsageEnd, UsageEvent
from worker.usage_journal import UsageJournal, UsageOutbox

USED = EngineUsage(80, {Tier.GPU: 64}, 16, 3, 0.0, 0.0, MissReason.NONE)


class StubEngine:
    """Keeps the sink and what it was told."""

    def __init__(self) -> None:
        self.sink: EventSink | None = None
        self.cancelled: list[EndReason] = []

    def submit(self, request: EngineRequest, sink: EventSink) -> None:
        self.sink = sink

    def cancel(self, request_id: RequestId, reason: EndReason = EndReason.CANCELLED) -> None:
        self.cancelled.append(reason)

    def stop_sample(self, request_id: RequestId, sample_index: int) -> None:
        raise AssertionError("no stop string here")

    def say(self, event: Any) -> None:
        assert self.sink is not None
        self.sink(event)

    async def until_cancelled(self) -> None:
        while not self.cancelled:
            await asyncio.sleep(0.001)


class Edge:
    """One generation over a real journal."""

    def __init__(self, directory: Path, request: Any) -> None:
        self.engine = StubEngine()
        self.journal = UsageJournal(directory)
        self._admitted = request
        self.decode: Any = lambda token_ids: "x" * len(token_ids)

    def open(
        self, seconds: float, on_end: Any = lambda event, usage: None
    ) -> tuple[Generation, "asyncio.Task[None]"]:
        now = asyncio.get_running_loop().time()
        request = EngineRequest(RequestId(self._admitted.request_id), (1,) * 80, 8, PUBLIC_SCOPE)
        plan = GenerationPlan(self._admitted, request, (), now, now + seconds)
        made = Generation(plan, self.engine, self.journal, self.decode, on_end)
        return made, made.start()

    def events(self) -> list[UsageEvent]:
        outbox = UsageOutbox(self.journal.directory, 0, lambda: self.journal.durable_sequence)
        return [pending.event for pending in outbox.pending(100)]


@pytest.fixture
async def edge(tmp_path: Path, make_request: Any) -> AsyncIterator[Edge]:
    made = Edge(tmp_path / "journal", make_request("r-1"))
    yield made
    made.journal.close()


async def read(made: Generation) -> tuple[Settled | None, KvtierError | None]:
    """The usage that the client is told, and the error after it or in its place, if any."""
    settled = None
    try:
        async for output in made.outputs():
            assert settled is None, "something came after the usage"
            settled = output if isinstance(output, Settled) else None
    except KvtierError as error:
        return settled, error
    return settled, None


async def test_a_client_that_leaves_just_before_its_deadline_pays_for_what_was_done(edge: Edge):
    """A step takes longer than the moment between a client's deadline and our copy of it."""
    made, task = edge.open(seconds=0.04)
    await asyncio.sleep(0)
    made.abandon()
    await asyncio.sleep(0.1)
    edge.engine.say(RequestEnded(EndReason.DEADLINE, USED))
    await task
    (event,) = edge.events()
    assert event.end is UsageEnd.DEADLINE
    assert (event.tokens.hit_tokens, event.tokens.miss_tokens) == (64, 16)
    assert edge.engine.cancelled == [EndReason.DEADLINE]


async def test_a_cancelled_request_whose_deadline_passes_before_it_ends_stays_cancelled(edge: Edge):
    made, task = edge.open(seconds=0.2)
    made.abandon()
    await asyncio.sleep(0.3)
    edge.engine.say(RequestEnded(EndReason.CANCELLED, USED))
    await task
    (event,) = edge.events()
    assert event.end is UsageEnd.CANCELLED
    assert event.tokens.prompt_tokens == 80


async def test_an_engine_that_does_not_end_a_cancelled_request_is_given_up_long_before_its_deadline(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generation, "CANCEL_SECONDS_MAX", 0.05)
    made, task = edge.open(seconds=600)
    await asyncio.sleep(0.01)
    made.abandon()
    await asyncio.wait_for(task, 5)
    (event,) = edge.events()
    assert (event.end, event.tokens.prompt_tokens) == (UsageEnd.ERROR, 0)


async def test_an_engine_that_never_ends_a_request_is_given_up_and_nothing_charged(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generation, "CANCEL_SECONDS_MAX", 0.05)
    made, task = edge.open(seconds=0.01)
    settled, error = await read(made)
    await task
    assert error is not None
    assert error.reason == "ENGINE_FAILED"
    (event,) = edge.events()
    assert (event.end, event.tokens.prompt_tokens) == (UsageEnd.ERROR, 0)
    assert settled is not None
    assert (settled.event, settled.computed) == (event, None)


async def test_a_request_whose_text_cannot_be_made_ends_in_the_ledger_now_and_charges_nothing(
    edge: Edge,
):
    def fail(token_ids: Any) -> str:
        raise ValueError("no such token")

    edge.decode = fail
    made, task = edge.open(seconds=30)
    edge.engine.say(TokenEvent(0, 7))
    await edge.engine.until_cancelled()
    edge.engine.say(RequestEnded(EndReason.CANCELLED, USED))
    settled, error = await read(made)
    await task
    assert error is not None
    assert error.reason == "ENGINE_FAILED"
    (event,) = edge.events()
    assert (event.end, event.tokens.prompt_tokens) == (UsageEnd.ERROR, 0)
    assert settled is not None
    assert (settled.event, settled.computed) == (event, None)


async def test_an_engine_that_counts_nonsense_still_gives_the_request_its_end(edge: Edge):
    made, task = edge.open(seconds=30)
    edge.engine.say(
        RequestEnded(EndReason.STOP, EngineUsage(0, {}, -1, 0, 0.0, 0.0, MissReason.NONE))
    )
    settled, error = await read(made)
    await task
    assert error is not None
    assert error.reason == "ENGINE_FAILED"
    (event,) = edge.events()
    assert (event.end, event.tokens.prompt_tokens) == (UsageEnd.ERROR, 0)
    assert settled is not None
    assert (settled.event, settled.computed) == (event, None)


@pytest.mark.parametrize(
    ("reason", "told", "charged"),
    [(EndReason.DEADLINE, "DEADLINE", 80), (EndReason.ERROR, "ENGINE_FAILED", 0)],
)
async def test_usage_comes_before_the_error_once_its_event_is_durable(
    edge: Edge, reason: EndReason, told: str, charged: int
):
    made, task = edge.open(seconds=30)
    edge.engine.say(TokenEvent(0, 7))
    edge.engine.say(RequestEnded(reason, USED, "the model failed"))
    outputs = made.outputs()
    *_, settled = [await anext(outputs) for _ in ("started", "delta", "usage")]
    assert isinstance(settled, Settled)
    assert edge.events() == [settled.event]
    with pytest.raises(KvtierError) as raised:
        await anext(outputs)
    await task
    assert raised.value.reason == told
    assert settled.event.tokens.prompt_tokens == charged
    assert settled.event.tokens.completion_tokens == (3 if charged else 0)
    computed = settled.computed
    assert computed is not None
    assert (computed.hit_tokens, computed.miss_tokens, computed.completion_tokens) == (64, 16, 3)


async def test_without_a_durable_event_no_usage_is_told(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
):
    made, task = edge.open(seconds=30)
    outputs = made.outputs()
    await anext(outputs)
    edge.journal.close()
    edge.engine.say(RequestEnded(EndReason.DEADLINE, USED))
    with pytest.raises(KvtierError) as raised:
        await anext(outputs)
    await task
    assert raised.value.reason == "USAGE_JOURNAL_FAILED"


async def test_a_listener_that_raises_changes_neither_the_end_nor_the_reply(edge: Edge):
    def fail(event: UsageEvent, usage: EngineUsage) -> None:
        raise RuntimeError("metrics are broken")

    made, task = edge.open(seconds=30, on_end=fail)
    edge.engine.say(RequestEnded(EndReason.STOP, USED))
    settled, error = await read(made)
    assert settled is not None
    assert error is None
    await task
    (event,) = edge.events()
    assert event.end is UsageEnd.STOP
