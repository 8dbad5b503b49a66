"""A tiny real model, and what a test needs to watch an engine."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from kvtier.blocks import MissReason, Tier
from kvtier.keys import PUBLIC_SCOPE, BlockHash
from tests.page_kinds import ThreadedCopies, contents, device_pages, land
from worker.cache_port import RestoreResult, StoreResult
from worker.engine import Engine, EngineSettings
from worker.landing import Landing, Source
from worker.model_loader import LoadedModel, load_model
from worker.requests import (
    EngineEvent,
    EngineRequest,
    RequestEnded,
    RequestId,
    SampleEnded,
    TokenEvent,
)

BLOCK_TOKENS = 8


@dataclass
class Watcher:
    """A sink that keeps what it was told."""

    events: list[EngineEvent] = field(default_factory=list)

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)

    def tokens(self, sample_index: int = 0) -> list[int]:
        return [
            e.token_id
            for e in self.events
            if isinstance(e, TokenEvent) and e.sample_index == sample_index
        ]

    @property
    def finishes(self) -> dict[int, str]:
        return {
            e.sample_index: e.finish_reason.value for e in self.events if isinstance(e, SampleEnded)
        }

    @property
    def ends(self) -> list[RequestEnded]:
        return [e for e in self.events if isinstance(e, RequestEnded)]

    @property
    def end(self) -> RequestEnded:
        (end,) = self.ends
        assert self.events[-1] is end
        return end


@dataclass
class MemoryCache:
    """A cache service in a dict: a real implementation of the port."""

    blocks: dict[BlockHash, bytes] = field(default_factory=dict)
    tier: Tier = Tier.HOST
    stored_chains: list[list[BlockHash]] = field(default_factory=list)

    def restore(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Landing,
        timeout_seconds: float,
        hints: Any = None,
        recompute_seconds: float | None = None,
    ) -> RestoreResult:
        known = list(takewhile(self.blocks.__contains__, chain))
        land(pages, [self.blocks[block] for block in known])
        reason = MissReason.NONE if len(known) == len(chain) else MissReason.NEVER_STORED
        return RestoreResult((self.tier,) * len(known), reason)

    def store(
        self,
        request_id: str,
        chain: Sequence[BlockHash],
        pages: Source,
        hints: Any = None,
    ) -> StoreResult:
        self.stored_chains.append(list(chain))
        new = 0
        for block, content in zip(chain, contents(pages), strict=True):
            new += block not in self.blocks
            self.blocks.setdefault(block, content)
        return StoreResult(new, len(chain) - new, 0)

    def connected(self) -> bool:
        return True

    def close(self) -> Any:
        return None


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """Makes engines and requests over one tiny model, and steps them by hand."""

    loaded: LoadedModel
    engines: list[Engine] = field(default_factory=list)

    def engine(self, cache: Any = None, **settings: Any) -> Engine:
        clock: Callable[[], float] = settings.pop("clock", Clock())
        load_threads = settings.pop("load_threads", 0)
        settings = {"page_count": 64, "step_tokens": 16, **settings}
        made = Engine(self.loaded, EngineSettings(**settings), cache, clock, load_threads)
        self.engines.append(made)
        return made

    def request(self, name: str, tokens: Sequence[int], new: int = 4, **more: Any) -> EngineRequest:
        return EngineRequest(
            RequestId(name), tuple(tokens), new, more.pop("scope", PUBLIC_SCOPE), **more
        )

    def run(self, engine: Engine, *requests: EngineRequest) -> list[Watcher]:
        """Submits `requests` together and steps until all have ended."""
        watchers = [Watcher() for _ in requests]
        for request, watcher in zip(requests, watchers, strict=True):
            engine.submit(request, watcher)
        self.finish(engine)
        return watchers

    def finish(self, engine: Engine, steps_max: int = 2000) -> None:
        for _ in range(steps_max):
            progressed = engine.step()
            engine.check_integrity()
            stats = engine.stats()
            if not progressed and stats.waiting_count + stats.running_count == 0:
                return
        raise AssertionError("the engine does not come to an end")

    def run_beside_a_held_store(
        self, engine: Engine, prompt: Sequence[int], entered: threading.Event
    ) -> None:
        """A request that needs all of six pages runs to its end, a token each step, although three
        of them are with a store that does not return; `entered`: it was called."""
        unasked = {"cache_timeout_seconds": 0.0}
        first, second = Watcher(), Watcher()
        engine.submit(self.request("a", prompt[:24], new=1, **unasked), first)
        while not first.ends:
            engine.step()
        assert entered.wait(60)
        engine.submit(self.request("b", prompt[::-1][:8], new=41, **unasked), second)
        steps = 0
        while not second.ends:
            assert engine.step()
            engine.check_integrity()
            steps += 1
        assert steps == 41
        assert second.tokens() == self.plain_greedy(prompt[::-1][:8], 41)
        assert engine.stats().preemptions_total == 0

    def plain_greedy(self, tokens: Sequence[int], new: int) -> list[int]:
        """What the unmodified model generates, without any cache."""
        reference = unmodified(self.loaded_from)
        out = list(tokens)
        with torch.inference_mode():
            for _ in range(new):
                logits = reference(torch.tensor([out]), use_cache=False).logits[0, -1]
                out.append(int(logits.argmax()))
        return out[len(tokens) :]

    @property
    def loaded_from(self) -> Path:
        return Path(self.loaded.model.config._name_or_path)


@cache
def unmodified(checkpoint: Path) -> Any:
    """To be asked, not changed."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(6.0)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_loaded(tiny_checkpoint: Path) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(tiny_checkpoint, block_tokens=BLOCK_TOKENS)


@pytest.fixture
def bench(tiny_loaded: LoadedModel) -> Any:
    made = Bench(tiny_loaded)
    yield made
    for engine in made.engines:
        engine.stop()


@pytest.fixture
def memory_cache() -> MemoryCache:
    return MemoryCache()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watcher() -> Callable[[], Watcher]:
    return Watcher


@pytest.fixture(params=["in place", "on a device"])
def pages(request: pytest.FixtureRequest) -> str:
    """Where engines have them from now on."""
    if request.param == "on a device":
        request.getfixturevalue("pages_on_a_device")
    return str(request.param)


@pytest.fixture
def pages_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ThreadedCopies]]:
    """Engines have their pages on a device from now on; what copies there, for each of them."""
    with device_pages() as (kind, made):
        monkeypatch.setattr("worker.engine.KvPages", kind)
        yield made
