"""How fast workers compute and load, from what their answers say of their first tokens.

    TTFT = waiting + loading + computing, each told by the worker

An exponential mean over a worker's last answers; an answer that computed next to nothing teaches
nothing. Invariant: what was learned counts for `RATE_SECONDS_MAX` and no longer. Who is known by
nothing so fresh is taken to be as fast as the fastest that is: so it is asked, and known again. A
worker that was slow once would else never be asked, and so be slow for ever. One writer, the event
loop.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from gateway.routing import Rates
from kvtier.v1 import inference_pb2 as pb

__all__ = ["RATE_SECONDS_MAX", "FleetRates"]

RATE_SECONDS_MAX = 60.0
"""Long enough for a rate to pay, short beside how long a machine is slow for a reason."""

WEIGHT = 0.2
"""Of the newest answer."""

TOKENS_MIN = 32
"""Computed or loaded; fewer say more of a step's fixed costs than of a rate."""


@dataclass(frozen=True, slots=True)
class _Learned:
    """Of one worker, one rate: tokens a second."""

    rate: float
    learned_at: float


class FleetRates:
    """By worker, what its last answers say of each rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, dict[str, _Learned]] = {}

    def learn(self, worker: str, usage: pb.GenerateUsage) -> None:
        if not usage.HasField("ttft"):
            return
        tiers = usage.tokens.hit_tokens_by_tier
        loading = usage.load_time.ToNanoseconds() / 1e9
        waiting = usage.queue_time.ToNanoseconds() / 1e9
        computing = usage.ttft.ToNanoseconds() / 1e9 - loading - waiting
        rates = self.of(worker)
        self._take(worker, "prefill", rates.prefill, usage.tokens.miss_tokens, computing)
        # A load of both tiers says nothing of either.
        if not tiers.ssd:
            self._take(worker, "host", rates.host, tiers.host, loading)
        if not tiers.host:
            self._take(worker, "ssd", rates.ssd, tiers.ssd, loading)

    def best(self) -> Rates:
        """The best fresh rates of all workers; the defaults where nobody has one."""
        since = self._clock() - RATE_SECONDS_MAX
        best: dict[str, float] = {}
        for kinds in self._of.values():
            for kind, each in kinds.items():
                if each.learned_at >= since:
                    best[kind] = max(each.rate, best.get(kind, 0.0))
        return Rates(**best)

    def of(self, worker: str, best: Rates | None = None) -> Rates:
        """Its own where they are fresh, else the best; `best`: where it is known already."""
        since = self._clock() - RATE_SECONDS_MAX
        kinds = self._of.get(worker, {})
        own = {kind: each.rate for kind, each in kinds.items() if each.learned_at >= since}
        return replace(best or self.best(), **own)

    def forget(self, worker: str) -> None:
        """It went away; what comes back may be another machine."""
        self._of.pop(worker, None)

    def _take(self, worker: str, kind: str, before: float, tokens: int, seconds: float) -> None:
        if tokens < TOKENS_MIN or seconds <= 0:
            return
        rate = (1 - WEIGHT) * before + WEIGHT * tokens / seconds
        self._of.setdefault(worker, {})[kind] = _Learned(rate, self._clock())
