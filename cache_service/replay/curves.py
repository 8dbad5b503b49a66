"""Hit rate against capacity, for every policy and the optimum: one tier, the same trace."""

import dataclasses
from collections.abc import Mapping

from cache_service.replay.belady import optimal_hits
from cache_service.replay.options import Amount, ReplayOptions
from cache_service.replay.run import Step, replay
from cache_service.replay.trace import Trace
from storage.policy.choice import POLICIES

__all__ = ["OPTIMUM", "SHARES", "Curves", "curves"]

SHARES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0)
"""Of the unique blocks. Closer where the curves bend."""

OPTIMUM = "optimum"

Curves = Mapping[str, list[tuple[int, float]]]
"""Policy -> (capacity in blocks, block hit rate)."""


def curves(
    trace: Trace,
    step: Step = lambda doing, done, total: None,
    shares: tuple[float, ...] = SHARES,
) -> Curves:
    """Replays the trace once for each policy and share."""
    accesses = sum(request.block_count for request in trace.requests)
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in (*POLICIES, OPTIMUM)}
    for done, share in enumerate(shares):
        room = Amount(share=share)
        capacity = room.of(trace.unique_blocks)
        for policy in POLICIES:
            step(f"curve of {policy}", done, len(shares))
            options = dataclasses.replace(ReplayOptions(), policy=policy, host=room)
            result = replay(trace, options, with_optimum=False)
            found[policy].append((capacity, result.block_rate(result.hit_blocks)))
        step("curve of the optimum", done, len(shares))
        found[OPTIMUM].append((capacity, round(optimal_hits(trace, capacity) / accesses, 4)))
    return found
