"""One replay: builds the tiers that the options ask for, plays the trace, counts.

Deterministic: the same trace and options give the same result, but for `seconds`.
"""

import time
from collections.abc import Callable

from cache_service.replay.belady import optimal_hits
from cache_service.replay.cache import ReplayCache, SsdTier, WriteWhen, Writing
from cache_service.replay.leaf_tier import LeafTier
from cache_service.replay.options import TOKEN_BYTES, ReplayOptions
from cache_service.replay.result import ReplayResult, WritesTurnedAway
from cache_service.replay.segments import SEGMENTS_MIN, SegmentTier
from cache_service.replay.trace import Trace
from cache_service.replay.tree import Tree
from storage.policy.admission import AdmissionRule, AdmitAll, AdmitFirstNew
from storage.policy.choice import eviction_order
from storage.policy.write_budget import WriteBudget

__all__ = ["OptionsError", "Step", "replay"]

STRANDED_CHECKS = 64
"""How often in a trace every tier is looked through for stranded blocks."""

Step = Callable[[str, int, int], None]
"""Called with what is being done, requests done, requests in all."""


class OptionsError(ValueError):
    """Options that no replay can satisfy; the message says why."""

    reason = "OPTIONS_UNUSABLE"


def replay(
    trace: Trace,
    options: ReplayOptions,
    with_optimum: bool = True,
    step: Step = lambda doing, done, total: None,
) -> ReplayResult:
    """Plays the trace. Raises OptionsError."""
    started = time.monotonic()
    run = _Run(trace, options)
    run.play(step)
    best = None
    if with_optimum:
        capacity = run.host_capacity + (run.ssd_capacity or 0)
        total = len(trace.requests)
        best = optimal_hits(trace, capacity, lambda done: step("optimum", done, total))
    return run.result(best, time.monotonic() - started)


class _Run:
    """The parts of one replay, and what it counts."""

    def __init__(self, trace: Trace, options: ReplayOptions) -> None:
        self._trace = trace
        self._options = options
        self.host_capacity = options.host.of(trace.unique_blocks)
        self.ssd_capacity = options.ssd.of(trace.unique_blocks) if options.ssd is not None else None
        self._block_bytes = options.block_bytes or TOKEN_BYTES * trace.block_tokens
        self._admission = self._rule()
        self._budget = self._write_budget()
        tree = Tree(trace.parents)
        # With writes at commit this is the service's own order; one that writes late also lets what
        # it would have to write stay a little longer.
        late = options.ssd is not None and options.write_when is WriteWhen.LEAVING
        self._cache = ReplayCache(
            tree,
            eviction_order(options.policy, backed=late),
            self.host_capacity,
            Writing(options.write_when, self._admission, self._budget, self._block_bytes),
        )
        if self.ssd_capacity is not None:
            self._cache.attach(self._ssd(tree, self.ssd_capacity))
        self._accesses = self._hits = self._host_hits = self._tokens = self._stranded = 0

    def _rule(self) -> AdmissionRule:
        new_max = self._options.admission.first_new_max
        if new_max is None:
            return AdmitAll()
        return AdmitFirstNew(new_max, seen_count_max=self._trace.unique_blocks)

    def _write_budget(self) -> WriteBudget | None:
        per_day = self._options.write_budget_bytes
        if per_day is None:
            return None
        return WriteBudget(per_day, names_max=self._trace.unique_blocks)

    def _ssd(self, tree: Tree, capacity: int) -> SsdTier:
        order = eviction_order(self._options.policy)
        size = self._options.segment_blocks
        if size is None:
            return LeafTier(tree, order, capacity, lambda block, uses: None, self._cache.ssd_left)
        if capacity < SEGMENTS_MIN * size:
            raise OptionsError(
                f"{capacity} blocks on the SSD are fewer than {SEGMENTS_MIN} segments of {size};"
                " make --ssd larger or --segment-blocks smaller"
            )
        budget, block_bytes = self._budget, self._block_bytes

        def relogged(blocks: int) -> None:
            if budget is not None:
                budget.charge(blocks * block_bytes)

        return SegmentTier(tree, order, capacity, size, self._cache.ssd_left, relogged)

    def play(self, step: Step) -> None:
        requests = self._trace.requests
        check_every = max(1, len(requests) // STRANDED_CHECKS)
        serve = self._cache.serve
        for done, request in enumerate(requests, start=1):
            served = serve(request)
            self._hits += served.hits
            self._host_hits += served.host_hits
            self._accesses += request.block_count
            self._tokens += request.input_tokens
            step("replay", done, len(requests))
            if done % check_every == 0 or done == len(requests):
                self._stranded = max(self._stranded, self._cache.stranded())

    def result(self, best: int | None, seconds: float) -> ReplayResult:
        ssd = self._cache.ssd
        return ReplayResult(
            trace=self._trace.name,
            policy=self._options.policy,
            admission=self._options.admission.name,
            write_when=self._options.write_when.value,
            block_tokens=self._trace.block_tokens,
            host_capacity_blocks=self.host_capacity,
            ssd_capacity_blocks=self.ssd_capacity,
            unique_blocks=self._trace.unique_blocks,
            requests=len(self._trace.requests),
            accesses=self._accesses,
            hit_blocks=self._hits,
            host_hit_blocks=self._host_hits,
            input_tokens=self._tokens,
            opt_hit_blocks=best,
            ssd_block_writes=ssd.write_count if ssd is not None else 0,
            ssd_relogged_blocks=ssd.relogged_count if ssd is not None else 0,
            block_bytes=self._block_bytes,
            host_evictions=self._cache.host.evicted_count,
            ssd_evictions=ssd.evicted_count if ssd is not None else 0,
            stranded_blocks=self._stranded,
            refused=self._refused(),
            over_budget=self._over_budget(),
            seconds=seconds,
        )

    def _refused(self) -> WritesTurnedAway | None:
        rule = self._admission
        if not isinstance(rule, AdmitFirstNew) or self.ssd_capacity is None:
            return None
        return WritesTurnedAway(rule.refused_blocks, rule.lost_hits)

    def _over_budget(self) -> WritesTurnedAway | None:
        budget = self._budget
        if budget is None or self.ssd_capacity is None:
            return None
        return WritesTurnedAway(budget.turned_away_blocks, budget.lost_hits)
