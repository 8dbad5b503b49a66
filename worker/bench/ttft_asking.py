"""How the TTFT benchmark asks: engines that start with empty pages, prompts, and when tokens came.

Invariant: an engine of `fresh_engine` has run a prompt before it is given out, so that what a
thread or a device pays once is paid, and none of its pages is a block. Main thread; sinks run on
the engine's.
"""

import gc
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvtier.bench.errors import BenchError
from kvtier.keys import PUBLIC_SCOPE
from worker.cache_port import CachePort
from worker.engine import Engine, EngineSettings
from worker.model_loader import LoadedModel
from worker.registered_memory import RegisteredMemory
from worker.requests import (
    CacheMode,
    EngineEvent,
    EngineRequest,
    EngineUsage,
    RequestEnded,
    RequestId,
    TokenEvent,
)

__all__ = ["Answer", "ask", "ask_together", "fresh_engine"]

ANSWER_SECONDS_MAX = 3600.0
_WARM_UP_BLOCKS = 2

_names = itertools.count(1)


@dataclass(slots=True)
class Answer:
    """A request's tokens with the seconds at which they came, and what it took."""

    asked: float
    token_ids: list[int] = field(default_factory=list)
    came: list[float] = field(default_factory=list)
    """`time.perf_counter` of each token."""
    end: RequestEnded | None = None

    @property
    def first_seconds(self) -> float:
        """TTFT."""
        return self.came[0] - self.asked

    @property
    def usage(self) -> EngineUsage:
        assert self.end is not None
        return self.end.usage


@contextmanager
def fresh_engine(
    loaded: LoadedModel,
    settings: EngineSettings,
    cache: CachePort | None,
    registered: RegisteredMemory | None = None,
) -> Iterator[Engine]:
    """A started engine; stopped, and its pages gone, at the end. `registered`: as in `cache`."""
    engine = Engine(loaded, settings, cache, registered=registered)
    engine.start()
    try:
        tokens = range(_WARM_UP_BLOCKS * loaded.block_tokens)
        warm_up = [token % loaded.vocabulary_size for token in tokens]
        ask(engine, warm_up, 2, CacheMode.BYPASS)
        yield engine
    finally:
        engine.stop()
        # Threads and callbacks make cycles of it; its pages are as large as the model's context.
        del engine
        gc.collect()


def ask(
    engine: Engine,
    prompt: Sequence[int],
    completion_tokens: int = 1,
    mode: CacheMode = CacheMode.DEFAULT,
) -> Answer:
    """One request, to its end. Raises BenchError."""
    (answer,) = ask_together(engine, [prompt], completion_tokens, mode)
    return answer


def ask_together(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    completion_tokens: int,
    mode: CacheMode = CacheMode.DEFAULT,
    cache_timeout_seconds: float | None = None,
    adapters: Sequence[str] | None = None,
) -> list[Answer]:
    """All at once, each to its end, greedy and without stop tokens; `adapters`: one for each
    prompt, none where it is not said. Raises BenchError."""
    ended = threading.Semaphore(0)
    requests = [
        EngineRequest(
            RequestId(f"ttft-{next(_names)}"),
            tuple(prompt),
            completion_tokens,
            PUBLIC_SCOPE,
            cache_mode=mode,
            cache_timeout_seconds=cache_timeout_seconds,
            adapter=adapter,
        )
        for prompt, adapter in zip(prompts, adapters or [""] * len(prompts), strict=True)
    ]
    answers = [Answer(time.perf_counter()) for _ in prompts]
    for request, answer in zip(requests, answers, strict=True):

        def sink(event: EngineEvent, answer: Answer = answer) -> None:
            if isinstance(event, TokenEvent):
                answer.came.append(time.perf_counter())
                answer.token_ids.append(event.token_id)
            elif isinstance(event, RequestEnded):
                answer.end = event
                ended.release()

        answer.asked = time.perf_counter()
        engine.submit(request, sink)
    for _ in prompts:
        if not ended.acquire(timeout=ANSWER_SECONDS_MAX):
            raise BenchError(f"no answer within {ANSWER_SECONDS_MAX:.0f} s")
    for answer in answers:
        if len(answer.came) != completion_tokens:
            raise BenchError(f"a request ended early: {answer.end}")
    return answers
