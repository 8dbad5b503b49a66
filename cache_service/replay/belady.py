"""Belady's optimum: the hits of whoever knows the future, with the same room.

What is used again farthest in the future leaves first, what is never used again is not kept. A
prefix is used whenever what follows it is, so its next use is never later: with ties broken against
the deeper block this leaves no block stranded, and no policy of prefixes can do better.
"""

import heapq
from collections.abc import Callable, Sequence

from cache_service.replay.trace import Trace

__all__ = ["optimal_hits"]

Step = Callable[[int], None]


def optimal_hits(trace: Trace, capacity: int, step: Step = lambda done: None) -> int:
    """How many block accesses of the trace can be hits at most. `step` is called with
    how many requests are done."""
    nexts = _next_requests(trace)
    never = len(trace.requests)
    count = len(trace.parents)
    next_of = [never] * count
    """Of each cached block, the next request that uses it."""
    cached = bytearray(count)
    heap: list[int] = []
    hits = held = 0
    for done, (request, following) in enumerate(zip(trace.requests, nexts, strict=True), start=1):
        for block, then in zip(request.blocks, following, strict=True):
            if cached[block]:
                hits += 1
                if then == never:
                    cached[block] = 0
                    held -= 1
                    continue
            elif then == never:
                continue
            else:
                cached[block] = 1
                held += 1
            next_of[block] = then
            # Farthest first, and of the same request the deepest, whose number is the greatest.
            heapq.heappush(heap, -(then * count + block))
        while held > capacity:
            then, block = divmod(-heapq.heappop(heap), count)
            if cached[block] and next_of[block] == then:
                cached[block] = 0
                held -= 1
        step(done)
    return hits


def _next_requests(trace: Trace) -> list[Sequence[int]]:
    """For each request and block, the next request that uses the block."""
    never = len(trace.requests)
    upcoming = [never] * len(trace.parents)
    nexts: list[Sequence[int]] = [()] * never
    for at in range(never - 1, -1, -1):
        blocks = trace.requests[at].blocks
        nexts[at] = [upcoming[block] for block in blocks]
        for block in blocks:
            upcoming[block] = at
    return nexts
