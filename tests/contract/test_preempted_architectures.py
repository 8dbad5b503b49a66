"""Requests that are put back, and lose blocks meanwhile, over architectures: no token changes.

A pool that cannot hold them holds requests with samples that part from each other, prefixes that
they share, prompts in pieces beside decodes, and who keeps nothing. What is put back is evicted,
forgotten by the cache service in part, restored or computed again. One leaves in the middle. Every
token is the one that the unmodified model gives, and usage tells of each block once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from kvtier.keys import PUBLIC_SCOPE
from tests.contract.test_architectures import SUPPORTED
from tests.tiny_models import BytesCache, plain_logits, save_tiny
from worker.engine import Engine, EngineSettings
from worker.model_loader import load_model
from worker.requests import CacheMode, EndReason, EngineRequest, RequestEnded, RequestId, TokenEvent
from worker.sampler import draw_token, read_rows, sample_generator
from worker.sampling import Sampling

BLOCK_TOKENS = 8
PAGES = 24
KINDS = (
    "llama",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "deepseek_v3",
    "mixtral",
    "gpt2",
    "phi3",
)
NARROW = {"sliding_window": 5}
"""A window smaller than a page."""
CASES = {kind: SUPPORTED[kind] for kind in KINDS} | {
    f"{kind} narrow": SUPPORTED[kind] | NARROW for kind in ("gemma3_text", "gpt_oss")
}
STEPS_MAX = 2000
PARTING = Sampling(temperature=1.5, seed=5)


def drawn(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    numbers: list[int] = torch.randint(3, 500, (count,), generator=generator).tolist()
    return numbers


SHARED = drawn(34, 1)


def asked(name: str, tokens: Sequence[int], new: int, **more: Any) -> EngineRequest:
    return EngineRequest(RequestId(name), tuple(tokens), new, PUBLIC_SCOPE, **more)


FIRST = [
    asked("parting", SHARED + drawn(3, 2), 40, sample_count=3, sampling=PARTING),
    asked("beside", SHARED + drawn(12, 3), 40),
    asked("alike", drawn(25, 4), 34, sample_count=2),
    asked("keeps-nothing", SHARED[:17] + drawn(9, 5), 24, cache_mode=CacheMode.READ_ONLY),
]
LEAVES = asked("leaves", SHARED + drawn(3, 2), 40, sample_count=2, sampling=PARTING)
LATE = [
    asked("late", drawn(45, 6), 12, priority=1),
    asked("again", SHARED + drawn(12, 3), 16),
]


@dataclass
class Told:
    """A request and what it was told."""

    request: EngineRequest
    events: list[Any] = field(default_factory=list)

    def tokens(self, index: int) -> list[int]:
        mine = (e for e in self.events if isinstance(e, TokenEvent) and e.sample_index == index)
        return [e.token_id for e in mine]

    @property
    def end(self) -> RequestEnded:
        end = self.events[-1]
        assert isinstance(end, RequestEnded), end
        return end

    def check(self, plain: Any) -> None:
        """Every token is the plain model's; usage counts no block twice."""
        request, usage = self.request, self.end.usage
        blocks = set()
        for index in range(request.sample_count):
            tokens = self.tokens(index)
            assert tokens == said(plain, request, index, len(tokens))
            known = (*request.token_ids, *tokens)
            blocks |= {known[:end] for end in range(BLOCK_TOKENS, len(known) + 1, BLOCK_TOKENS)}
        assert usage.completion_tokens == sum(isinstance(e, TokenEvent) for e in self.events)
        assert usage.hit_tokens + usage.miss_tokens == usage.prompt_tokens
        assert usage.written_tokens + usage.hit_tokens <= len(blocks) * BLOCK_TOKENS
        if request.cache_mode is not CacheMode.DEFAULT:
            assert usage.written_tokens == 0


def said(plain: Any, request: EngineRequest, index: int, count: int) -> list[int]:
    """What the plain model says, drawn as the sample draws, without any cache."""
    generator, tokens = sample_generator(request.sampling, index), list[int]()
    for _ in range(count):
        (row,) = read_rows(plain_logits(plain, [*request.token_ids, *tokens])[-1:])
        tokens.append(draw_token(row, request.sampling, generator, tokens).token_id)
    return tokens


class Schedule:
    """All requests over one engine, stepped by hand."""

    def __init__(self, engine: Engine, cache: BytesCache) -> None:
        self._engine = engine
        self._cache = cache
        self.told: list[Told] = []

    def submit(self, *requests: EngineRequest) -> None:
        for request in requests:
            self.told.append(Told(request))
            self._engine.submit(request, self.told[-1].events.append)

    def step(self) -> bool:
        progressed = self._engine.step()
        self._engine.check_integrity()
        return progressed

    def step_until_preempted(self, times: int) -> None:
        for _ in range(STEPS_MAX):
            if self._engine.stats().preemptions_total >= times:
                return
            self.step()
        raise AssertionError("nobody was put back")

    def run(self) -> None:
        self.submit(LEAVES, *FIRST)
        while len(self.told[0].tokens(1)) < 4:
            self.step()
        self.step_until_preempted(1)
        self._engine.cancel(LEAVES.request_id)
        self.submit(*LATE)
        self.step_until_preempted(2)
        self._cache.blocks = dict(list(self._cache.blocks.items())[: len(self._cache.blocks) // 2])
        for _ in range(STEPS_MAX):
            if not self.step():
                return
        raise AssertionError("the engine does not come to an end")


@pytest.mark.parametrize("case", CASES)
def test_who_is_put_back_says_what_the_plain_model_says(case: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    plain = save_tiny(tmp_path / "model", case.split()[0], CASES[case])
    loaded = load_model(tmp_path / "model", block_tokens=BLOCK_TOKENS)
    settings = EngineSettings(page_count=PAGES, step_tokens=16, load_timeout_seconds=60.0)
    cache = BytesCache()
    engine = Engine(loaded, settings, cache, load_threads=0)
    schedule = Schedule(engine, cache)
    try:
        schedule.run()
    finally:
        engine.stop()
    ends = [told.end.end_reason for told in schedule.told]
    assert ends == [EndReason.CANCELLED, *[EndReason.LENGTH] * (len(FIRST) + len(LATE))]
    stats = engine.stats()
    assert stats.preemptions_total >= 2
    assert stats.evicted_pages_total > 0
    assert stats.restored_blocks_total > 0
    assert stats.recomputed_tokens_total > 0
    for told in schedule.told:
        told.check(plain)
