"""PrefillRate: what computing prompt tokens costs, measured in every step that computes some.

    seconds = a x tokens + b x (tokens x the context each attends to)

a and b are the least squares over late steps, neither below nothing; sums fade with the time spent
computing, so that what was computed `FADE_SECONDS` ago weighs a third of what is computed now.
Invariant: nothing is told before something was measured. Written and read on the engine's thread.
"""

import math

__all__ = ["PrefillRate", "pairs"]

FADE_SECONDS = 10.0

DETERMINED = 1e-6
"""Steps this much alike say nothing of how the two costs share."""


class PrefillRate:
    """Seconds of prefill, over all prompts together."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        # Sums of products: tokens (t), attended pairs (p), seconds (s).
        self._tt = self._tp = self._pp = self._ts = self._ps = 0.0

    def computed(self, token_count: int, pair_count: int, seconds: float) -> None:
        """So many tokens, which attended to so many positions in all, took so long."""
        if token_count < 1 or seconds <= 0:
            return
        fade = math.exp(-seconds / FADE_SECONDS)
        t, p, s = float(token_count), float(pair_count), seconds
        self._tokens = self._tokens * fade + t
        self._seconds = self._seconds * fade + s
        self._tt = self._tt * fade + t * t
        self._tp = self._tp * fade + t * p
        self._pp = self._pp * fade + p * p
        self._ts = self._ts * fade + t * s
        self._ps = self._ps * fade + p * s

    @property
    def tokens_per_second(self) -> float | None:
        """Late tokens by what they took; None: nothing was measured."""
        return self._tokens / self._seconds if self._seconds else None

    def seconds(self, start: int, end: int) -> float | None:
        """What the tokens at positions `[start, end)` take; None: nothing was measured."""
        if not self._seconds:
            return None
        token_cost, pair_cost = self._costs()
        return token_cost * (end - start) + pair_cost * pairs(start, end)

    def _costs(self) -> tuple[float, float]:
        determinant = self._tt * self._pp - self._tp**2
        if determinant > DETERMINED * self._tt * self._pp:
            token_cost = (self._pp * self._ts - self._tp * self._ps) / determinant
            pair_cost = (self._tt * self._ps - self._tp * self._ts) / determinant
            if token_cost >= 0 and pair_cost >= 0:
                return token_cost, pair_cost
            if token_cost < 0:
                return 0.0, self._ps / self._pp
        return self._seconds / self._tokens, 0.0


def pairs(start: int, end: int) -> int:
    """Positions that the tokens `[start, end)` attend to, added up: each to all up to itself."""
    return (end * (end + 1) - start * (start + 1)) // 2
