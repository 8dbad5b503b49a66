"""A whole engine beside a cache service that is killed, stopped or wrong: every request ends, with
the tokens computed without a cache, and blocks are hits again once the service is well.

How long it takes is measured by `benchmarks/bench_broken_cache.py`.
"""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from kvtier.blocks import MissReason, Tier
from kvtier.breaker import Breaker, BreakerState
from kvtier.keys import PUBLIC_SCOPE
from worker.cache_client import CacheClient
from worker.engine import Engine, EngineSettings
from worker.model_loader import LoadedModel, load_model
from worker.requests import EngineEvent, EngineRequest, RequestEnded, RequestId, TokenEvent

BENCH = Path(__file__).parents[3] / "benchmarks" / "bench_broken_cache.py"
PROMPTS = [[3 + (n * 31 + i * 7) % 120 for i in range(40)] for n in range(40)]
DEADLINE_SECONDS = 0.3
FAILED = {MissReason.UNAVAILABLE, MissReason.DEADLINE}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return load_model(directory, block_tokens=8)


class WatchedBreaker(Breaker):
    """Remembers the states it went through."""

    def __init__(self) -> None:
        super().__init__(time.monotonic, failures_max=2, wait_seconds=0.2, wait_seconds_max=0.4)
        self.states = [BreakerState.CLOSED]

    def _note(self) -> None:
        if self.states[-1] is not self.state:
            self.states.append(self.state)

    def begin_probe(self) -> bool:
        begun = super().begin_probe()
        self._note()
        return begun

    def succeeded(self) -> None:
        super().succeeded()
        self._note()

    def failed(self) -> None:
        super().failed()
        self._note()


class Asked:
    """An engine that is asked one prompt after the other."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.count = 0

    def __call__(self, prompt: list[int]) -> tuple[list[int], RequestEnded]:
        tokens: list[int] = []
        ends: list[RequestEnded] = []
        over = threading.Event()

        def sink(event: EngineEvent) -> None:
            if isinstance(event, TokenEvent):
                tokens.append(event.token_id)
            if isinstance(event, RequestEnded):
                ends.append(event)
                over.set()

        self.count += 1
        name = RequestId(f"r{self.count}")
        self.engine.submit(EngineRequest(name, tuple(prompt), 5, PUBLIC_SCOPE), sink)
        assert over.wait(60), "a request does not end"
        return tokens, ends[0]


@contextmanager
def asked(loaded: LoadedModel, cache: CacheClient | None) -> Iterator[Asked]:
    # Six pages hold one prompt: what was asked before comes from the service or nowhere.
    settings = EngineSettings(page_count=6, load_timeout_seconds=DEADLINE_SECONDS)
    engine = Engine(loaded, settings, cache)
    engine.start()
    try:
        yield Asked(engine)
    finally:
        engine.stop()
        if cache is not None:
            cache.close()


@pytest.fixture(scope="module")
def truth(loaded: LoadedModel) -> list[list[int]]:
    with asked(loaded, None) as plain:
        return [plain(prompt)[0] for prompt in PROMPTS]


def client(loaded: LoadedModel, address: str, breaker: Breaker) -> CacheClient:
    space, size, tokens = loaded.namespace.id, loaded.block_bytes, loaded.block_tokens
    return CacheClient(address, space, size, tokens, "test", store_seconds_max=1.0, breaker=breaker)


def until_hit(ask: Asked, truth: list[list[int]]) -> None:
    """Asks until blocks come from the service again."""
    for _ in range(60):
        for n in (0, 1):
            tokens, end = ask(PROMPTS[n])
            assert tokens == truth[n]
            if end.usage.hit_tokens_by_tier.get(Tier.HOST):
                return
        time.sleep(0.1)
    raise AssertionError("blocks are no hits again")


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_requests_end_rightly_and_the_breaker_opens_probes_and_closes(
    start: Any, loaded: LoadedModel, truth: list[list[int]], fault: signal.Signals
) -> None:
    service = start()
    address = service.ready()
    breaker = WatchedBreaker()
    with asked(loaded, client(loaded, address, breaker)) as ask:
        until_hit(ask, truth)
        service.signal(fault)
        for n in itertools.islice(itertools.cycle(range(len(PROMPTS))), 3000):
            tokens, end = ask(PROMPTS[n])
            assert tokens == truth[n]
            assert set(end.usage.hit_tokens_by_tier) <= {Tier.GPU}
            assert end.usage.miss_reason in FAILED or end.usage.hit_tokens
            if BreakerState.HALF_OPEN in breaker.states:
                break
        assert breaker.states[:3] == [
            BreakerState.CLOSED,
            BreakerState.OPEN,
            BreakerState.HALF_OPEN,
        ]
        if fault is signal.SIGSTOP:
            service.signal(signal.SIGCONT)
        else:
            service.end()
            start(f"listen={address}").ready()
        until_hit(ask, truth)
        assert breaker.states[-2:] == [BreakerState.HALF_OPEN, BreakerState.CLOSED]


def test_requests_end_rightly_beside_a_late_a_slow_and_a_lying_service(tmp_path: Path) -> None:
    """By the benchmark at its smallest, which judges tokens and hits; times say nothing here."""
    report = tmp_path / "report.json"
    sizes = ["--rounds", "1", "--context", "192", "--deadline", "0.3"]
    command = [sys.executable, BENCH, *sizes, "--faults", "slow,trickling,garbage"]
    command += ["--checkpoint", tmp_path / "checkpoint", "--json", report]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert report.exists(), done.stderr
    found = json.loads(report.read_text())
    assert found["problems"] == []
    assert [each["requests"] for each in found["faults"]] == [3, 3, 3]


def test_no_decode_step_is_lost_to_a_service_that_hangs(
    start: Any, loaded: LoadedModel, truth: list[list[int]]
) -> None:
    """While stores and a load hang, every step gives every decoding sample its token."""
    service = start()
    cache = client(loaded, service.ready(), Breaker(time.monotonic))
    engine = Engine(loaded, EngineSettings(page_count=64, load_timeout_seconds=60.0), cache)
    told: list[list[EngineEvent]] = [[], [], []]
    try:
        while not cache.connected():
            time.sleep(0.01)
        service.signal(signal.SIGSTOP)
        waits = EngineRequest(RequestId("waits"), tuple(PROMPTS[9]), 1, PUBLIC_SCOPE)
        engine.submit(waits, lambda event: None)
        for n, events in enumerate(told):
            name, prompt = RequestId(f"decodes-{n}"), tuple(PROMPTS[n])
            request = EngineRequest(name, prompt, 30, PUBLIC_SCOPE, cache_timeout_seconds=0.0)
            engine.submit(request, events.append)
        while not all(told):
            engine.step()
        # All prompts are computed and offered.
        assert engine.stats().offered_blocks_total >= 3 * 5
        for tokens in range(len(told[0]) + 1, 31):
            engine.step()
            engine.check_integrity()
            for events in told:
                assert sum(isinstance(event, TokenEvent) for event in events) == tokens
        assert not cache.counts().get("stored_blocks")
    finally:
        service.signal(signal.SIGCONT)
        engine.stop()
        cache.close()
    for events, expected in zip(told, truth, strict=False):
        made = [event.token_id for event in events if isinstance(event, TokenEvent)]
        assert made[: len(expected)] == expected
