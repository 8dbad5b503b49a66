"""Waits of benchmarks for what runs in the background: sessions, stores, the SSD's writes.

Each has a bound; past it nothing can be measured. Any thread.
"""

import time
from collections.abc import Callable, Mapping

from kvtier.bench.errors import BenchError
from kvtier.channels import open_channel
from kvtier.cli.processes import ServiceProcess
from kvtier.v1 import cache_pb2, cache_pb2_grpc
from worker.cache_client import CacheClient

__all__ = [
    "WAIT_SECONDS_MAX",
    "until",
    "until_connected",
    "until_registered",
    "until_stored",
    "until_written",
]

WAIT_SECONDS_MAX = 600.0
_POLL_SECONDS = 0.02
_STATS_SECONDS_MAX = 10.0


def until_connected(client: CacheClient) -> None:
    """Until `client` has a session. Raises BenchError."""
    until("the worker's session", client.connected)


def until_registered(client: CacheClient) -> None:
    """Until `client` has registered the arena with its device. Raises BenchError, also where it was
    refused."""
    until("the arena to be registered", lambda: _registered(client.counts()))


def _registered(counts: Mapping[str, int]) -> bool:
    if counts.get("arenas_not_registered"):
        raise BenchError("the system refused to register the arena with the device")
    return counts.get("arenas_registered", 0) > 0


def until_stored(client: CacheClient, blocks: int) -> None:
    """Until `client` has stored so many blocks since it was made. Raises BenchError."""

    def stored() -> bool:
        counts = client.counts()
        if counts.get("refused_blocks"):
            raise BenchError(f"the cache service refused blocks: {counts}")
        return counts.get("stored_blocks", 0) >= blocks

    until("blocks in host memory", stored)


def until_written(service: ServiceProcess) -> None:
    """Until the SSD has every block that is in host memory. Raises BenchError, grpc.RpcError."""
    with open_channel(service.address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)

        def written() -> bool:
            stats = stub.GetStats(cache_pb2.GetStatsRequest(), timeout=_STATS_SECONDS_MAX)
            return not stats.pending_write_count and not stats.host_only_count

        until("blocks on the SSD", written)


def until(what: str, reached: Callable[[], bool]) -> None:
    """Looks again and again. Raises BenchError."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not reached():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {WAIT_SECONDS_MAX:.0f} s")
        time.sleep(_POLL_SECONDS)
