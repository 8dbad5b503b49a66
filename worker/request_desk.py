"""Takes a request in: checks it, makes its tokens, names it, hands it to the engine.

Invariant: everything that is wrong with a request, and that billing does not let it in, is said
before the engine sees it; every admitted request is followed until its usage event is durable, and
`settle` waits for all of them. Event
loop; long text is tokenized on one thread of its own.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kvtier.keys import PUBLIC_SCOPE, ChainScope, Namespace
from kvtier.scopes import ScopePath, scope_runs
from kvtier.serving import ShuttingDownError
from worker.budget_client import BudgetNeed
from worker.budget_gate import BudgetGate
from worker.cache_control import ttl_seconds
from worker.chat import PromptEncoder
from worker.errors import QueueFullError
from worker.generation import CANCEL_SECONDS_MAX, EnginePort, Generation, GenerationPlan
from worker.prompt_proof import ProofTerms
from worker.request_checks import (
    Ask,
    ChatPrompt,
    ModelLimits,
    TokenPrompt,
    adapter_of,
    check_ask,
    completion_limit,
    encode,
)
from worker.requests import EngineRequest, EngineUsage, RequestId
from worker.shared_prefixes import SharedPrefixes
from worker.tenants import Tenants
from worker.usage_event import AdmittedRequest, UsageEvent
from worker.usage_journal import UsageJournal

__all__ = ["Description", "DeskLimits", "RequestDesk", "ScopeRuns", "new_request_id"]


@dataclass(frozen=True, slots=True)
class DeskLimits:
    node: str
    block_tokens: int
    stop_token_ids: frozenset[int]
    deadline_seconds: float
    """Longest that a request may take, from its arrival."""
    encoding_max: int
    """Prompts that wait for the tokenizer; one more is refused."""
    ttl_classes: Mapping[str, int] = field(default_factory=dict)
    """Seconds by name."""
    digests_max: int = 0
    """Of a proof, beside those of its runs."""


ScopeRuns = tuple[tuple[str, int | None], ...]
"""As `scope_runs` gives them."""


@dataclass(frozen=True, slots=True)
class Description:
    """A prompt as the engine would get it."""

    model: str
    """With its adapter, as usage events call it."""
    adapter: str
    token_ids: tuple[int, ...]
    scope: ChainScope
    others: tuple[tuple[ChainScope, ScopeRuns], ...]
    """The other scopes that its tokens can be in for this caller, widest first: public, and each
    rung that his names lie on and his grant allows, with declared prefixes and without any."""


class RequestDesk:
    """Opens generations and knows the ones that run."""

    def __init__(
        self,
        *,
        limits: DeskLimits,
        model: ModelLimits,
        encoder: PromptEncoder,
        tenants: Tenants,
        prefixes: SharedPrefixes,
        engine: EnginePort,
        journal: UsageJournal,
        on_end: Callable[[UsageEvent, EngineUsage], None],
        namespace_of: Callable[[str], Namespace],
        budget: BudgetGate | None = None,
    ) -> None:
        """`namespace_of` gives that of an adapter, or of none; without `budget` nobody is asked
        whether a request may be served.
        """
        self._limits = limits
        self._model = model
        self._encoder = encoder
        self._tenants = tenants
        self._prefixes = prefixes
        self._engine = engine
        self._journal = journal
        self._on_end = on_end
        self._namespace_of = namespace_of
        self._budget = budget
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self._encoding_count = 0
        self._running: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def running_count(self) -> int:
        """Admitted requests whose event is not durable yet."""
        return len(self._running)

    async def open(self, ask: Ask, time_remaining: float | None) -> Generation:
        """Admits a request; `time_remaining` are the client's own seconds, None for no limit.

        Raises the errors that `Generate` documents as coming before `started`.
        """
        arrival, start_time_ns = time.monotonic(), time.time_ns()
        ttl = ttl_seconds(ask.cache.ttl_class, self._limits.ttl_classes)
        path, token_ids, limit = await self._taken_in(ask)
        adapter = adapter_of(ask, self._model)
        priority = self._tenants.priority(ask.caller, ask.priority)
        seconds = self._limits.deadline_seconds
        if time_remaining is not None:
            seconds = min(seconds, max(0.0, time_remaining))
        deadline = arrival + seconds
        request_id = new_request_id(start_time_ns)
        admitted = AdmittedRequest(
            request_id=request_id,
            tenant_id=ask.caller.tenant_id,
            model=self._model.full_name(adapter),
            node=self._limits.node,
            client_request_id=ask.client_request_id,
            start_time_ns=start_time_ns,
            project_id=ask.caller.project_id,
            user_id=ask.caller.user_id,
            key_id=ask.attribution.key_id,
            session_id=ask.attribution.session_id,
            service_class=ask.attribution.service_class,
        )
        ends = self._scope_ends(ask, path, token_ids)
        request = EngineRequest(
            request_id=RequestId(request_id),
            token_ids=token_ids,
            max_completion_tokens=limit,
            scope=self._tenants.chain_scope(path, ends),
            owners=scope_runs(path, ends),
            sample_count=ask.sample_count or 1,
            sampling=ask.sampling,
            stop_token_ids=self._stop_tokens(ask),
            cache_mode=ask.cache.mode,
            one_off=ask.cache.one_off,
            ttl_seconds=ttl,
            cache_timeout_seconds=ask.cache.timeout_seconds,
            tenant=ask.caller.tenant_id,
            priority=priority,
            adapter=adapter,
            deadline=deadline,
        )
        plan = GenerationPlan(
            admitted,
            request,
            ask.stop,
            arrival,
            deadline,
            ask.cache.ttl_class,
            self._proof_terms(ask, request_id, adapter),
        )
        if self._budget is None:
            return self._start(plan)
        await self._budget.admit(_need(plan), deadline - time.monotonic())
        try:
            return self._start(plan)
        except BaseException:
            self._budget.not_served(request_id)
            raise

    async def describe(self, ask: Ask) -> Description:
        """The tokens and scopes that `open` would give this prompt; nothing is admitted.

        Raises the errors that `DescribePrompt` documents.
        """
        path, token_ids, _ = await self._taken_in(ask)
        ends = self._scope_ends(ask, path, token_ids)
        others: dict[ChainScope, ScopeRuns] = {PUBLIC_SCOPE: (("", None),)}
        for rung in self._tenants.rungs(ask.caller):
            shared = self._block_ends(self._prefixes.shared_tokens(rung, token_ids))
            for at in (shared, [0] * rung.level):
                others[self._tenants.chain_scope(rung, at)] = scope_runs(rung, at)
        own = self._tenants.chain_scope(path, ends)
        others.pop(own, None)
        adapter = adapter_of(ask, self._model)
        model = self._model.full_name(adapter)
        return Description(model, adapter, token_ids, own, tuple(others.items()))

    def drain(self) -> None:
        """Refuses new requests from now on."""
        self._draining = True

    async def settle(self, timeout_seconds: float) -> bool:
        """Waits until every admitted request has its event; True when all have."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_seconds)
        return not self._running

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self, plan: GenerationPlan) -> Generation:
        if self._draining:
            raise ShuttingDownError("the worker is draining; ask another, or this one later")
        generation = Generation(
            plan, self._engine, self._journal, self._encoder.decode, self._on_end
        )
        task = generation.start()
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if self._budget is not None:
            task.add_done_callback(lambda _: self._free(generation))
        return generation

    def _free(self, generation: Generation) -> None:
        """An ended request whose begin the journal did not take will never have an event."""
        if self._budget is not None and not generation.begun:
            self._budget.not_served(generation.request_id)

    async def _taken_in(self, ask: Ask) -> tuple[ScopePath, tuple[int, ...], int]:
        """Scope, tokens and completion limit of a request that makes sense."""
        if self._draining:
            raise ShuttingDownError("the worker is draining; ask another, or this one later")
        path = self._tenants.scope(ask.caller)
        check_ask(ask, self._model, self._encoder)
        token_ids = await self._encode(ask)
        return path, token_ids, completion_limit(ask, len(token_ids), self._model)

    async def _encode(self, ask: Ask) -> tuple[int, ...]:
        assert ask.prompt is not None
        if isinstance(ask.prompt, TokenPrompt):
            return ask.prompt.token_ids
        if self._encoding_count >= self._limits.encoding_max:
            raise QueueFullError("too many prompts wait for the tokenizer; send again later")
        self._encoding_count += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._executor, encode, ask.prompt, self._encoder, self._model
            )
        finally:
            self._encoding_count -= 1

    def _scope_ends(self, ask: Ask, path: ScopePath, token_ids: tuple[int, ...]) -> list[int]:
        """Where each wider scope's blocks end: they are those that a shared prefix fills whole."""
        ends = [0] * path.level
        prompt = ask.prompt
        if isinstance(prompt, ChatPrompt) and prompt.messages[0].role == "system":
            ends = self._block_ends(self._prefixes.shared_tokens(path, token_ids))
        return ends

    def _block_ends(self, tokens: list[int]) -> list[int]:
        return [end // self._limits.block_tokens for end in tokens]

    def _proof_terms(self, ask: Ask, request_id: str, adapter: str) -> ProofTerms:
        namespace = self._namespace_of(adapter)
        return self._tenants.proof_terms(
            ask.caller, request_id, namespace.id, namespace.block_tokens, self._limits.digests_max
        )

    def _stop_tokens(self, ask: Ask) -> frozenset[int]:
        own = frozenset() if ask.ignore_end_of_sequence else self._limits.stop_token_ids
        return own.union(ask.stop_token_ids)


def _need(plan: GenerationPlan) -> BudgetNeed:
    """What billing must know. An end that is late, since the engine is, is not later than this."""
    request = plan.request
    left = max(0.0, plan.deadline - time.monotonic()) + CANCEL_SECONDS_MAX + 1.0
    return BudgetNeed(
        request=plan.admitted,
        prompt_tokens=len(request.token_ids),
        completion_tokens=request.max_completion_tokens * request.sample_count,
        ttl_class=plan.ttl_class,
        deadline_ns=time.time_ns() + round(left * 1e9),
    )


def new_request_id(now_ns: int) -> str:
    """Unique for ever, and in the order of time as text."""
    return f"{now_ns:016x}-{secrets.token_hex(8)}"
