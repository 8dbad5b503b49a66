"""Random schedules: whatever is asked in whatever order, every request ends once and nothing leaks.

The engine is stepped by hand over a tiny real model, a pool of few pages, so that requests are put
back, and a cache service in a dict that forgets and fails at random, or none. Requests have
tenants, priorities and deadlines. Greedy tokens are compared with the plain model's.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from transformers import AutoModelForCausalLM, LlamaConfig

from kvtier.blocks import MissReason, Tier
from kvtier.keys import PUBLIC_SCOPE, BlockHash
from kvtier.scopes import ScopePath, chain_scope
from worker.cache_port import RestoreResult, StoreResult
from worker.engine import Engine, EngineSettings
from worker.errors import PromptTooLongError, QueueFullError
from worker.landing import PageBytes
from worker.model_loader import LoadedModel, load_model
from worker.requests import (
    CacheMode,
    EndReason,
    EngineEvent,
    EngineRequest,
    EngineUsage,
    RequestEnded,
    RequestId,
    SampleEnded,
    TokenEvent,
)

BLOCK_TOKENS = 4
PAGE_COUNTS = (6, 10, 16)
"""The fewest hold what one request may want and hardly more."""
# Few stems, so that prompts share prefixes of many lengths.
STEM = [5, 9, 17, 3, 30, 31, 8, 8, 21, 40, 41, 7, 6, 19, 50, 33, 12, 11, 10, 44]
PATHS = [None, *map(ScopePath.parse, ("a", "a/p", "a/p/u", "a/q", "b", "b/p"))]
DECISIVE = 1e-3
"""Where the best two logits are nearer than this, either is a right greedy token."""


class ForgetfulCache:
    """A cache service in a dict; `broken` makes every call raise."""

    def __init__(self) -> None:
        self.blocks: dict[BlockHash, bytes] = {}
        self.broken = False

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        timeout_seconds: float,
        hints: Any = None,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        self._maybe_break()
        count = 0
        for block, page in zip(chain, pages, strict=True):
            if block not in self.blocks:
                page[:] = 255  # a page past the restored count may hold garbage
                break
            page[:] = memoryview(self.blocks[block])
            count += 1
        reason = MissReason.NONE if count == len(chain) else MissReason.NEVER_STORED
        return RestoreResult((Tier.HOST,) * count, reason)

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        hints: Any = None,
    ) -> StoreResult:
        self._maybe_break()
        for block, page in zip(chain, pages, strict=True):
            # Equal hash, equal KV: whoever computed it, in whatever batch.
            known = self.blocks.setdefault(block, page.tobytes())
            torch.testing.assert_close(_floats(known), _floats(page.tobytes()))
        return StoreResult(len(chain), 0, 0)

    def connected(self) -> bool:
        return not self.broken

    def close(self) -> Any:
        return None

    def _maybe_break(self) -> None:
        if self.broken:
            raise OSError("down")


def _floats(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Any]:
    directory: Path = tmp_path_factory.mktemp("engine-schedules") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        eos_token_id=2,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(6.0)
    model.save_pretrained(directory)
    return load_model(directory, block_tokens=BLOCK_TOKENS), model.eval()


def check_runs(usage: EngineUsage) -> None:
    """Every block that counts is in one run; the last may be a part of one, which was computed."""
    blocks = dict.fromkeys((None, *Tier), 0)
    for run in usage.runs:
        blocks[run.tier] += run.block_count
    computed = blocks.pop(None)
    assert {t: n * BLOCK_TOKENS for t, n in blocks.items() if n} == usage.hit_tokens_by_tier
    assert computed == -(-usage.miss_tokens // BLOCK_TOKENS)


class Watched:
    """A submitted request, what it was told, and whether it was interfered with."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.events: list[EngineEvent] = []
        self.cancelled = False
        self.stopped: set[int] = set()

    @property
    def ended(self) -> bool:
        return any(isinstance(e, RequestEnded) for e in self.events)

    def tokens(self, index: int) -> list[int]:
        return [
            e.token_id for e in self.events if isinstance(e, TokenEvent) and e.sample_index == index
        ]


def make_machine(loaded: LoadedModel, plain: Any) -> type[RuleBasedStateMachine]:
    @lru_cache(maxsize=100_000)
    def acceptable(tokens: tuple[int, ...]) -> frozenset[int]:
        with torch.inference_mode():
            logits = plain(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        return frozenset(torch.nonzero(logits >= logits.max() - DECISIVE).flatten().tolist())

    class EngineSchedules(RuleBasedStateMachine):
        @initialize(page_count=st.sampled_from(PAGE_COUNTS), with_cache=st.booleans())
        def begin(self, page_count: int, with_cache: bool) -> None:
            self.cache = ForgetfulCache()
            self.page_count = page_count
            limits = EngineSettings(
                page_count=page_count,
                step_tokens=8,
                running_requests_max=4,
                waiting_requests_max=6,
                age_limit_seconds=3.0,
            )
            self.now = 0.0
            cache = self.cache if with_cache else None
            self.engine = Engine(loaded, limits, cache, lambda: self.now, load_threads=0)
            self.requests: list[Watched] = []

        @rule(
            length=st.integers(1, 20),
            suffix=st.lists(st.integers(3, 60), max_size=4),
            new=st.integers(1, 12),
            samples=st.integers(1, 3),
            mode=st.sampled_from(CacheMode),
            path=st.sampled_from(PATHS),
            ends=st.lists(st.integers(0, 4), min_size=3, max_size=3).map(sorted),
            tenant=st.sampled_from("xyz"),
            priority=st.integers(-2, 2),
            seconds=st.one_of(st.just(math.inf), st.floats(0.0, 20.0)),
        )
        def submit(
            self,
            length: int,
            suffix: list[int],
            new: int,
            samples: int,
            mode: CacheMode,
            path: ScopePath | None,
            ends: list[int],
            tenant: str,
            priority: int,
            seconds: float,
        ) -> None:
            watched = Watched(
                EngineRequest(
                    request_id=RequestId(f"r{len(self.requests)}"),
                    token_ids=(*STEM[:length], *suffix),
                    max_completion_tokens=new,
                    scope=chain_scope(bytes(32), path, ends[: path.level])
                    if path
                    else PUBLIC_SCOPE,
                    sample_count=samples,
                    cache_mode=mode,
                    stop_token_ids=frozenset({2}),
                    tenant=tenant,
                    priority=priority,
                    deadline=self.now + seconds,
                )
            )
            try:
                self.engine.submit(watched.request, watched.events.append)
            except (QueueFullError, PromptTooLongError):
                assert not watched.events
                return
            self.requests.append(watched)

        @rule(count=st.integers(1, 6))
        def step(self, count: int) -> None:
            for _ in range(count):
                self.now += 0.5
                self.engine.step()
                self.engine.check_integrity()

        @precondition(lambda self: self.requests)
        @rule(data=st.data())
        def cancel(self, data: st.DataObject) -> None:
            watched = data.draw(st.sampled_from(self.requests))
            watched.cancelled = True
            self.engine.cancel(watched.request.request_id)

        @precondition(lambda self: self.requests)
        @rule(data=st.data(), index=st.integers(0, 2))
        def stop_sample(self, data: st.DataObject, index: int) -> None:
            watched = data.draw(st.sampled_from(self.requests))
            watched.stopped.add(index)
            self.engine.stop_sample(watched.request.request_id, index)

        @rule(keep=st.integers(0, 5))
        def forget(self, keep: int) -> None:
            self.cache.blocks = dict(list(self.cache.blocks.items())[:keep])

        @rule()
        def break_or_mend(self) -> None:
            self.cache.broken = not self.cache.broken

        @invariant()
        def nothing_leaks_and_nobody_ends_twice(self) -> None:
            self.engine.check_integrity()
            assert self.engine.stats().preemptions_total <= 3 * len(self.requests)
            for watched in self.requests:
                ends = [e for e in watched.events if isinstance(e, RequestEnded)]
                assert len(ends) <= 1
                assert not ends or watched.events[-1] is ends[0]

        def teardown(self) -> None:
            for _ in range(3000):
                if all(watched.ended for watched in self.requests):
                    break
                self.now += 0.5
                self.engine.step()
                self.engine.check_integrity()
            for watched in self.requests:
                self._check(watched)
            self.engine.step()
            stats = self.engine.stats()
            assert stats.free_page_count + stats.cached_page_count == self.page_count
            self.engine.stop()

        def _check(self, watched: Watched) -> None:
            request, end = watched.request, watched.events[-1]
            assert isinstance(end, RequestEnded), "the request never ended"
            assert end.end_reason is not EndReason.ERROR, end.problem
            usage = end.usage
            assert usage.hit_tokens + usage.miss_tokens == usage.prompt_tokens
            assert usage.hit_tokens % BLOCK_TOKENS == 0
            check_runs(usage)
            assert usage.hit_tokens < len(request.token_ids)
            delivered = [watched.tokens(n) for n in range(request.sample_count)]
            assert usage.completion_tokens == sum(len(tokens) for tokens in delivered)
            whole = end.end_reason in (EndReason.STOP, EndReason.LENGTH)
            assert whole or watched.cancelled or request.deadline < math.inf
            if whole:
                assert usage.prompt_tokens == len(request.token_ids)
                finished = [e.sample_index for e in watched.events if isinstance(e, SampleEnded)]
                assert sorted(finished) == list(range(request.sample_count))
                for index, tokens in enumerate(delivered):
                    ended = len(tokens) == request.max_completion_tokens
                    assert (
                        ended
                        or index in watched.stopped
                        or 2 in acceptable((*request.token_ids, *tokens))
                    )
            if request.cache_mode is CacheMode.BYPASS:
                assert usage.hit_tokens == 0
            if request.cache_mode is not CacheMode.DEFAULT:
                assert usage.written_tokens == 0
            assert usage.written_tokens <= usage.miss_tokens + usage.completion_tokens
            # Each block is written once, whichever sample wrote it, however often it left.
            known = ((*request.token_ids, *tokens) for tokens in delivered)
            blocks = {k[:n] for k in known for n in range(BLOCK_TOKENS, len(k) + 1, BLOCK_TOKENS)}
            assert usage.written_tokens + usage.hit_tokens <= len(blocks) * BLOCK_TOKENS
            for tokens in delivered:
                for count, token in enumerate(tokens):
                    assert token in acceptable((*request.token_ids, *tokens[:count]))

    return EngineSchedules


def test_random_schedules_end_every_request_once_and_leak_no_page(
    tiny: tuple[LoadedModel, Any],
) -> None:
    torch.set_num_threads(1)
    machine = make_machine(*tiny)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
