"""A peer as a contender: its driver, run by the interpreter that has its packages.

That interpreter sees this project's `worker` and nothing else of ours: dependencies conflict.
Every wait has a bound; a driver that dies is an error with its last words. One thread.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import worker
from kvtier.bench.line_process import LineProcess, line_process
from worker.bench.turns import Turn

__all__ = ["PEERS", "PeerKind", "PeerProcess", "peer_process"]

_START_SECONDS_MAX = 120.0
_TURN_SECONDS_MAX = 300.0
_STOP_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class PeerKind:
    """A peer and one way its bytes travel."""

    name: str
    module: str
    transport: str
    same_host: bool
    """Whether the transport stays on one host; else it goes beside the raw socket."""


PEERS = (
    PeerKind("mooncake", "mooncake_store", "shm", True),
    PeerKind("redis", "redis_store", "unix", True),
    PeerKind("mooncake", "mooncake_store", "tcp", False),
    PeerKind("lmcache", "lmcache_server", "tcp", False),
    PeerKind("redis", "redis_store", "tcp", False),
)


class PeerProcess:
    """A running driver. `absent` says why there is nothing to measure."""

    def __init__(self, driver: LineProcess) -> None:
        """Raises BenchError."""
        self._driver = driver
        ready = self._answer(_START_SECONDS_MAX)
        self.version: str | None = ready.get("ready")
        self.absent: str | None = ready.get("absent")

    def turn(self, number: int) -> Turn:
        """As `Contender.turn`. Raises BenchError."""
        self._driver.say(str(number))
        answer = self._answer(_TURN_SECONDS_MAX)
        singles = tuple(answer["single_seconds"])
        return Turn(answer["store_seconds"], answer["restore_seconds"], singles, {})

    def _answer(self, seconds_max: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._driver.answer(seconds_max))
        return answer


@contextmanager
def peer_process(
    python: Path, kind: PeerKind, block_bytes: int, block_count: int, single_blocks: int
) -> Iterator[PeerProcess]:
    """A started driver, stopped with its servers at the end. Raises BenchError, OSError."""
    with tempfile.TemporaryDirectory(prefix="kvp-") as name:
        directory = Path(name)
        (directory / "path").mkdir()
        (directory / "path" / "worker").symlink_to(Path(worker.__path__[0]).absolute())
        terms = block_bytes, block_count, single_blocks, kind.transport, directory
        module = f"worker.bench.peers.{kind.module}"
        command = [str(python), "-m", module, *map(str, terms)]
        env = os.environ | {"PYTHONPATH": str(directory / "path"), "PYTHONNOUSERSITE": "1"}
        with line_process(
            "a peer's driver", command, directory / "log", _STOP_SECONDS_MAX, cwd=directory, env=env
        ) as driver:
            yield PeerProcess(driver)
