"""How many usage events a second does the billing service take, durably, over gRPC?

Starts a billing process of its own with a ledger in a fresh directory, sends batches on several
connections at once, and counts until every batch is acknowledged: each acknowledgement means its
events are synced to disk. Afterwards the ledger is verified. Events are made before the clock
starts.

    python benchmarks/bench_metering.py [--events 50000] [--batch 500] [--senders 4] [--rounds 5]
                                        [--directory DIR] [--json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from kvtier.v1 import usage_pb2, usage_pb2_grpc

TARGET_EVENTS_PER_SECOND = 5_000


@dataclass(frozen=True)
class Result:
    """Of one round."""

    events_per_second: float
    batch_ms_p50: float
    batch_ms_max: float
    ledger_bytes_per_event: float
    verify_events_per_second: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=50_000, help="a round")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--senders", type=int, default=4, help="connections that send at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where ledgers go; default: temporary")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    results = []
    for number in range(arguments.rounds):
        results.append(one_round(arguments))
        rate = results[-1].events_per_second
        print(f"round {number + 1}: {rate:,.0f} events/s", file=sys.stderr)
    median = statistics.median(result.events_per_second for result in results)
    if arguments.json:
        print(json.dumps(describe(arguments, results, median)))
    else:
        last = results[-1]
        print(f"median {median:,.0f} events/s (target {TARGET_EVENTS_PER_SECOND:,})")
        print(f"batch of {arguments.batch}: p50 {last.batch_ms_p50:.1f} ms")
        print(f"ledger: {last.ledger_bytes_per_event:.0f} bytes an event")
        print(f"verify: {last.verify_events_per_second:,.0f} events/s")
    return 0


def one_round(arguments: argparse.Namespace) -> Result:
    """A fresh ledger, all events, one verification."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        command = [sys.executable, "-m", "billing", "--set", "listen=127.0.0.1:0"]
        command += ["--set", "security.development=true"]
        command += ["--set", f"data_directory={directory}", "--set", "log.level=ERROR"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                listen = json.loads(process.stdout.readline())["listen"]
                return measure(listen, arguments, Path(directory))
            finally:
                process.terminate()


def measure(listen: str, arguments: argparse.Namespace, directory: Path) -> Result:
    batches = [
        usage_pb2.RecordUsageRequest(events=[event(i) for i in range(start, start + size)])
        for start in range(0, arguments.events, arguments.batch)
        if (size := min(arguments.batch, arguments.events - start))
    ]
    shares = [batches[sender :: arguments.senders] for sender in range(arguments.senders)]
    began = time.perf_counter()
    with ThreadPoolExecutor(arguments.senders) as senders:
        waits = [ms for share in senders.map(lambda b: deliver(listen, b), shares) for ms in share]
    seconds = time.perf_counter() - began
    with grpc.insecure_channel(listen) as channel:
        began = time.perf_counter()
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        found = stub.VerifyLedger(usage_pb2.VerifyLedgerRequest(), timeout=600)
        verify_seconds = time.perf_counter() - began
    if not found.verified or found.entry_count != arguments.events:
        raise SystemExit(f"the ledger does not hold: {found}")
    stored = sum(path.stat().st_size for path in directory.glob("ledger.sqlite"))
    return Result(
        events_per_second=arguments.events / seconds,
        batch_ms_p50=statistics.median(waits),
        batch_ms_max=max(waits),
        ledger_bytes_per_event=stored / arguments.events,
        verify_events_per_second=arguments.events / verify_seconds,
    )


def deliver(listen: str, batches: list[usage_pb2.RecordUsageRequest]) -> list[float]:
    """Sends one after the other; milliseconds until each was durable."""
    waits = []
    # A pool of its own: else gRPC would send everything over one connection.
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(listen, options=options) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        for batch in batches:
            began = time.perf_counter()
            response = stub.RecordUsage(batch, timeout=120)
            waits.append((time.perf_counter() - began) * 1000)
            if any(o.status != usage_pb2.RECORD_STATUS_ACCEPTED for o in response.outcomes):
                raise SystemExit("an event was not accepted")
    return waits


def event(number: int) -> usage_pb2.UsageEvent:
    """A document question: most of its prompt from the cache."""
    now = time.time_ns()
    made = usage_pb2.UsageEvent(
        request_id=os.urandom(16).hex(),
        schema_version=1,
        tenant_id=f"tenant-{number % 50}",
        model=f"model-{number % 4}",
        end_reason=usage_pb2.END_REASON_STOP,
        tokens=usage_pb2.TokenUsage(
            prompt_tokens=4_096,
            hit_tokens=4_032,
            hit_tokens_by_tier=usage_pb2.HitTokensByTier(gpu=1_024, host=2_944, ssd=64),
            miss_tokens=64,
            completion_tokens=number % 300,
        ),
        node="worker-0",
    )
    made.start_time.FromNanoseconds(now - 10**9)
    made.end_time.FromNanoseconds(now)
    made.ttft.FromNanoseconds(31_000_000)
    return made


def describe(
    arguments: argparse.Namespace, results: list[Result], median: float
) -> dict[str, object]:
    return {
        "benchmark": "metering",
        "machine": {
            "cpu_count": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
        "settings": {
            "events": arguments.events,
            "batch_events": arguments.batch,
            "senders": arguments.senders,
        },
        "events_per_second": round(median, 1),
        "target_events_per_second": TARGET_EVENTS_PER_SECOND,
        "rounds": [asdict(result) for result in results],
    }


if __name__ == "__main__":
    sys.exit(main())
