"""`kvtier bench gateway`: what the gateway adds to a worker's own first token, and how many small
requests it takes a second.

    client of bare sockets -> gateway -> scripted worker      and straight to the worker, in turn

Three processes on this machine. The worker computes nothing: it waits as long as a request says.
Standard output has the answer alone; progress goes to standard error. Exit status 1 when a limit is
missed.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console

from gateway.bench.load import KEY_VARIABLE, Load
from gateway.key_file import KeyFile
from gateway.keys import new_key
from kvtier.bench.errors import BenchError
from kvtier.bench.figures import machine, percentile
from kvtier.bench.line_process import LineProcess, line_process
from kvtier.bench.service import cpu_seconds
from kvtier.bench.tables import at_least, at_most, bench_table, number, table_console
from kvtier.cli.processes import ServiceProcess, start_service
from kvtier.cli.progress import step
from kvtier.errors import KvtierError
from kvtier.scopes import ScopePath

__all__ = ["gateway", "measure"]

OVERHEAD_MS_MAX = 3.0
REQUESTS_PER_SECOND_MIN = 500.0
CLIENTS = 32

FIRST_MS, PAUSE_MS, TOKENS = 60, 20, 12
"""Of the worker, where the first token is timed: 32 such requests leave the machine time."""

ANSWER_SECONDS_MAX = 300.0


def gateway(
    rounds: Annotated[int, typer.Option(min=1, help="Of which medians are told.")] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Of each of 32 clients, a round.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """What the gateway adds to a first token at 32 requests at a time, and requests a second."""
    try:
        result = measure(Console(stderr=True), rounds, requests)
    except KvtierError as error:
        typer.echo(f"kvtier bench gateway: {error.reason}: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _show(result)
    if not result["held"]:
        raise typer.Exit(1)


def measure(console: Console, rounds: int, requests: int) -> dict[str, Any]:
    """Both figures, round by round. Raises BenchError, ServiceStartError."""
    with _parts() as (worker, service, load):
        paced = {"clients": CLIENTS, "tokens": TOKENS, "first_ms": FIRST_MS, "pause_ms": PAUSE_MS}
        through = Load("http", service.address, **paced, requests=requests, stream=True)
        straight = Load("grpc", worker, **paced, requests=requests, stream=True)
        tiny = Load("http", service.address, CLIENTS, requests * 5, 1, 0, 0, stream=False)
        for each in (through, straight, tiny):  # what is done for the first time is not measured
            _run(load, each)
        first: list[tuple[list[float], list[float]]] = []
        rates: list[tuple[float, float]] = []
        with step(console, f"{rounds} rounds of {CLIENTS} clients"):
            for _ in range(rounds):
                pair = _run(load, through), _run(load, straight)
                first.append((pair[0]["first_token_ms"], pair[1]["first_token_ms"]))
                before = cpu_seconds(service.process.pid)
                told = _run(load, tiny)
                spent = cpu_seconds(service.process.pid) - before
                rates.append((told["requests_per_second"], spent / len(told["first_token_ms"])))
    return _result(first, rates, requests)


def _result(
    first: list[tuple[list[float], list[float]]], rates: list[tuple[float, float]], requests: int
) -> dict[str, Any]:
    def over(percent: int) -> float:
        return median(
            percentile(there, percent) - percentile(here, percent) for there, here in first
        )

    overhead, rate = over(50), median(rate for rate, _ in rates)
    return {
        "benchmark": "gateway",
        "overhead_first_token_p50_ms": round(overhead, 3),
        "overhead_first_token_p99_ms": round(over(99), 3),
        "gateway_first_token_p50_ms": round(median(percentile(g, 50) for g, _ in first), 3),
        "worker_first_token_p50_ms": round(median(percentile(w, 50) for _, w in first), 3),
        "overhead_p50_limit_ms": OVERHEAD_MS_MAX,
        "requests_per_second": round(rate, 1),
        "requests_per_second_limit": REQUESTS_PER_SECOND_MIN,
        "gateway_cpu_ms_per_request": round(median(cpu for _, cpu in rates) * 1e3, 3),
        "clients": CLIENTS,
        "rounds": len(first),
        "requests_per_client": requests,
        "held": overhead <= OVERHEAD_MS_MAX and rate >= REQUESTS_PER_SECOND_MIN,
        "machine": machine(),
    }


@contextmanager
def _parts() -> Iterator[tuple[str, ServiceProcess, LineProcess]]:
    with tempfile.TemporaryDirectory(prefix="kvtier-gateway-") as name:
        directory = Path(name)
        keys = KeyFile(directory / "keys.json")
        key, text = new_key("bench", ScopePath("bench", "bench"), (), int(time.time()))
        keys.change(lambda _: (key, None))
        command = [sys.executable, "-m", "gateway.bench.scripted_worker"]
        with line_process("the scripted worker", command, directory / "worker.log", 5) as worker:
            address = json.loads(worker.answer(30))["listen"]
            settings = {
                "listen": "127.0.0.1:0",
                "grpc_listen": "",
                "workers": address,
                "keys_file": keys.path,
                "log.level": "WARNING",
            }
            service = start_service("gateway", settings, directory / "gateway.log")
            try:
                with line_process(
                    "the clients",
                    [sys.executable, "-m", "gateway.bench.load"],
                    directory / "load.log",
                    5,
                    env=os.environ | {KEY_VARIABLE: text},
                ) as load:
                    yield address, service, load
            finally:
                service.stop()


def _run(process: LineProcess, load: Load) -> dict[str, Any]:
    process.say(load.line())
    told: dict[str, Any] = json.loads(process.answer(ANSWER_SECONDS_MAX))
    if len(told["first_token_ms"]) != load.clients * load.requests:
        raise BenchError("not every request was answered")
    return told


def _show(result: dict[str, Any]) -> None:
    console = table_console()
    table = bench_table(
        f"First token, {CLIENTS} requests at a time, ms", "worker", "gateway", "p50 +", "p99 +"
    )
    table.add_row(
        number(result["worker_first_token_p50_ms"]),
        number(result["gateway_first_token_p50_ms"]),
        at_most(result["overhead_first_token_p50_ms"], OVERHEAD_MS_MAX),
        number(result["overhead_first_token_p99_ms"]),
    )
    console.print(table)
    table = bench_table("Tiny requests", "requests/s", "gateway CPU ms")
    table.add_row(
        at_least(result["requests_per_second"], REQUESTS_PER_SECOND_MIN, 0),
        number(result["gateway_cpu_ms_per_request"]),
    )
    console.print(table)
