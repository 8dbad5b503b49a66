"""A thousand random requests over a pool that holds hardly one: no page leaks, nobody starves,
nothing locks up.

Requests come from several threads and are cancelled from others; blocks are loaded and stored by
the engine's own threads, from a cache service that forgets, fails and is late. The engine is
stepped by hand: its bounds are steps that did something, never seconds. Only who submits when
is the threads' own choice; what each request is, and after which of its tokens it is cancelled,
comes from the seed.
"""

import math
import queue
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from kvtier.blocks import MissReason, Tier
from kvtier.keys import PUBLIC_SCOPE, BlockHash
from tests.page_kinds import contents, device_pages, in_turn
from worker.admission import pages_needed
from worker.cache_port import RestoreResult, StoreResult
from worker.engine import Engine, EngineSettings
from worker.landing import Landing, Source
from worker.model_loader import LoadedModel, load_model
from worker.preemption import PREEMPTIONS_MAX
from worker.requests import (
    CacheMode,
    EndReason,
    EngineEvent,
    EngineRequest,
    RequestEnded,
    RequestId,
    TokenEvent,
)

SEED = 20261128
REQUEST_COUNT = 1000
BLOCK_TOKENS = 4
PAGE_COUNT = 12
RUNNING_MAX = 6
PRESENT_MAX = 24
"""Requests in the engine at a time."""
SECONDS_PER_STEP = 0.05
STEM = [5, 9, 17, 3, 30, 31, 8, 8, 21, 40, 41, 7, 6, 19, 50, 33, 12, 11, 10, 44, 13, 14, 15, 16]
DECISIVE = 1e-3
"""Where the best two logits are nearer than this, either is a right greedy token."""


class ShakyCache:
    """A cache service in a dict that forgets, fails and is late. Any thread."""

    def __init__(self) -> None:
        self._blocks: dict[BlockHash, bytes] = {}
        self._lock = threading.Lock()
        self._random = random.Random(SEED)
        self.failure_count = 0

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Landing,
        timeout_seconds: float,
        hints: Any = None,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        self._misbehave()
        count = 0
        for index, block in enumerate(chain):
            with self._lock:
                content = self._blocks.get(block)
                tells = self._random.random() < 0.5
            (room, *_) = pages.room(index, 1)
            room[:] = 255 if content is None else np.frombuffer(content, np.uint8)
            pages.push(index, [room])
            pages.settle(index, 1, in_turn)
            if content is None:
                break
            count += 1
            if tells:
                pages.landed([Tier.HOST] * (count - len(pages.tiers)))
        reason = MissReason.NONE if count == len(chain) else MissReason.EVICTED
        return RestoreResult((Tier.HOST,) * count, reason)

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Source,
        hints: Any = None,
    ) -> StoreResult:
        self._misbehave()
        for block, content in zip(chain, contents(pages), strict=True):
            with self._lock:
                known = self._blocks.setdefault(block, content)
            torch.testing.assert_close(_floats(known), _floats(content))
        return StoreResult(len(chain), 0, 0)

    def connected(self) -> bool:
        return True

    def close(self) -> Any:
        return None

    def _misbehave(self) -> None:
        with self._lock:
            mood = self._random.random()
            if mood < 0.05:
                self._blocks = dict(list(self._blocks.items())[::2])
            self.failure_count += mood < 0.2
        if mood < 0.2:
            raise OSError("down")
        if mood < 0.25:
            threading.Event().wait(0.005)


def _floats(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.float32)


class Story:
    """A request, when it is cancelled, and what became of it. Written on the engine's thread."""

    def __init__(self, crowd: "Crowd", request: EngineRequest, cancel_after: int | None) -> None:
        self._crowd = crowd
        self.request = request
        self.cancel_after = cancel_after
        self.events: list[EngineEvent] = []
        self.began = 0
        self.ended = 0

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        if isinstance(event, RequestEnded):
            self.ended = self._crowd.steps
            self._crowd.ended_count += 1
            self._crowd.room.release()
        elif self.cancel_after == sum(isinstance(e, TokenEvent) for e in self.events):
            self._crowd.cancels.put(self.request.request_id)

    def tokens(self, index: int) -> list[int]:
        return [
            e.token_id for e in self.events if isinstance(e, TokenEvent) and e.sample_index == index
        ]

    @property
    def steps_max(self) -> int:
        """It alone, computed from the start as often as may be."""
        request = self.request
        tokens = request.max_completion_tokens + 1
        pieces = -(-(len(request.token_ids) + tokens) // BLOCK_TOKENS)
        return (PREEMPTIONS_MAX + 1) * request.sample_count * (pieces + tokens)


class Crowd:
    """Who submits and who cancels."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.steps = 0
        """That did something; the engine's clock."""
        self.ended_count = 0
        self.room = threading.Semaphore(PRESENT_MAX)
        self.cancels: queue.Queue[RequestId | None] = queue.Queue()
        chance = random.Random(SEED)
        self.stories = [self._story(chance, number) for number in range(REQUEST_COUNT)]
        self._threads = [
            *(threading.Thread(target=self._submit, args=(start,)) for start in range(3)),
            *(threading.Thread(target=self._cancel) for _ in range(2)),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        for _ in range(2):
            self.cancels.put(None)
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _story(self, chance: random.Random, number: int) -> Story:
        while True:
            suffix = [chance.randrange(3, 60) for _ in range(chance.randrange(4))]
            prompt = (*STEM[: chance.randint(1, len(STEM))], *suffix)
            new, samples = chance.randint(1, 20), chance.choice([1, 1, 1, 1, 2, 3])
            if pages_needed(len(prompt), new, samples, BLOCK_TOKENS) <= PAGE_COUNT:
                break
        modes = [CacheMode.DEFAULT] * 6 + [CacheMode.READ_ONLY, CacheMode.BYPASS]
        request = EngineRequest(
            RequestId(f"r{number}"),
            prompt,
            new,
            PUBLIC_SCOPE,
            sample_count=samples,
            stop_token_ids=frozenset({2}),
            cache_mode=chance.choice(modes),
            tenant=chance.choice("xxxxyz"),
            priority=chance.choice([-2, -1, 0, 0, 0, 1, 2]),
            deadline=chance.choice([math.inf] * 9 + [chance.uniform(0.0, 400.0)]),
        )
        return Story(self, request, chance.choice([None, None, None, chance.randint(1, 8)]))

    def _submit(self, start: int) -> None:
        for story in self.stories[start::3]:
            assert self.room.acquire(timeout=120)
            story.began = self.steps
            self.engine.submit(story.request, story)
            if story.cancel_after == 1:
                self.engine.cancel(story.request.request_id)

    def _cancel(self) -> None:
        while (request_id := self.cancels.get(timeout=120)) is not None:
            self.engine.cancel(request_id)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Any]:
    directory: Path = tmp_path_factory.mktemp("thousand-requests") / "tiny"
    torch.manual_seed(0)
    torch.set_num_threads(1)
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


@pytest.fixture(params=["in place", "on a device"])
def pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of engines made from now on."""
    if request.param == "in place":
        yield
        return
    with device_pages() as (kind, _):
        monkeypatch.setattr("worker.engine.KvPages", kind)
        yield


def test_a_thousand_requests_end_and_leave_every_page(
    tiny: tuple[LoadedModel, Any], pages: None
) -> None:
    loaded, plain = tiny
    cache = ShakyCache()
    limits = EngineSettings(
        page_count=PAGE_COUNT,
        step_tokens=8,
        running_requests_max=RUNNING_MAX,
        waiting_requests_max=2 * PRESENT_MAX,
        age_limit_seconds=2.0,
    )
    crowd: Crowd
    engine = Engine(loaded, limits, cache, lambda: crowd.steps * SECONDS_PER_STEP, load_threads=2)
    crowd = Crowd(engine)
    # Those that are in the engine together could all have to wait for each other.
    longest = max(story.steps_max for story in crowd.stories)
    steps_max = sum(story.steps_max for story in crowd.stories)
    crowd.start()
    while crowd.ended_count < REQUEST_COUNT:
        progressed = engine.step()
        engine.check_integrity()
        crowd.steps += progressed
        assert crowd.steps <= steps_max
        if not progressed:
            engine.wait(0.05)
    crowd.stop()
    _check_end(engine, cache)
    for story in crowd.stories:
        _check(story, plain)
        assert story.ended - story.began <= PRESENT_MAX * longest


def _check_end(engine: Engine, cache: ShakyCache) -> None:
    for _ in range(2000):  # stores that are under way
        stats = engine.stats()
        if stats.free_page_count + stats.cached_page_count == PAGE_COUNT:
            break
        engine.wait(0.05)
        engine.step()
    engine.check_integrity()
    stats = engine.stats()
    assert stats.free_page_count + stats.cached_page_count == PAGE_COUNT
    assert (stats.waiting_count, stats.running_count, stats.loading_count) == (0, 0, 0)
    assert stats.preemptions_total > REQUEST_COUNT // 50, "the pool was hardly ever short"
    assert stats.preemptions_total <= PREEMPTIONS_MAX * REQUEST_COUNT
    assert stats.restored_blocks_total > 0
    assert cache.failure_count > 0
    engine.stop()


def _check(story: Story, plain: Any) -> None:
    request, ends = story.request, [e for e in story.events if isinstance(e, RequestEnded)]
    (end,) = ends
    assert story.events[-1] is end
    allowed = {EndReason.STOP, EndReason.LENGTH}
    if story.cancel_after is not None:
        allowed.add(EndReason.CANCELLED)
    if request.deadline < math.inf:
        allowed.add(EndReason.DEADLINE)
    assert end.end_reason in allowed, end.problem
    usage = end.usage
    assert usage.hit_tokens + usage.miss_tokens == usage.prompt_tokens <= len(request.token_ids)
    assert usage.hit_tokens == 0 or request.cache_mode is not CacheMode.BYPASS
    if end.end_reason in (EndReason.STOP, EndReason.LENGTH):
        assert usage.prompt_tokens == len(request.token_ids)
    delivered = [story.tokens(index) for index in range(request.sample_count)]
    assert usage.completion_tokens == sum(map(len, delivered))
    for tokens in delivered:
        if tokens:
            _check_greedy(plain, request.token_ids, tokens)


def _check_greedy(plain: Any, prompt: tuple[int, ...], tokens: list[int]) -> None:
    """Each is the plain model's, after the prompt and those before it."""
    with torch.inference_mode():
        logits = plain(torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits[0]
    logits = logits[len(prompt) - 1 :]
    drawn = logits[torch.arange(len(tokens)), torch.tensor(tokens)]
    assert bool((drawn >= logits.amax(dim=1) - DECISIVE).all())
