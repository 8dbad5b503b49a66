"""Rounds of lookups: client processes that start each round together. One thread."""

import json
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from cache_service.bench.lookup_settings import LookupSettings
from kvtier.bench.figures import percentile
from kvtier.bench.line_process import LineProcess, line_process
from kvtier.bench.service import cpu_seconds

__all__ = ["measure_lookups"]

_WAIT_SECONDS_MAX = 120.0
_STOP_SECONDS_MAX = 10.0


def measure_lookups(
    settings: LookupSettings,
    address: str,
    transport: str,
    service_pid: int,
    cached_blocks: int,
    keys_per_call: int,
    client_count: int,
) -> dict[str, Any]:
    """One row. `address`: of gRPC, over which the session line is opened too. Raises BenchError."""
    calls: list[float] = []
    speeds, service_cpu, client_cpu, busy = [], [], [], []
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                _client(
                    settings.directory,
                    seed,
                    *(address, cached_blocks, keys_per_call, seed),
                    "line" if transport == "line" else "grpc",
                )
            )
            for seed in range(client_count)
        ]
        for client in clients:
            client.answer(_WAIT_SECONDS_MAX)
        for _ in range(settings.rounds):
            before = cpu_seconds(service_pid)
            for client in clients:
                client.say(str(settings.round_seconds))
            windows = [json.loads(client.answer(_WAIT_SECONDS_MAX)) for client in clients]
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
        "transport": transport,
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


def _client(
    directory: Path, number: int, *arguments: object
) -> AbstractContextManager[LineProcess]:
    module = "cache_service.bench.lookup_client"
    command = [sys.executable, "-m", module, *map(str, arguments)]
    log_path = directory / f"client-{number}.log"
    return line_process("a client", command, log_path, _STOP_SECONDS_MAX)
