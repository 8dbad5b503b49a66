"""Other engines beside ours: each a driver, run by the interpreter that has its packages.

That interpreter sees this project's `worker.bench.peers` and nothing else of ours: dependencies
conflict. Every wait has a bound; a driver that dies is an error with its last words. One thread.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import worker
from kvtier.bench.line_process import LineProcess, line_process
from worker.bench.ttft_settings import TtftSettings

__all__ = ["ENGINES", "EngineKind", "EnginePeer", "engine_peers"]

_START_SECONDS_MAX = 600.0
"""Of a real model's weights and an engine's own preparations."""
_ANSWER_SECONDS_MAX = 3600.0
_STOP_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine and its driver in `worker.bench.peers`."""

    name: str
    module: str


ENGINES = (EngineKind("vllm", "vllm_engine"),)


class EnginePeer:
    """A running driver. `absent` says why there is nothing to measure."""

    def __init__(self, kind: EngineKind, driver: LineProcess | None) -> None:
        """None: nobody named an interpreter. Raises BenchError."""
        self.kind = kind
        self._driver = driver
        self.version: str | None = None
        self.absent: str | None = "not looked for: --peers PYTHON names the interpreter that has it"
        if driver is not None:
            ready = json.loads(driver.answer(_START_SECONDS_MAX))
            self.version, self.absent = ready.get("ready"), ready.get("absent")

    def first_tokens(
        self, prompt: Sequence[int], warm_prompt: Sequence[int]
    ) -> tuple[float, float]:
        """As `TtftPeer.first_tokens`. Raises BenchError."""
        (cold,), (warm,) = self._ask([prompt], 1), self._ask([warm_prompt], 1)
        return cold[0], warm[0]

    def decode(self, prompts: Sequence[Sequence[int]], token_count: int) -> float:
        """As `TtftPeer.decode`. Raises BenchError."""
        # Once before: the contexts are in its pages then, as they are in ours.
        self._ask(prompts, 1)
        came = self._ask(prompts, token_count)
        began, ended = max(times[0] for times in came), min(times[-1] for times in came)
        return sum(began < at <= ended for times in came for at in times) / (ended - began)

    def _ask(self, prompts: Sequence[Sequence[int]], token_count: int) -> list[list[float]]:
        """Seconds from the asking to each token of each prompt."""
        assert self._driver is not None
        self._driver.say(json.dumps({"prompts": [*map(list, prompts)], "tokens": token_count}))
        came: list[list[float]] = json.loads(self._driver.answer(_ANSWER_SECONDS_MAX))["came"]
        return came


@contextmanager
def engine_peers(
    settings: TtftSettings, checkpoint: Path, dtype: str, told: Callable[[str], None]
) -> Iterator[list[EnginePeer]]:
    """Every engine of `ENGINES`, there or absent; stopped at the end.

    Raises BenchError, OSError.
    """
    with ExitStack() as stack:
        yield [
            EnginePeer(kind, _driver(settings, checkpoint, dtype, kind, told, stack))
            for kind in ENGINES
        ]


def _driver(
    settings: TtftSettings,
    checkpoint: Path,
    dtype: str,
    kind: EngineKind,
    told: Callable[[str], None],
    stack: ExitStack,
) -> LineProcess | None:
    if settings.peers is None:
        return None
    told(f"starting {kind.name}")
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvp-")))
    (directory / "path").mkdir()
    (directory / "path" / "worker").symlink_to(Path(worker.__path__[0]).absolute())
    terms: dict[str, Any] = {
        "model": str(checkpoint.absolute()),
        "device": settings.device,
        "dtype": dtype,
        "context_tokens": max(*settings.contexts, settings.decode_context),
        "requests": max(settings.decode_requests, default=1),
        "cached_tokens": _cached_tokens(settings),
        "threads": settings.threads,
    }
    module = f"worker.bench.peers.{kind.module}"
    command = [str(settings.peers), "-m", module, json.dumps(terms)]
    env = os.environ | {"PYTHONPATH": str(directory / "path"), "PYTHONNOUSERSITE": "1"}
    return stack.enter_context(
        line_process(
            kind.name, command, directory / "log", _STOP_SECONDS_MAX, cwd=directory, env=env
        )
    )


def _cached_tokens(settings: TtftSettings) -> int:
    """What it needs room for, as ours has."""
    decode = settings.decode_context * max(settings.decode_requests, default=0)
    return 2 * max(*settings.contexts, decode)
