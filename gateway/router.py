"""The router: gathers what a request's worker is chosen by, and learns from what came of it.

    plan (names of the prompt's blocks, asked of a worker, bounded) -> choose -> sent -> first token

Invariants: with one worker to choose from nothing is asked and nothing waits; a name that does not
come within `DESCRIBE_SECONDS_MAX` is done without; what was counted as sent is taken back when its
first token came or it ended, whatever ended it. Event loop; owns what is believed of pages, of
sessions and of queues.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import grpc

from gateway.prefix_places import CacheViews, PagesGuess, find_prefix
from gateway.routing import Candidate, Prompt, Rates, choose
from gateway.status import is_for_callers
from gateway.worker_link import Worker
from gateway.worker_rates import FleetRates
from kvtier.errors import read_error
from kvtier.keys import HASH_BYTES
from kvtier.prompts import copy_prompt
from kvtier.v1 import describe_pb2
from kvtier.v1 import inference_pb2 as pb

__all__ = ["Plan", "Router", "Sent"]

log = logging.getLogger(__name__)

DESCRIBE_SECONDS_MAX = 0.1
"""A router that waits longer costs more than it saves."""

PROMPT_BYTES_MIN = 1024
"""About four blocks: what is shorter is computed sooner than it is looked for."""

BYTES_PER_TOKEN = 4
"""Where nobody counted."""

LOG_SECONDS = 60.0
"""Between two lines that say that names do not come."""

SESSIONS_MAX = 16_384

SESSION_CHARACTERS_MAX = 128
"""As many as a worker takes; a longer one is refused there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a request before it is sent."""

    prompt: Prompt
    chain: tuple[bytes, ...] = ()
    """Names of its whole blocks; empty: unknown."""
    session: tuple[str, str] | None = None


@dataclass(slots=True)
class Sent:
    """A request at a worker; its tokens count as queued until `Router.first_token`."""

    worker: str
    queued_tokens: int


class Router:
    def __init__(
        self,
        views: CacheViews,
        clock: Callable[[], float] = time.monotonic,
        on_undescribed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_undescribed` is told why a prompt has no names."""
        self._on_undescribed = on_undescribed
        self._missed_count = 0
        self._told_at: float | None = None
        self._views = views
        self._clock = clock
        self._pages: dict[str, PagesGuess] = {}
        self._rates = FleetRates(clock)
        self._sent_at: dict[str, float] = {}
        self._queued: dict[str, int] = {}
        self._sessions: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def plan(self, request: pb.GenerateRequest, workers: Sequence[Worker]) -> Plan:
        """`workers`: those that could take it."""
        known = 0 < len(request.session_id) <= SESSION_CHARACTERS_MAX
        session = (request.key_id, request.session_id) if known else None
        size = request.ByteSize()
        plan = Plan(Prompt(size // BYTES_PER_TOKEN), session=session)
        if len(workers) < 2 or size < PROMPT_BYTES_MIN:
            return plan
        asked = min(workers, key=lambda worker: worker.running_count)
        try:
            async with asyncio.timeout(DESCRIBE_SECONDS_MAX):
                said = await asked.describe.DescribePrompt(_question(request))
        except TimeoutError:
            self._missed(asked, "LATE")
            return plan
        except grpc.RpcError as error:
            wire = read_error(error)
            # What is wrong with the request its worker says better.
            self._missed(asked, wire.reason if is_for_callers(wire) else wire.code.name)
            return plan
        packed = said.block_hashes
        if not _makes_sense(said, asked.model):
            self._missed(asked, "NONSENSE")
            return plan
        chain = tuple(packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES))
        return replace(plan, prompt=Prompt(said.prompt_tokens, said.block_tokens), chain=chain)

    def _missed(self, worker: Worker, reason: str) -> None:
        """A prompt's names did not come. Each is counted, and one a minute told."""
        self._on_undescribed(reason)
        self._missed_count += 1
        now = self._clock()
        if self._told_at is not None and now - self._told_at < LOG_SECONDS:
            return
        log.warning(
            "prompts are routed without their names: a worker does not give them",
            extra={
                "worker": worker.address,
                "reason": reason,
                "missed_count": self._missed_count,
            },
        )
        self._told_at, self._missed_count = now, 0

    def choose(self, plan: Plan, workers: Sequence[Worker], tried: Sequence[str]) -> Worker | None:
        """None: there is none left."""
        if len(workers) == 1:  # nothing to weigh
            return workers[0] if workers[0].address not in tried else None
        best = self._rates.best()
        candidates = [self._candidate(plan, worker, best) for worker in workers]
        chosen = choose(candidates, plan.prompt, tried)
        if chosen is None:
            return None
        return next(worker for worker in workers if worker.address == chosen.worker)

    def sent(self, plan: Plan, worker: Worker) -> Sent:
        """The request goes to `worker` now; end it with `ended`."""
        tokens = self._candidate(plan, worker, Rates()).miss_tokens(plan.prompt)
        self._sent_at[worker.address] = self._clock()
        self._queued[worker.address] = self._queued.get(worker.address, 0) + tokens
        pages = self._pages_of(worker)
        if pages is not None:
            pages.used(plan.chain)
        if plan.session is not None:
            self._sessions[plan.session] = worker.address
            self._sessions.move_to_end(plan.session)
            if len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        return Sent(worker.address, tokens)

    def first_token(self, sent: Sent) -> None:
        """It waits for nothing any more; also when it ended without one. Idempotent."""
        self._queued[sent.worker] -= sent.queued_tokens
        sent.queued_tokens = 0

    def learn(self, sent: Sent, usage: pb.GenerateUsage) -> None:
        self._rates.learn(sent.worker, usage)

    def lost(self, worker: str) -> None:
        """It went away, and its pages with it; what comes back may be another machine."""
        self._pages.pop(worker, None)
        self._rates.forget(worker)

    def check_integrity(self) -> None:
        assert all(tokens >= 0 for tokens in self._queued.values())
        assert len(self._sessions) <= SESSIONS_MAX

    def queued_tokens(self, worker: str) -> int:
        return self._queued.get(worker, 0)

    def _candidate(self, plan: Plan, worker: Worker, best: Rates) -> Candidate:
        address = worker.address
        found = find_prefix(plan.chain, self._pages_of(worker), self._views.of(address))
        return Candidate(
            worker=address,
            running_count=worker.running_count,
            queued_tokens=self.queued_tokens(address),
            page_blocks=found.page_blocks,
            host_blocks=found.host_blocks,
            ssd_blocks=found.ssd_blocks,
            sticky=plan.session is not None and self._sessions.get(plan.session) == address,
            sent_at=self._sent_at.get(address, 0.0),
            rates=self._rates.of(address, best),
        )

    def _pages_of(self, worker: Worker) -> PagesGuess | None:
        pages = self._pages.get(worker.address)
        if pages is None and worker.model is not None:
            pages = self._pages[worker.address] = PagesGuess(max(1, worker.model.page_count))
        return pages


def _makes_sense(
    said: describe_pb2.DescribePromptResponse, model: pb.GetModelResponse | None
) -> bool:
    context_tokens = 0 if model is None else model.context_tokens
    count, rest = divmod(len(said.block_hashes), HASH_BYTES)
    return (
        not rest
        and said.block_tokens > 0
        and 0 < said.prompt_tokens <= context_tokens
        and count * said.block_tokens <= said.prompt_tokens
    )


def _question(request: pb.GenerateRequest) -> describe_pb2.DescribePromptRequest:
    """Who asks, and the prompt: what names its blocks."""
    asked = describe_pb2.DescribePromptRequest(
        tenant_id=request.tenant_id,
        project_id=request.project_id,
        user_id=request.user_id,
        cache_scope=request.cache_scope,
        model=request.model,
        adapter=request.adapter,
        names_only=True,
    )
    copy_prompt(request, asked)
    return asked
