"""A bucket that fills by the minute: how much may be asked for, and when again.

Invariant: over any time, what was taken and not given back is at most the capacity, what filled in
meanwhile, and one request more: one that is larger than the bucket passes when it is full, and
leaves it in debt. Exact: whole millionths, in integers. Frozen data, pure, any thread.
"""

from dataclasses import dataclass, replace

__all__ = ["MICRO", "TokenBucket"]

MICRO = 1_000_000
"""Weights are counted in millionths."""

_MINUTE_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class TokenBucket:
    per_minute: int
    """Capacity, and what fills in each minute."""
    level: int
    """In millionths, times _MINUTE_NS, at `time_ns`; below zero: debt."""
    time_ns: int

    @classmethod
    def filled(cls, per_minute: int, time_ns: int, used_micro: int = 0) -> "TokenBucket":
        """One that is full but for what was `used_micro`."""
        return cls(per_minute, (per_minute * MICRO - used_micro) * _MINUTE_NS, time_ns)

    def wait_ns(self, weight_micro: int, now_ns: int) -> int:
        """How long until so much may be taken; 0: now."""
        needed = min(weight_micro * _MINUTE_NS, self._capacity)
        short = needed - self._at(now_ns).level
        return max(0, -(-short // (self.per_minute * MICRO)))

    def taken(self, weight_micro: int, now_ns: int) -> "TokenBucket":
        """After so much was taken, whether or not it fits; negative: given back."""
        now = self._at(now_ns)
        level = min(now.level - weight_micro * _MINUTE_NS, self._capacity)
        return replace(now, level=level)

    @property
    def _capacity(self) -> int:
        return self.per_minute * MICRO * _MINUTE_NS

    def _at(self, now_ns: int) -> "TokenBucket":
        passed = max(0, now_ns - self.time_ns)
        level = min(self._capacity, self.level + passed * self.per_minute * MICRO)
        return replace(self, level=level, time_ns=max(now_ns, self.time_ns))
