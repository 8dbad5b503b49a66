"""BudgetNote: what the SSD's write budget had left, and when, as it is kept with the SSD tier.

    spend -> note -> the tier keeps it with what it writes next -> a start -> resume

A budget is the day's, not the process's: a start goes on from the note with what the time since
then has earned. Within one life of the machine that is its own clock's time, which nobody sets;
across a reboot the wall clock's, of which a bucket takes an hour at most and nothing where it went
back. Invariant: pure but for `Moment.now`; the bytes are on disk, so a kind is frozen. Any thread.
"""

import functools
import struct
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["BudgetNote", "Moment"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_KIND = 1
_NOTE = struct.Struct("<B16sqdd")


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, by the two clocks that outlive a process."""

    boot_id: bytes
    """Which life of the machine; 16 bytes."""
    boot_seconds: float
    """Since that began, sleep included."""
    wall_seconds: float
    """Unix time."""

    @classmethod
    def now(cls) -> Self:
        return cls(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())

    def seconds_until(self, later: "Moment") -> float:
        """Never negative."""
        if self.boot_id == later.boot_id:
            return max(0.0, later.boot_seconds - self.boot_seconds)
        return max(0.0, later.wall_seconds - self.wall_seconds)


@functools.cache
def _boot_id() -> bytes:
    return uuid.UUID(_BOOT_ID.read_text().strip()).bytes


@dataclass(frozen=True, slots=True)
class BudgetNote:
    """The bucket at a moment."""

    left_bytes: int
    """Below zero where recycling wrote more than there was."""
    at: Moment

    def pack(self) -> bytes:
        at = self.at
        return _NOTE.pack(_KIND, at.boot_id, self.left_bytes, at.boot_seconds, at.wall_seconds)

    @classmethod
    def parse(cls, raw: bytes) -> "BudgetNote | None":
        """None for no note, or one of another kind."""
        if len(raw) != _NOTE.size or raw[0] != _KIND:
            return None
        _, boot_id, left_bytes, boot_seconds, wall_seconds = _NOTE.unpack(raw)
        return cls(left_bytes, Moment(boot_id, boot_seconds, wall_seconds))
