"""How long does a purge of many blocks take, and how long does it keep other clients waiting?

    python benchmarks/bench_purge.py [--blocks 100000,1000000] [--rounds 3] [--directory D] [--json]

A real service that recovered so many blocks of one tenant from an SSD's index (made for the
purpose, without payload) has them all taken out, as `kvtier cache purge` does: by `--tenant`, and
by the prefix that all of them continue. Meanwhile another client looks up 256 keys over a session
line, again 2 ms after each answer.

`seconds`: of the whole call. `idle_*`, `purge_*`: latency of the other client before and during it.
`service_cpu_us_per_block`: of all the service's threads. A round has a service and an index of its
own; figures are medians of the rounds, the longest call is the longest of all. Exit status 1 when a
receipt does not have every block, forgotten durably.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from cache_service.bench.line_client import LineClient, lookup_request, open_session
from kvtier.bench.figures import machine, percentile
from kvtier.bench.service import cache_service_process, cpu_seconds
from kvtier.cli.channel import open_channel
from kvtier.cli.processes import ServiceProcess
from kvtier.errors import KvtierError
from kvtier.v1 import control_pb2 as pb
from kvtier.v1 import control_pb2_grpc
from storage.bench.restart_data import (
    NAMESPACE,
    SEGMENT_BYTES,
    capacity_bytes,
    hash_of,
    make_directory,
)

TENANT = "acme"
TARGETS = {
    "tenant": pb.PurgeTarget(kind=pb.PURGE_KIND_OWNER, of_owner=TENANT),
    "prefix": pb.PurgeTarget(
        kind=pb.PURGE_KIND_PREFIX, namespace_id=NAMESPACE, block_hash=hash_of(0)
    ),
}
ARENA_BYTES = 64 << 20
KEYS_PER_CALL = 256
BETWEEN_SECONDS = 0.002
IDLE_SECONDS = 2.0
PURGE_SECONDS_MAX = 600.0


@dataclass
class Prober:
    """A client that calls, and waits a while; a thread of its own."""

    client: LineClient
    request: bytes
    ended: threading.Event = field(default_factory=threading.Event)
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        while not self.ended.wait(BETWEEN_SECONDS):
            began = time.perf_counter()
            self.client.lookup(self.request)
            self.seconds.append(time.perf_counter() - began)


def main() -> int:
    arguments = parse()
    rows = []
    for count in arguments.blocks:
        for target in TARGETS:
            rounds = [
                one_round(arguments.directory, count, target) for _ in range(arguments.rounds)
            ]
            row = {key: median(each[key] for each in rounds) for key in rounds[0]}
            row["purge_max_ms"] = max(each["purge_max_ms"] for each in rounds)
            rows.append({"blocks": count, "target": target, **row})
            print(rows[-1], file=sys.stderr)
    if arguments.json:
        print(json.dumps({**machine(), "results": rows}, indent=2))
    else:
        show(rows)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--blocks",
        type=lambda text: [int(each) for each in text.split(",")],
        default=[100_000, 1_000_000],
        help="by comma",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="for the indexes, about 1 GiB; must exist")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def one_round(directory: Path | None, count: int, target: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-purge-", dir=directory) as name:
        data = Path(name)
        make_directory(data / "ssd", count, lambda done, total: None, TENANT, one_tree=True)
        settings = {
            "data_directory": data,
            "host.capacity_bytes": ARENA_BYTES,
            "ssd.capacity_bytes": capacity_bytes(count),
            "ssd.segment_bytes": SEGMENT_BYTES,
            "ssd.scrub_bytes_per_second": 0,
        }
        with cache_service_process(settings) as service:
            figures = purged(service, count, target)
        shutil.rmtree(data / "ssd")
    return figures


def purged(service: ServiceProcess, count: int, target: str) -> dict[str, float]:
    with open_channel(service.address) as channel:
        control = control_pb2_grpc.ControlServiceStub(channel)
        opened = open_session(channel, over_line=True)
        client = LineClient(opened)
        request = lookup_request(opened.session_id, 0, KEYS_PER_CALL)
        idle = probed(client, request, lambda: time.sleep(IDLE_SECONDS))
        cpu, began, receipt = cpu_seconds(service.process.pid), time.perf_counter(), None

        def purge() -> None:
            nonlocal receipt
            asked = pb.PurgeBlocksRequest(target=TARGETS[target])
            receipt = control.PurgeBlocks(asked, timeout=PURGE_SECONDS_MAX).receipt

        during = probed(client, request, purge)
        seconds = time.perf_counter() - began
        spent = cpu_seconds(service.process.pid) - cpu
    assert receipt is not None
    if receipt.block_count != count or receipt.ssd_forgetting != pb.SSD_FORGETTING_DURABLE:
        raise SystemExit(f"bench_purge: the receipt is not whole: {receipt}")
    return {
        "seconds": seconds,
        **latencies("idle", idle),
        **latencies("purge", during),
        "service_cpu_us_per_block": 1e6 * spent / count,
    }


def probed(client: LineClient, request: bytes, act: Callable[[], None]) -> list[float]:
    """Seconds of the other client's calls while `act` runs."""
    prober = Prober(client, request)
    thread = threading.Thread(target=prober.run)
    thread.start()
    try:
        act()
    finally:
        prober.ended.set()
        thread.join()
    return prober.seconds


def latencies(name: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50_ms": 1e3 * percentile(seconds, 50),
        f"{name}_p99_ms": 1e3 * percentile(seconds, 99),
        f"{name}_max_ms": 1e3 * max(seconds),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Milliseconds are p50, p99 and the longest."""
    print(
        f"{'blocks':>10}  {'by':8}{'seconds':>9}{'idle ms':>22}{'meanwhile ms':>22}  us CPU/block"
    )
    for row in rows:
        idle, meanwhile = (
            "/".join(f"{row[f'{name}_{which}_ms']:.1f}" for which in ("p50", "p99", "max"))
            for name in ("idle", "purge")
        )
        print(
            f"{row['blocks']:>10,}  {row['target']:8}{row['seconds']:>9.2f}{idle:>22}"
            f"{meanwhile:>22}{row['service_cpu_us_per_block']:>14.1f}"
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (KvtierError, OSError, grpc.RpcError) as error:
        sys.exit(f"bench_purge: {error}")
