"""One admitted request at the worker's edge, from submit to its durable usage event.

    engine's thread --sink--> events --run (task)--> outputs --> the RPC, while there is one

Invariant: once `start` returned, the request gets exactly one usage event, also when its client is
gone: a task of its own follows the engine to `RequestEnded` and journals, and the RPC only reads. A
request that this code itself fails is closed there too, without charge.
Both queues are bounded by the tokens the request may generate. Event loop; `_on_engine_event` alone
runs on the engine's thread.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from kvtier.blocks import MissReason
from kvtier.errors import KvtierError
from worker.detokenizer import Decode
from worker.errors import EngineFailedError, RequestDeadlineError, UsageJournalFailedError
from worker.prompt_proof import ProofTerms, prove
from worker.requests import (
    EndReason,
    EngineEvent,
    EngineRequest,
    EngineUsage,
    EventSink,
    FinishReason,
    RequestEnded,
    RequestId,
    TokenEvent,
)
from worker.sample_text import Sample, SampleFinished, TextDelta
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    PromptProof,
    UsageEnd,
    UsageEvent,
    charge,
    computed_tokens,
    end_request,
)
from worker.usage_journal import UsageJournal

__all__ = [
    "CANCEL_SECONDS_MAX",
    "EnginePort",
    "Generation",
    "GenerationPlan",
    "Output",
    "Settled",
    "Started",
]

log = logging.getLogger(__name__)

CANCEL_SECONDS_MAX = 10.0
"""How long the engine may take to end a request it was told to end."""

PROVEN_AT_ONCE_MAX = 8192
"""Tokens that are hashed on the event loop: under a millisecond; more go to a thread."""

DEADLINE_SLACK_SECONDS = 0.05
"""A client gives up at its deadline a little before our copy of it passes."""


class EnginePort(Protocol):
    """What the edge needs of the engine. Any thread."""

    def submit(self, request: EngineRequest, sink: EventSink) -> None: ...

    def cancel(self, request_id: RequestId, reason: EndReason = EndReason.CANCELLED) -> None: ...

    def stop_sample(self, request_id: RequestId, sample_index: int) -> None: ...


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """A checked request, ready to be submitted."""

    admitted: AdmittedRequest
    request: EngineRequest
    stops: tuple[str, ...]
    arrival: float
    """Monotonic seconds."""
    deadline: float
    """Monotonic seconds; the client's own or the worker's, whichever comes first."""
    ttl_class: str = ""
    """What new blocks are kept under; empty: without an end."""
    proof: ProofTerms | None = None
    """None: its event proves nothing."""


@dataclass(frozen=True, slots=True)
class Started:
    request_id: str
    model: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The request ended and its event is durable."""

    event: UsageEvent
    usage: EngineUsage
    computed: ChargedTokens | None
    """What was really reused and computed, whatever is charged; None: the engine did not say."""
    problem: RequestDeadlineError | EngineFailedError | None = None
    """Why it did not end well; the client gets it after the usage."""


Output = Started | TextDelta | SampleFinished | Settled

NO_USAGE = EngineUsage(0, {}, 0, 0, 0.0, 0.0, MissReason.NONE)

SILENT_END = RequestEnded(EndReason.ERROR, NO_USAGE, "the engine does not answer")
"""In place of what the engine should have said and did not."""

_ENDS = {
    EndReason.CANCELLED: UsageEnd.CANCELLED,
    EndReason.DEADLINE: UsageEnd.DEADLINE,
    EndReason.ERROR: UsageEnd.ERROR,
}


class Generation:
    """`start`, then read `outputs`; `abandon` when nobody reads any more."""

    def __init__(
        self,
        plan: GenerationPlan,
        engine: EnginePort,
        journal: UsageJournal,
        decode: Decode,
        on_end: Callable[[UsageEvent, EngineUsage], None],
    ) -> None:
        """`on_end` is told of every durable event, on the event loop."""
        self._plan = plan
        self._engine = engine
        self._journal = journal
        self._on_end = on_end
        self._samples = [
            Sample(index, decode, plan.stops) for index in range(plan.request.sample_count)
        ]
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._outputs: asyncio.Queue[Output | KvtierError] = asyncio.Queue()
        self._first_token_time: float | None = None
        self._wait_until = plan.deadline
        self._cancelled = False
        self._end_due = False
        """The journal has the request's begin and was not told its end."""
        self._ended = False
        self.begun = False
        """The journal has the request's begin: it will have a usage event, whatever comes."""

    @property
    def request_id(self) -> str:
        return self._plan.admitted.request_id

    def start(self) -> "asyncio.Task[None]":
        """Submits to the engine; the task that follows it ends when the event is durable.

        Raises what the engine's `submit` raises; then nothing was admitted.
        """
        self._engine.submit(self._plan.request, self._on_engine_event)
        name = f"generation {self._plan.admitted.request_id}"
        return self._loop.create_task(self._run(), name=name)

    async def outputs(self) -> AsyncIterator[Output]:
        """Everything for the client. The last is `Settled`, and then its problem is raised where it
        has one; without a durable event a KvtierError is raised instead.
        """
        while True:
            output = await self._outputs.get()
            if isinstance(output, KvtierError):
                raise output
            yield output
            if isinstance(output, Settled):
                if output.problem is not None:
                    raise output.problem
                return

    def abandon(self) -> None:
        """The client is gone, or has everything. Idempotent."""
        late = time.monotonic() >= self._plan.deadline - DEADLINE_SLACK_SECONDS
        self._cancel(EndReason.DEADLINE if late else EndReason.CANCELLED)

    def _cancel(self, reason: EndReason) -> None:
        if self._ended or self._cancelled:
            return
        self._cancelled = True
        # The engine ends it after the step under way: our deadline may well pass before.
        self._wait_until = time.monotonic() + CANCEL_SECONDS_MAX
        self._events.put_nowait(None)
        self._engine.cancel(self._plan.request.request_id, reason)

    def _on_engine_event(self, event: EngineEvent) -> None:
        if self._first_token_time is None and not isinstance(event, RequestEnded):
            self._first_token_time = time.monotonic()
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            log.warning("an engine event came after the worker's event loop had closed")

    async def _run(self) -> None:
        try:
            last = await self._begin_and_follow()
        except Exception as error:
            # Nobody awaits this task's result, and the client must not wait for ever.
            log.exception("a request's edge failed")
            failed = EngineFailedError(f"the worker's edge failed: {type(error).__name__}")
            self._cancel(EndReason.CANCELLED)
            last = await self._end_unpaid(failed)
        self._ended = True
        self._outputs.put_nowait(last)

    async def _begin_and_follow(self) -> Settled | KvtierError:
        try:
            await self._journal.begin(self._plan.admitted)
        except UsageJournalFailedError as error:
            self._cancel(EndReason.CANCELLED)
            await self._follow()
            return error
        self._end_due = self.begun = True
        self._outputs.put_nowait(
            Started(
                self._plan.admitted.request_id,
                self._plan.admitted.model,
                len(self._plan.request.token_ids),
            )
        )
        return await self._settle(await self._follow())

    async def _follow(self) -> RequestEnded:
        """Hands on what the engine says until it ends the request, or is given up on."""
        while True:
            try:
                async with asyncio.timeout_at(self._wait_until):
                    event = await self._events.get()
            except TimeoutError:
                if not self._cancelled:
                    self._cancel(EndReason.DEADLINE)
                elif time.monotonic() >= self._wait_until:
                    log.error(
                        "the engine did not end a request in time",
                        extra={"request_id": self._plan.admitted.request_id},
                    )
                    return SILENT_END
                continue
            if isinstance(event, RequestEnded):
                return event
            if event is not None:
                self._hand_on(event)
            # None: cancelled meanwhile, so there is another time to wait for.

    def _hand_on(self, event: EngineEvent) -> None:
        assert not isinstance(event, RequestEnded)
        sample = self._samples[event.sample_index]
        if isinstance(event, TokenEvent):
            outputs = sample.push(event.token_id, event.logprob)
            if any(isinstance(output, SampleFinished) for output in outputs):
                self._engine.stop_sample(self._plan.request.request_id, sample.index)
        else:
            outputs = sample.end(event.finish_reason)
        for output in outputs:
            self._outputs.put_nowait(output)

    async def _settle(self, ended: RequestEnded) -> Settled | KvtierError:
        end = self._end_of(ended)
        undelivered = sum(sample.undelivered_tokens for sample in self._samples)
        ttft_ns = None
        if self._first_token_time is not None:
            ttft_ns = round((self._first_token_time - self._plan.arrival) * 1e9)
        charged = charge(ended.usage, end, undelivered, self._plan.ttl_class)
        event = end_request(
            self._plan.admitted,
            end,
            charged,
            now_ns=time.time_ns(),
            ttft_ns=ttft_ns,
            lease_ids=ended.usage.lease_ids,
            proof=await self._prove(ended.usage, charged),
        )
        computed = None
        if ended is not SILENT_END:
            computed = computed_tokens(ended.usage, self._plan.ttl_class)
        settled = Settled(event, ended.usage, computed, _problem(ended, event))
        return await self._note(event, ended.usage) or settled

    async def _prove(self, usage: EngineUsage, charged: ChargedTokens) -> PromptProof | None:
        terms, token_ids = self._plan.proof, self._plan.request.token_ids
        if terms is None:
            return None
        if charged.prompt_tokens <= PROVEN_AT_ONCE_MAX:
            return prove(terms, usage.runs, token_ids, charged)
        return await asyncio.to_thread(prove, terms, usage.runs, token_ids, charged)

    async def _end_unpaid(self, failed: EngineFailedError) -> Settled | KvtierError:
        if not self._end_due:
            return failed
        event = end_request(
            self._plan.admitted,
            UsageEnd.ERROR,
            ChargedTokens(),
            now_ns=time.time_ns(),
            ttft_ns=None,
        )
        settled = Settled(event, NO_USAGE, None, failed)
        return await self._note(event, NO_USAGE) or settled

    async def _note(self, event: UsageEvent, usage: EngineUsage) -> UsageJournalFailedError | None:
        """Makes the one event durable; an error is what the client gets in place of `usage`."""
        # Told once, whatever comes of it: what the journal fails to write it closes by itself.
        self._end_due = False
        try:
            await self._journal.end(event)
        except UsageJournalFailedError as error:
            return error
        try:
            self._on_end(event, usage)
        except Exception:
            log.exception("a listener to a request's end raised")
        return None

    def _end_of(self, ended: RequestEnded) -> UsageEnd:
        failed = _ENDS.get(ended.end_reason)
        if failed is not None:
            return failed
        # A sample that met a stop string may have run into its limit before the engine knew.
        reached_limit = any(s.finish_reason is FinishReason.LENGTH for s in self._samples)
        return UsageEnd.LENGTH if reached_limit else UsageEnd.STOP


def _problem(
    ended: RequestEnded, event: UsageEvent
) -> RequestDeadlineError | EngineFailedError | None:
    if event.end is UsageEnd.DEADLINE:
        return RequestDeadlineError(
            "the request's deadline passed; what was computed until then is metered",
            request_id=event.request.request_id,
        )
    if event.end is UsageEnd.ERROR:
        return EngineFailedError(
            ended.problem or "the engine gave up on the request; nothing is charged",
            request_id=event.request.request_id,
        )
    return None
