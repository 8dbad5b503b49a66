"""What the storage benchmark measures: sizes, turns, threads. Frozen data."""

from dataclasses import dataclass
from pathlib import Path

from storage.errors import CapacityError

__all__ = ["BenchSettings"]

_GIB = 1 << 30
_MIB = 1 << 20
SEGMENTS_MIN = 6
"""One open, one free, and some to go round."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """One run."""

    directory: Path
    """An existing directory on the file system in question; everything made in it is removed."""
    block_bytes: tuple[int, ...] = (256 << 10, 1 << 20, 2 << 20, 8 << 20)
    rounds: int = 6
    """Turns of each; figures are medians over them."""
    round_bytes: int = 512 * _MIB
    """Payload moved in one turn, each way."""
    segment_bytes: int = 256 * _MIB
    capacity_bytes: int = 2 * _GIB
    threads: int = 4
    """Of fio, and of what copies out of host memory; the tier has as many as it takes by itself."""
    batch_bytes: int = 64 * _MIB
    batch_blocks: int = 256
    """An append takes as many blocks as these two allow."""
    relog_share: float = 0.02
    """Of each recycled segment's blocks, how many are still wanted and written again."""
    single_blocks: int = 100
    """Blocks read, and written, one at a time for p50 and p99."""
    rocksdb_bytes: int = 256 * _MIB
    recovery_blocks: tuple[int, ...] = (100_000, 1_000_000)
    encrypted: bool = False
    """Each block size a second time, encrypted."""

    def __post_init__(self) -> None:
        """Raises CapacityError for what cannot be measured."""
        if self.capacity_bytes // self.segment_bytes < SEGMENTS_MIN:
            raise CapacityError(f"the ring needs at least {SEGMENTS_MIN} segments")
        if self.round_bytes > self.capacity_bytes // 2:
            raise CapacityError("a turn may move at most half of the ring")
        if max(self.block_bytes) > self.segment_bytes // 4:
            raise CapacityError("a segment must hold at least 4 blocks")

    @property
    def disk_bytes(self) -> int:
        """Most that lies on the disk at one time: ring, fio's file, RocksDB's values."""
        return 2 * self.capacity_bytes + 3 * self.rocksdb_bytes
