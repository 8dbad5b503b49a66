"""The router: gathers what a request's worker is chosen by, and learns from what came of it.

    plan (names of the prompt's blocks, asked of a worker, bounded) -> choose -> sent -> first token

Invariants: with one worker to choose from nothing is asked and nothing waits; a name that does not
come within `DESCRIBE_SECONDS_MAX` is done without; what was counted as sent is taken back when its
first token came or it ended, whatever ended it. Event loop; owns what is believed of pages, of
sessions and of queues.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import grpc

from gateway.prefix_places import CacheViews, PagesGuess, find_prefix
from gateway.routing import Candidate, Prompt, Rates, choose
from gateway.worker_link import Worker
from gateway.worker_rates import FleetRates
from kvtier.keys import HASH_BYTES
from kvtier.prompts import copy_prompt
from kvtier.v1 import describe_pb2
from kvtier.v1 import inference_pb2 as pb

__all__ = ["Plan", "Router", "Sent"]

DESCRIBE_SECONDS_MAX = 0.1
"""A router that waits longer costs more than it saves."""

PROMPT_BYTES_MIN = 1024
"""About four blocks: what is shorter is computed sooner than it is looked for."""

BYTES_PER_TOKEN = 4
"""Where nobody counted."""

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
    def __init__(self, views: CacheViews, clock: Callable[[], float] = time.monotonic) -> None:
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
        except (TimeoutError, grpc.RpcError):
            return plan  # what is wrong with the request its worker says better
        packed = said.block_hashes
        chain = tuple(packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES))
        return replace(plan, prompt=Prompt(said.prompt_tokens, said.block_tokens), chain=chain)

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
