"""Where loading a prefix stops paying. Pure.

    load(k)      = (bytes that are read first + bytes of blocks 0..k on the SSD) / rate
    recompute(k) = blocks behind k x what computing one costs its caller
    cut where load(k) + recompute(k) is least, if that wins enough over loading all

The rate is payload bytes, so reading, checking and decoding are all in it. Blocks in host memory
cost nothing here. Invariant: without the caller's cost nothing is cut; a slower disk or a cheaper
computation never loads more. `docs/adr/0014-load-or-recompute.md` has the reasons.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pace", "worth_loading"]

GAIN_SECONDS_MIN = 0.005
GAIN_SHARE_MIN = 0.2
"""Less than this, of what loading all would take, is within what the two rates are wrong by; then
loading goes first, for it leaves the processor to others."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known of the SSD, for one acquire, at one moment."""

    bytes_per_second: float | None
    """None: not measured."""
    waiting_bytes: int = 0
    """Read for others before all of this acquire's are."""
    silent_seconds: float = 0.0
    """Since anything came, although it was asked for. As long, at least, it is taken to go on."""

    def seconds(self, read_bytes: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """Until so many bytes are there, as far as it is known; 0 bytes take no time."""
        least = np.where(read_bytes > 0, self.silent_seconds, 0.0)
        if self.bytes_per_second is None:
            return least
        # Turns are fair: nobody gets more than this one before its end.
        waiting_bytes = np.minimum(read_bytes, self.waiting_bytes)
        taken = (waiting_bytes + read_bytes) / max(self.bytes_per_second, 1e-9)
        return np.maximum(taken, least)


def worth_loading(
    on_ssd: "NDArray[np.bool_]", block_bytes: int, recompute_seconds: float, pace: Pace
) -> int:
    """How many leading blocks to load, of those that follow each other from the next one on.

    `on_ssd[i]`: block i would have to be read. `recompute_seconds`: of one block.
    """
    count = len(on_ssd)
    reads = np.cumsum(on_ssd)
    if not count or not reads[-1]:
        return count
    load = pace.seconds(np.concatenate(([0], reads)) * float(block_bytes))
    total = load + recompute_seconds * np.arange(count, -1, -1)
    best = count - int(np.argmin(total[::-1]))  # of equals the longest
    gain = total[count] - total[best]
    return best if gain > max(GAIN_SECONDS_MIN, GAIN_SHARE_MIN * total[count]) else count
