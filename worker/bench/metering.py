"""`kvtier bench metering`: events through the whole path, what the journal costs a request, and how
long a report over a month takes.

    clients -> journal (synced) -> outbox -> RecordUsage -> ledger (durable)

Workers' usage sides and the billing service are processes of their own, on this machine. Standard
output has the answer alone; progress goes to standard error. Exit status 1 when the ledger does not
hold afterwards.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console

from kvtier.bench.figures import machine, percentile
from kvtier.cli.progress import step
from kvtier.v1 import usage_pb2, usage_pb2_grpc

__all__ = ["measure", "metering"]

MONTH = (datetime(2025, 11, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC))
PATH_CLIENTS = 256
"""A worker's requests at a time, where it is about throughput."""

COST_CLIENTS = 32
COST_RATE = 200.0
"""Requests a second of one worker, where it is about what each waits for."""

REPORTS = 5


def metering(
    events: Annotated[int, typer.Option(min=100, help="Through the whole path.")] = 100_000,
    workers: Annotated[int, typer.Option(min=1, help="That send at once.")] = 2,
    cost_events: Annotated[int, typer.Option(min=100, help="Timed, at 200 a second.")] = 3_000,
    report_events: Annotated[int, typer.Option(min=1, help="Of the month.")] = 10_000_000,
    database_url: Annotated[
        str,
        typer.Option(
            help="An empty PostgreSQL database; empty: SQLite.", envvar="KVTIER_BENCH_DATABASE_URL"
        ),
    ] = "",
    directory: Annotated[
        Path | None, typer.Option(help="Where journals and ledger go. Default: temporary.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Usage events a second through the whole path, the cost of a request, and a month's report."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="kvtier-metering-") as name:
        result = measure(
            Path(name), console, events, workers, cost_events, report_events, database_url
        )
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{result['backend']}: {result['events_per_second']:,.0f} events/s, end to end")
        print(f"a request waits {result['request_cost_p99_ms']:.2f} ms for its journal (p99)")
        print(
            f"report over a month of {report_events:,} events:"
            f" {result['report_seconds_10m_events']:.2f} s"
        )
    if not result["verified"]:
        raise typer.Exit(1)


def measure(
    directory: Path,
    console: Console,
    events: int,
    workers: int,
    cost_events: int,
    report_events: int,
    database_url: str,
) -> dict[str, Any]:
    """Each figure in turn."""
    with _billing(directory / "billing", database_url) as address:
        with step(console, f"{events:,} events through {workers} workers"):
            each = events // workers
            loads = _load(directory, address, workers, each, PATH_CLIENTS, 0.0)
            seconds = max(x["span"][1] for x in loads) - min(x["span"][0] for x in loads)
        with step(console, f"{cost_events:,} requests at {COST_RATE:.0f} a second"):
            costs = _load(directory, address, 1, cost_events, COST_CLIENTS, COST_RATE)[0]
        with step(console, "verifying"):
            verified = _verified(address, workers * each + cost_events)
    with step(console, f"a report over a month of {report_events:,} events"):
        # The key of a ledger in PostgreSQL is where it was.
        place = directory / ("billing" if database_url else "month")
        report_seconds = _report(place, report_events, database_url)
    return {
        "benchmark": "metering",
        "backend": "postgresql" if database_url else "sqlite",
        "events_per_second": round(workers * each / seconds, 1),
        "request_cost_p50_ms": round(percentile(costs["costs_ms"], 50), 3),
        "request_cost_p99_ms": round(percentile(costs["costs_ms"], 99), 3),
        "report_seconds_10m_events": round(report_seconds, 3),
        "report_events": report_events,
        "worker_cpu_us_per_event": round(median(x["cpu_us_per_event"] for x in loads), 1),
        "events": workers * each,
        "workers": workers,
        "verified": verified,
        "machine": machine(),
    }


@contextmanager
def _billing(directory: Path, database_url: str) -> Iterator[str]:
    command = [sys.executable, "-m", "billing", "--set", "security.development=true"]
    for setting in (f"data_directory={directory}", "listen=127.0.0.1:0", "log.level=ERROR"):
        command += ["--set", setting]
    environment = _environment(database_url)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise typer.Exit(1)  # it has said why
            yield json.loads(line)["listen"]
        finally:
            process.terminate()


def _environment(database_url: str) -> dict[str, str]:
    """Not on the command line, where everybody reads it."""
    given = {"KVTIER_BILLING_DATABASE_URL": database_url} if database_url else {}
    return {**os.environ, **given}


def _load(
    directory: Path, address: str, workers: int, events: int, clients: int, rate: float
) -> list[dict[str, Any]]:
    commands = [
        [
            *(sys.executable, "-m", "worker.bench.metering_load"),
            *(str(directory / f"worker-{rate:.0f}-{number}"), address),
            *(str(events), str(clients), str(rate)),
        ]
        for number in range(workers)
    ]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise typer.Exit(1)
    return [json.loads(answer) for answer in answers]


def _verified(address: str, events: int) -> bool:
    with grpc.insecure_channel(address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        found = stub.VerifyLedger(usage_pb2.VerifyLedgerRequest(), timeout=3_600)
    return bool(found.verified) and found.entry_count == events


def _report(directory: Path, events: int, database_url: str) -> float:
    """Median of some, asked of a service as people ask; in a database of its own where that is
    SQLite, else beside the events of before, which are of another month.
    """
    command = [sys.executable, "-m", "billing.bench.month", str(directory), str(events)]
    subprocess.run(command, check=True, env=_environment(database_url))
    request = usage_pb2.GetUsageRequest(group_by=["tenant", "model"])
    request.start_time.FromDatetime(MONTH[0])
    request.end_time.FromDatetime(MONTH[1])
    seconds = []
    with _billing(directory, database_url) as address, grpc.insecure_channel(address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        for _ in range(REPORTS):
            began = time.perf_counter()
            rows = stub.GetUsage(request, timeout=600).rows
            seconds.append(time.perf_counter() - began)
            if sum(row.request_count for row in rows) != events:
                raise typer.Exit(1)
    return median(seconds)
