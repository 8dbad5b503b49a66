"""Turns: limit, ours and peers move the same prefix one right after the other, again and again.

Who goes first changes from round to round, because what was idle a moment ago favours the first.
The figures are medians over rounds, and ratios within them. One thread.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from kvtier.bench.figures import percentile

__all__ = ["WARM_UPS", "Contender", "Turn", "compared", "row_of", "seconds", "take_turns"]

WARM_UPS = 3
"""Rounds that do not count: memory is touched and the cache full after them."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one contender did in one round."""

    store_seconds: float
    restore_seconds: float
    single_seconds: tuple[float, ...]
    """Restores of one block."""
    cpu_seconds: Mapping[str, float]
    """By "store_client", "store_service", "restore_client", "restore_service"; empty: unknown."""


class Contender(Protocol):
    """Somebody who takes turns."""

    def turn(self, number: int) -> Turn:
        """Stores a fresh prefix, restores it, then some of its blocks one by one; verified."""
        ...


def take_turns(
    contenders: Sequence[Contender], rounds: int, told: Callable[[str], None]
) -> list[list[Turn]]:
    """The turns of each contender, warm-ups left out."""
    turns: list[list[Turn]] = [[] for _ in contenders]
    for number in range(WARM_UPS + rounds):
        told("warming up" if number < WARM_UPS else f"turn {number - WARM_UPS + 1} of {rounds}")
        for step in range(len(contenders)):
            who = (number + step) % len(contenders)
            turn = contenders[who].turn(number)
            if number >= WARM_UPS:
                turns[who].append(turn)
    return turns


def row_of(turns: Sequence[Turn], size: int) -> dict[str, Any]:
    """Speeds and latencies of one contender; `size` bytes went each way in a turn."""
    singles = [each for turn in turns for each in turn.single_seconds]
    row: dict[str, Any] = {
        "store_GBps": size / median(turn.store_seconds for turn in turns) / 1e9,
        "restore_GBps": size / median(turn.restore_seconds for turn in turns) / 1e9,
        "one_block_restore_p50_us": percentile(singles, 50) * 1e6,
        "one_block_restore_p99_us": percentile(singles, 99) * 1e6,
    }
    gigabytes = len(turns) * size / 1e9
    for name in turns[0].cpu_seconds:
        row[f"{name}_cpu_seconds_per_GB"] = sum(t.cpu_seconds[name] for t in turns) / gigabytes
    return row


def compared(ours: Sequence[Turn], other: Sequence[Turn], to: str) -> dict[str, float]:
    """How many times as fast as `other` ours was in the same round, by the median."""
    pairs = list(zip(ours, other, strict=True))
    return {
        f"store_ratio_to_{to}": median(o.store_seconds / u.store_seconds for u, o in pairs),
        f"restore_ratio_to_{to}": median(o.restore_seconds / u.restore_seconds for u, o in pairs),
    }


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
