"""Rounds of lookups: client processes that start each round together. One thread."""

import json
import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from cache_service.bench.lookup_settings import LookupSettings
from kvtier.bench.errors import BenchError
from kvtier.bench.figures import percentile
from kvtier.bench.service import cpu_seconds

__all__ = ["measure_lookups"]

_WAIT_SECONDS_MAX = 120.0
_STOP_SECONDS_MAX = 10.0


class _Client:
    """A client process and its two pipes."""

    def __init__(self, process: "subprocess.Popen[str]", log_path: Path) -> None:
        self._process = process
        self._log_path = log_path

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Its next line. Raises BenchError."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(_WAIT_SECONDS_MAX) else ""
        if not line:
            words = self._log_path.read_text(errors="replace").strip().splitlines()[-1:]
            raise BenchError(f"a lookup client ended or hangs: {' '.join(words)}")
        return line


def measure_lookups(
    settings: LookupSettings,
    address: str,
    service_pid: int,
    cached_blocks: int,
    keys_per_call: int,
    client_count: int,
) -> dict[str, Any]:
    """One row. Raises BenchError."""
    calls: list[float] = []
    speeds, service_cpu, client_cpu, busy = [], [], [], []
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                _client(settings.directory, seed, address, cached_blocks, keys_per_call, seed)
            )
            for seed in range(client_count)
        ]
        for client in clients:
            client.answer()
        for _ in range(settings.rounds):
            before = cpu_seconds(service_pid)
            for client in clients:
                client.say(str(settings.round_seconds))
            windows = [json.loads(client.answer()) for client in clients]
            spent = cpu_seconds(service_pid) - before
            keys = sum(len(w["call_seconds"]) for w in windows) * keys_per_call
            calls += [each for w in windows for each in w["call_seconds"]]
            speeds.append(
                sum(len(w["call_seconds"]) * keys_per_call / w["seconds"] for w in windows)
            )
            service_cpu.append(spent / keys)
            client_cpu.append(sum(w["cpu_seconds"] for w in windows) / keys)
            busy.append(spent / max(w["seconds"] for w in windows))
    return {
        "cached_blocks": cached_blocks,
        "keys_per_call": keys_per_call,
        "clients": client_count,
        "p50_us": percentile(calls, 50) * 1e6,
        "p99_us": percentile(calls, 99) * 1e6,
        "keys_per_second": median(speeds),
        "service_cpu_us_per_key": median(service_cpu) * 1e6,
        "service_cpu_us_per_call": median(service_cpu) * keys_per_call * 1e6,
        "client_cpu_us_per_call": median(client_cpu) * keys_per_call * 1e6,
        "service_cpu_share": median(busy),
    }


@contextmanager
def _client(directory: Path, number: int, *arguments: object) -> Iterator[_Client]:
    log_path = directory / f"client-{number}.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "cache_service.bench.lookup_client", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield _Client(process, log_path)
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[str]") -> None:
    """A client ends when its standard input does."""
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(_STOP_SECONDS_MAX)
    except (OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
