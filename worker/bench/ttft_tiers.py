"""A round of the TTFT benchmark: one new context, plain, cold, and warm from every tier.

    service starts empty
      plain transformers, cold (pages empty)   in turn first, by the round
      GPU      the same engine, the context's pages resident
      host     another engine, its pages empty
    service stops, the SSD having all, and starts again
      SSD      another engine, its pages empty

Each warm prompt has the context's tokens but for new ones at its end. Invariant: what is told as a
tier's time was a hit of that tier, whole; anything else is an error. Main thread.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from kvtier.bench.errors import BenchError
from kvtier.bench.service import cache_service_process
from kvtier.blocks import Tier
from kvtier.cli.processes import ServiceProcess
from worker.attention.interface import IMPLEMENTATION
from worker.attention.openmp import end_team
from worker.bench.ttft_asking import Answer, ask, fresh_engine
from worker.bench.ttft_settings import TtftSettings
from worker.bench.waiting import (
    WAIT_SECONDS_MAX,
    until_connected,
    until_registered,
    until_stored,
    until_written,
)
from worker.cache_client import CacheClient
from worker.device_copies import copy_lanes, registered_for
from worker.engine import Engine, EngineSettings
from worker.model_loader import LoadedModel

__all__ = ["Round", "TierBench", "ask_hit", "random_tokens"]

_SEGMENT_BYTES = 64 << 20
_SEGMENTS_MORE = 3
"""Of the SSD, beside those that a round fills: one is open, one is being cleared."""
_ARENA_BYTES_MIN = 64 << 20
_FIRST_TOKEN_ID = 3
"""Smaller ones may be special."""


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds to the first token. `new_tokens`: what a warm request computed of its prompt."""

    transformers_seconds: float
    cold_seconds: float
    gpu_seconds: float
    host_seconds: float
    ssd_seconds: float
    new_tokens: int
    same_first_token: bool
    """Whether the cold answer began as plain transformers' did."""


class TierBench:
    """Rounds over contexts of one length."""

    def __init__(
        self, loaded: LoadedModel, settings: TtftSettings, context_tokens: int, directory: Path
    ) -> None:
        self._loaded = loaded
        self._registered = registered_for(loaded.model.device)
        self._directory = directory
        self._prompt_tokens = context_tokens - 1
        size = loaded.block_tokens
        self._hit_blocks = (self._prompt_tokens - settings.new_tokens) // size
        if not self._hit_blocks:
            raise BenchError(f"a context of {context_tokens} tokens has no block to hit")
        blocks = self._prompt_tokens // size
        # A warm prompt's own full blocks are stored as well.
        self._stored_bytes = (blocks + 3 * (blocks - self._hit_blocks)) * loaded.block_bytes
        self._engine_settings = EngineSettings(
            page_count=2 * blocks - self._hit_blocks + 2,
            step_tokens=settings.step_tokens,
            prompt_step_tokens=settings.prompt_step_tokens,
            load_timeout_seconds=WAIT_SECONDS_MAX,
        )

    def prompts(self, number: int) -> tuple[list[int], list[list[int]]]:
        """Of round `number`: the context's prompt, and three that go on from its hit blocks."""
        generator = torch.Generator().manual_seed(1000 * self._prompt_tokens + number)
        base = random_tokens(self._loaded, self._prompt_tokens, generator)
        hit = self._hit_blocks * self._loaded.block_tokens
        ends = [random_tokens(self._loaded, self._prompt_tokens - hit, generator) for _ in range(3)]
        return base, [base[:hit] + end for end in ends]

    def round(self, number: int, told: Callable[[str], None]) -> Round:
        """Measures once. Raises BenchError, ServiceStartError."""
        base, (gpu, host, ssd) = self.prompts(number)
        with TemporaryDirectory(prefix="kvtier-bench-", dir=self._directory) as name:
            data = Path(name)
            with self._service(data) as service, self._client(service) as client:
                with self._engine(client) as engine:
                    if number % 2:
                        told("plain transformers")
                        plain = plain_first_token(self._loaded, base)
                    told("cold")
                    cold = self._cold(engine, base)
                    until_stored(client, len(base) // self._loaded.block_tokens)
                    until_written(service)
                    if not number % 2:
                        told("plain transformers")
                        plain = plain_first_token(self._loaded, base)
                    told("GPU pages")
                    from_gpu = self._hit(engine, gpu, Tier.GPU)
                told("host memory")
                with self._engine(client) as engine:
                    from_host = self._hit(engine, host, Tier.HOST)
                until_written(service)
            told("SSD, the service restarted")
            with (
                self._service(data) as service,
                self._client(service) as client,
                self._engine(client) as engine,
            ):
                from_ssd = self._hit(engine, ssd, Tier.SSD)
        return Round(
            plain.seconds,
            cold.first_seconds,
            from_gpu.first_seconds,
            from_host.first_seconds,
            from_ssd.first_seconds,
            from_gpu.usage.miss_tokens,
            plain.token_id == cold.token_ids[0],
        )

    def _cold(self, engine: Engine, base: list[int]) -> Answer:
        answer = ask(engine, base)
        if answer.usage.hit_tokens:
            raise BenchError(f"a new context was a hit: {answer.usage}")
        return answer

    def _hit(self, engine: Engine, prompt: list[int], tier: Tier) -> Answer:
        return ask_hit(engine, prompt, tier, self._hit_blocks * self._loaded.block_tokens)

    @contextmanager
    def _engine(self, client: CacheClient) -> Iterator[Engine]:
        with fresh_engine(self._loaded, self._engine_settings, client, self._registered) as engine:
            until_connected(client)
            yield engine

    @contextmanager
    def _service(self, data: Path) -> Iterator[ServiceProcess]:
        segments = -(-self._stored_bytes // _SEGMENT_BYTES) + _SEGMENTS_MORE
        settings = {
            "data_directory": data / "cache",
            "host.capacity_bytes": max(_ARENA_BYTES_MIN, self._stored_bytes * 5 // 4),
            "ssd.capacity_bytes": max(4, segments) * _SEGMENT_BYTES,
            "ssd.segment_bytes": _SEGMENT_BYTES,
            "ssd.scrub_bytes_per_second": 0,
            "limits.load_timeout_seconds": WAIT_SECONDS_MAX,
        }
        with cache_service_process(settings) as service:
            yield service

    @contextmanager
    def _client(self, service: ServiceProcess) -> Iterator[CacheClient]:
        client = CacheClient(
            service.address,
            self._loaded.namespace.id,
            self._loaded.block_bytes,
            self._loaded.block_tokens,
            "bench-ttft",
            store_seconds_max=WAIT_SECONDS_MAX,
            copy_lanes=copy_lanes(self._loaded.model.device),
            registered=self._registered,
        )
        try:
            if self._registered is not None:
                until_registered(client)
            yield client
        finally:
            client.close()


def ask_hit(engine: Engine, prompt: list[int], tier: Tier, hit_tokens: int) -> Answer:
    """Raises BenchError unless so many tokens were hits of `tier`, and no others."""
    answer = ask(engine, prompt)
    if answer.usage.hit_tokens_by_tier != {tier: hit_tokens}:
        raise BenchError(f"not a hit of {tier.name} alone: {answer.usage}")
    return answer


@dataclass(frozen=True, slots=True)
class _Plain:
    seconds: float
    token_id: int


def plain_first_token(loaded: LoadedModel, prompt: list[int]) -> _Plain:
    """Plain transformers' prefill, with its own attention, and the likeliest token.

    Requires an engine that computes nothing meanwhile: the model is the same one.
    """
    loaded.model.set_attn_implementation("sdpa")
    try:
        began = time.perf_counter()
        with torch.inference_mode():
            tokens = torch.tensor([prompt], device=loaded.model.device)
            output = loaded.model(input_ids=tokens, use_cache=True, logits_to_keep=1)
            token = int(output.logits[0, -1].argmax())
        return _Plain(time.perf_counter() - began, token)
    finally:
        loaded.model.set_attn_implementation(IMPLEMENTATION)
        # Beside this thread's team the engine's would sleep between its calls, as no worker's does.
        end_team()


def random_tokens(loaded: LoadedModel, count: int, generator: torch.Generator) -> list[int]:
    tokens: list[int] = torch.randint(
        _FIRST_TOKEN_ID, loaded.vocabulary_size, (count,), generator=generator
    ).tolist()
    return tokens
