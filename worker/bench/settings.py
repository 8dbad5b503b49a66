"""What the path benchmark measures: sizes, turns, transports. Frozen data."""

from dataclasses import dataclass
from pathlib import Path

from kvtier.bench.errors import BenchError
from worker.cache_session import TransportChoice

__all__ = ["OTHER_HOST", "SAME_HOST", "UNDER_TLS", "PathSettings"]

SAME_HOST: tuple[TransportChoice, ...] = ("shared_memory",)
OTHER_HOST: tuple[TransportChoice, ...] = ("bulk", "stream")
"""Measured over loopback TCP, beside a raw socket. Each transport has a row for each size."""
UNDER_TLS: tuple[TransportChoice, ...] = ("bulk",)
"""Measured over loopback TCP with mutual TLS, beside a raw TLS socket, where that is asked for."""

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PathSettings:
    """One run."""

    block_bytes: tuple[int, ...] = (256 << 10, 1 * _MIB, 2 * _MIB, 8 * _MIB)
    prefix_bytes: int = 256 * _MIB
    rounds: int = 5
    """Turns of each; figures are medians over them."""
    single_blocks: int = 60
    """Blocks restored one at a time in each turn, for p50 and p99."""
    fresh_starts: int = 5
    """Services started to measure their first store."""
    peers: Path | None = None
    """The Python that has the peers' packages; None: no peer is measured."""
    tls: bool = False
    """Also what is `UNDER_TLS`."""

    def __post_init__(self) -> None:
        """Raises BenchError for what cannot be measured."""
        if min(self.rounds, self.single_blocks, self.fresh_starts) < 1:
            raise BenchError("rounds, blocks one at a time and fresh starts are at least 1 each")
        if not self.block_bytes or min(self.block_bytes) < 1:
            raise BenchError("name a block size of at least a byte")
        if self.prefix_bytes < max(self.block_bytes):
            raise BenchError("the prefix is shorter than a block: give a larger --prefix")
