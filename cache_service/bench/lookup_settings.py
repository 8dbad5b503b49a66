"""What the lookup benchmark measures. Frozen data."""

from dataclasses import dataclass
from pathlib import Path

from kvtier.bench.errors import BenchError

__all__ = ["TRANSPORTS", "LookupSettings"]

TRANSPORTS = ("line", "unix", "loopback")
"""The session line, gRPC through a Unix socket, gRPC over TCP on loopback."""


@dataclass(frozen=True, slots=True)
class LookupSettings:
    """One run."""

    directory: Path
    """An existing directory for the indexes; everything made in it is removed."""
    cached_blocks: tuple[int, ...] = (10_000, 1_000_000, 5_000_000)
    keys_per_call: tuple[int, ...] = (256, 2048)
    clients: tuple[int, ...] = (1, 8)
    rounds: int = 5
    round_seconds: float = 1.0
    transports: tuple[str, ...] = ("line", "unix")
    """Of `TRANSPORTS`, how the clients call."""

    def __post_init__(self) -> None:
        """Raises BenchError for what cannot be measured."""
        if not (self.cached_blocks and self.keys_per_call and self.clients):
            raise BenchError("name at least one count of blocks, of keys and of clients")
        if min(*self.keys_per_call, *self.clients, self.rounds) < 1 or self.round_seconds <= 0:
            raise BenchError("keys, clients, rounds and their seconds are more than 0")
        if not self.transports or not set(self.transports) <= set(TRANSPORTS):
            raise BenchError(f"transports are some of {', '.join(TRANSPORTS)}")
        if min(self.cached_blocks) < max(self.keys_per_call):
            raise BenchError("every key of a call is to be present: cache more blocks than that")
