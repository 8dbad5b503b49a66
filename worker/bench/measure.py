"""Measures one block size: on one host beside memcpy, to another beside a raw socket, and the same
under TLS.

All passes are the same: a service of its own for each transport, its limit, and the peers that
travel likewise, all taking turns. One thread.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from kvtier.bench.service import cache_service_process
from kvtier.cli.processes import ServiceProcess
from worker.bench.memcpy import Memcpy
from worker.bench.memory import PathMemory
from worker.bench.ours import OurClient
from worker.bench.peer_process import PEERS, PeerKind, PeerProcess, peer_process
from worker.bench.raw_socket import raw_socket
from worker.bench.settings import OTHER_HOST, SAME_HOST, UNDER_TLS, PathSettings
from worker.bench.tls import BenchTls, bench_tls
from worker.bench.turns import Contender, Turn, compared, row_of, seconds, take_turns
from worker.cache_session import TransportChoice

__all__ = ["PassFigures", "measure_other_host", "measure_same_host", "measure_under_tls"]

_ARENA_PREFIXES = 2.5
"""So that every store that counts evicts an older prefix."""
_ARENA_BYTES_MIN = 64 << 20

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PassFigures:
    """One pass as plain data."""

    ours: list[dict[str, Any]]
    """A row a transport."""
    peers: list[dict[str, Any]]
    limit_GBps: list[float]
    """Of each round, both ways together."""


def measure_same_host(settings: PathSettings, block_bytes: int, told: Told) -> PassFigures:
    """Over shared memory, beside memcpy; and the first store into a fresh arena."""
    memory = PathMemory(block_bytes, settings.prefix_bytes)
    limit = Memcpy(memory, settings.single_blocks)
    figures = _pass(settings, memory, limit, SAME_HOST, _peers(same_host=True), told)
    for row, transport in zip(figures.ours, SAME_HOST, strict=True):
        row |= _first_stores(settings, memory, limit, transport, told)
    return figures


def measure_other_host(settings: PathSettings, block_bytes: int, told: Told) -> PassFigures:
    """Over loopback TCP, beside a raw socket."""
    memory = PathMemory(block_bytes, settings.prefix_bytes)
    with raw_socket(memory, settings.single_blocks) as limit:
        return _pass(settings, memory, limit, OTHER_HOST, _peers(same_host=False), told)


def measure_under_tls(settings: PathSettings, block_bytes: int, told: Told) -> PassFigures:
    """Over loopback TCP with mutual TLS, beside a raw TLS socket; no peer has it."""
    memory = PathMemory(block_bytes, settings.prefix_bytes)
    with bench_tls() as tls, raw_socket(memory, settings.single_blocks, tls) as limit:
        return _pass(settings, memory, limit, UNDER_TLS, (), told, tls)


def _peers(*, same_host: bool) -> list[PeerKind]:
    return [kind for kind in PEERS if kind.same_host == same_host]


def _pass(
    settings: PathSettings,
    memory: PathMemory,
    limit: Contender,
    transports: Sequence[TransportChoice],
    kinds: Sequence[PeerKind],
    told: Told,
    tls: BenchTls | None = None,
) -> PassFigures:
    with ExitStack() as stack:
        ours = [
            stack.enter_context(_our_client(settings, memory, transport, tls))
            for transport in transports
        ]
        peers = [_start_peer(settings, memory, kind, stack) for kind in kinds]
        present = [peer for peer in peers if peer is not None and peer.absent is None]
        limits, *others = take_turns([limit, *ours, *present], settings.rounds, told)
    own = others[: len(ours)]
    theirs = iter(others[len(ours) :])
    rows = [
        {"block_bytes": memory.block_bytes, "transport": transport}
        | row_of(turns, memory.size)
        | compared(turns, limits, "limit")
        | {f"limit_{key}": value for key, value in row_of(limits, memory.size).items()}
        for transport, turns in zip(transports, own, strict=True)
    ]
    peer_rows = [
        _peer_row(memory, kind, peer, next(theirs), own[0])
        if peer in present and peer is not None
        else _absent_row(memory, kind, peer)
        for kind, peer in zip(kinds, peers, strict=True)
    ]
    both_ways = [2 * memory.size / (t.store_seconds + t.restore_seconds) / 1e9 for t in limits]
    return PassFigures(rows, peer_rows, both_ways)


def _start_peer(
    settings: PathSettings, memory: PathMemory, kind: PeerKind, stack: ExitStack
) -> PeerProcess | None:
    if settings.peers is None:
        return None
    sizes = memory.block_bytes, memory.count, settings.single_blocks
    return stack.enter_context(peer_process(settings.peers, kind, *sizes))


def _peer_row(
    memory: PathMemory, kind: PeerKind, peer: PeerProcess, turns: list[Turn], ours: list[Turn]
) -> dict[str, Any]:
    return {
        **_peer_name(memory, kind),
        **row_of(turns, memory.size),
        **{f"our_{key}": value for key, value in compared(ours, turns, "it").items()},
        "version": peer.version,
        "absent": None,
    }


def _absent_row(memory: PathMemory, kind: PeerKind, peer: PeerProcess | None) -> dict[str, Any]:
    why = "not looked for: --peers PYTHON names the interpreter that has it"
    return {
        **_peer_name(memory, kind),
        "store_GBps": None,
        "restore_GBps": None,
        "absent": why if peer is None else peer.absent,
    }


def _peer_name(memory: PathMemory, kind: PeerKind) -> dict[str, Any]:
    return {"name": kind.name, "transport": kind.transport, "block_bytes": memory.block_bytes}


@contextmanager
def _service(memory: PathMemory, tls: BenchTls | None) -> Iterator[ServiceProcess]:
    capacity = max(_ARENA_BYTES_MIN, int(_ARENA_PREFIXES * memory.size))
    settings = {
        "host.capacity_bytes": capacity,
        "ssd.enabled": "false",
        "bulk.listen": "127.0.0.1:0",
    }
    under = {} if tls is None else tls.service_settings
    with cache_service_process(settings | under) as service:
        yield service


@contextmanager
def _our_client(
    settings: PathSettings,
    memory: PathMemory,
    transport: TransportChoice,
    tls: BenchTls | None = None,
) -> Iterator[OurClient]:
    with (
        _service(memory, tls) as service,
        OurClient(
            memory, service.address, service.process.pid, transport, settings.single_blocks, tls
        ) as client,
    ):
        yield client


def _first_stores(
    settings: PathSettings,
    memory: PathMemory,
    limit: Memcpy,
    transport: TransportChoice,
    told: Told,
) -> dict[str, float]:
    """The first store of services just started, right after the session opened."""
    took, limits = [], []
    for number in range(settings.fresh_starts):
        told(f"first store into a fresh arena, {number + 1} of {settings.fresh_starts}")
        chain = memory.chain(number)
        with _our_client(settings, memory, transport) as client:
            took.append(seconds(lambda: client.store(chain)))  # noqa: B023
        limits.append(seconds(limit.store))
    return {
        "first_store_GBps": memory.size / median(took) / 1e9,
        "first_store_ratio_to_limit": median(
            limit / own for own, limit in zip(took, limits, strict=True)
        ),
    }
