"""How fast does a prefix get into the cache and back, compared with plain memory copies?

    python benchmarks/bench_path.py [--blocks 2MiB,256KiB] [--prefix 256MiB] [--rounds 5]
                                    [--transport shared_memory|stream] [--json]

A real service process, the worker's own client, real checksums. Each round stores a fresh prefix
(reserve, copy, commit) into memory that was touched before, restores it (acquire, copy, verify,
release), and copies as many bytes on one thread from one private buffer to another. The figures are
medians over the rounds, and ratios within them, because machines are shared.

The SSD is off: this measures the way between worker and host memory, `bench_storage` the disk.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import grpc
import numpy as np
from numpy.typing import NDArray
from pydantic import ByteSize, TypeAdapter

from kvtier.keys import BlockHash, NamespaceId
from kvtier.v1 import cache_pb2, cache_pb2_grpc
from worker.cache_client import CacheClient

LIMITS = {2 * 1024**2: 0.9, 256 * 1024: 0.75}
"""Share of a one-thread copy that store and restore have to reach, by block size."""


@dataclass(frozen=True)
class PathFigures:
    transport: str
    block_bytes: int
    prefix_bytes: int
    rounds: int
    memcpy_bytes_per_second: float
    store_bytes_per_second: float
    restore_bytes_per_second: float
    store_ratio: float
    """Median over the rounds of store speed / copy speed of the same round."""
    restore_ratio: float
    ratio_limit: float | None
    lookup_256_seconds_p50: float


@contextmanager
def service(directory: str, capacity_bytes: int) -> Iterator[str]:
    """A cache service process; gives its address."""
    settings = {
        "listen": "127.0.0.1:0",
        "data_directory": directory,
        "host.capacity_bytes": capacity_bytes,
        "ssd.enabled": "false",
        "log.level": "WARNING",
    }
    flags = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    command = [sys.executable, "-m", "cache_service", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the cache service did not start")
            yield str(json.loads(line)["listen"])
        finally:
            process.terminate()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def chain_of(round_number: int, count: int) -> list[BlockHash]:
    prefix = round_number.to_bytes(8, "big", signed=True)
    return [BlockHash(prefix + i.to_bytes(24, "big")) for i in range(count)]


def blocks_of(data: NDArray[np.uint8], block_bytes: int) -> list[NDArray[np.uint8]]:
    return [data[o : o + block_bytes] for o in range(0, len(data), block_bytes)]


def measure(transport: str, block_bytes: int, prefix_bytes: int, rounds: int) -> PathFigures:
    count = prefix_bytes // block_bytes
    size = count * block_bytes
    source = np.random.default_rng(7).integers(0, 256, size, dtype=np.uint8)
    target, plain = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    sources, targets, plains = (blocks_of(data, block_bytes) for data in (source, target, plain))

    def copy() -> None:
        for one, other in zip(sources, plains, strict=True):
            np.copyto(other, one)

    times: list[tuple[float, float, float]] = []
    # Room for two prefixes: the older one is evicted by every store from the third on.
    with (
        tempfile.TemporaryDirectory(prefix="kvt-") as directory,
        service(directory, 3 * size) as address,
    ):
        client = CacheClient(
            address,
            NamespaceId(bytes(32)),
            block_bytes,
            64,
            "bench",
            "stream" if transport == "stream" else "shared_memory",
            store_seconds_max=60.0,
        )
        for number in range(-2, rounds):
            chain = chain_of(number, count)
            target[:] = 0
            store = seconds(lambda chain=chain: stored(client, chain, sources))  # type: ignore[misc]
            restore = seconds(lambda chain=chain: restored(client, chain, targets))  # type: ignore[misc]
            times.append((seconds(copy), store, restore))
            if not np.array_equal(source, target):
                raise SystemExit("a restored byte differs")
        lookup = lookup_seconds(address, block_bytes, rounds)
        client.close()
    return figures(transport, block_bytes, size, times[2:], lookup)


def stored(client: CacheClient, chain: list[BlockHash], pages: list[NDArray[np.uint8]]) -> None:
    result = client.store("bench", chain, pages)
    if result.stored_count != len(chain):
        raise SystemExit(f"not everything was stored: {result}, {client.counts()}")


def restored(client: CacheClient, chain: list[BlockHash], pages: list[NDArray[np.uint8]]) -> None:
    result = client.restore("bench", chain, pages, 60.0)
    if len(result.tiers) != len(chain):
        raise SystemExit(f"only {len(result.tiers)} blocks restored: {client.counts()}")


def lookup_seconds(address: str, block_bytes: int, rounds: int) -> float:
    """Median time of a lookup of 256 present-or-absent keys in one call."""
    with grpc.insecure_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        opened = stub.OpenSession(
            cache_pb2.OpenSessionRequest(
                key_scheme_version=1,
                client_name="bench-lookup",
                namespace_id=bytes(32),
                block_tokens=64,
                block_bytes=block_bytes,
                transport=cache_pb2.TRANSPORT_STREAM,
            )
        )
        request = cache_pb2.LookupPrefixRequest(
            session_id=opened.session_id, block_hashes=b"".join(chain_of(rounds - 1, 256))
        )
        return statistics.median(seconds(lambda: stub.LookupPrefix(request)) for _ in range(200))


def figures(
    transport: str,
    block_bytes: int,
    size: int,
    times: list[tuple[float, float, float]],
    lookup: float,
) -> PathFigures:
    copies, stores, restores = zip(*times, strict=True)
    return PathFigures(
        transport=transport,
        block_bytes=block_bytes,
        prefix_bytes=size,
        rounds=len(times),
        memcpy_bytes_per_second=size / statistics.median(copies),
        store_bytes_per_second=size / statistics.median(stores),
        restore_bytes_per_second=size / statistics.median(restores),
        store_ratio=statistics.median(c / s for c, s, _ in times),
        restore_ratio=statistics.median(c / r for c, _, r in times),
        ratio_limit=LIMITS.get(block_bytes) if transport == "shared_memory" else None,
        lookup_256_seconds_p50=lookup,
    )


def show(result: PathFigures) -> None:
    limit = f"  (limit {result.ratio_limit:.2f})" if result.ratio_limit else ""
    print(
        f"{result.block_bytes // 1024:6d} KiB blocks, {result.transport}: "
        f"store {result.store_bytes_per_second / 1e9:5.2f} GB/s = {result.store_ratio:.2f}x, "
        f"restore {result.restore_bytes_per_second / 1e9:5.2f} GB/s = {result.restore_ratio:.2f}x "
        f"of one-thread memcpy {result.memcpy_bytes_per_second / 1e9:5.2f}{limit}; "
        f"lookup of 256 keys p50 {result.lookup_256_seconds_p50 * 1e3:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", default="2MiB,256KiB", help="block sizes, by comma")
    parser.add_argument("--prefix", default="256MiB", help="size of the prefix")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transport", default="shared_memory", choices=("shared_memory", "stream"))
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    read_size = TypeAdapter(ByteSize).validate_python
    prefix_bytes = int(read_size(arguments.prefix))
    results = []
    for text in arguments.blocks.split(","):
        results.append(
            measure(arguments.transport, int(read_size(text)), prefix_bytes, arguments.rounds)
        )
        if not arguments.json:
            show(results[-1])
    if arguments.json:
        machine = {"machine": platform.machine(), "system": platform.platform()}
        print(json.dumps({**machine, "results": [asdict(r) for r in results]}, indent=2))


if __name__ == "__main__":
    main()
