"""No block is ever stranded, no tier is ever over its capacity, no policy beats the optimum."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_service.replay.belady import optimal_hits
from cache_service.replay.cache import ReplayCache, WriteWhen, Writing
from cache_service.replay.leaf_tier import LeafTier
from cache_service.replay.segments import SEGMENTS_MIN, SegmentTier
from cache_service.replay.trace import NO_BLOCK, Request, Trace
from cache_service.replay.tree import Tree
from storage.policy.admission import AdmissionRule, AdmitAll, AdmitFirstNew
from storage.policy.choice import POLICIES, eviction_order
from storage.policy.write_budget import WriteBudget

BLOCK_TOKENS = 4


@st.composite
def traces(draw: st.DrawFn, size: int = 24, requests_max: int = 30) -> Trace:
    """A random forest, and requests for paths in it."""
    count = draw(st.integers(1, size))
    parents = [draw(st.integers(NO_BLOCK, block - 1)) for block in range(count)]
    requests = []
    for at in range(draw(st.integers(1, requests_max))):
        block = draw(st.integers(0, len(parents) - 1))
        path = []
        while block != NO_BLOCK:
            path.append(block)
            block = parents[block]
        tokens = BLOCK_TOKENS * len(path)
        requests.append(Request(float(at), tokens, path[::-1], len(path)))
    return Trace("random", BLOCK_TOKENS, requests, parents)


def cache_of(
    trace: Trace,
    policy: str,
    ssd: str,
    when: WriteWhen,
    rule: AdmissionRule,
    budget: WriteBudget | None,
) -> ReplayCache:
    tree = Tree(trace.parents)
    host = eviction_order(policy, backed=ssd != "none")
    cache = ReplayCache(tree, host, 4, Writing(when, rule, budget, block_bytes=1))
    if ssd == "blocks":
        order = eviction_order(policy)
        cache.attach(LeafTier(tree, order, 7, lambda block, uses: None, cache.ssd_left))
    if ssd == "segments":
        order = eviction_order(policy)
        tier = SegmentTier(tree, order, 2 * SEGMENTS_MIN + 3, 3, cache.ssd_left, lambda count: None)
        cache.attach(tier)
    return cache


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("ssd", ["none", "blocks", "segments"])
@settings(max_examples=60, deadline=None)
@given(
    trace=traces(),
    when=st.sampled_from(WriteWhen),
    new_max=st.none() | st.integers(0, 3),
    bytes_per_day=st.none() | st.integers(24 * 4, 24 * 60),
)
def test_tiers_hold_whole_prefixes_within_their_capacity(
    policy: str,
    ssd: str,
    trace: Trace,
    when: WriteWhen,
    new_max: int | None,
    bytes_per_day: int | None,
) -> None:
    rule = AdmitAll() if new_max is None else AdmitFirstNew(new_max, 8)
    budget = WriteBudget(bytes_per_day, 8) if bytes_per_day is not None else None
    cache = cache_of(trace, policy, ssd, when, rule, budget)
    hits = 0
    for request in trace.requests:
        leading = [cache.cached[block] for block in request.blocks]
        served = cache.serve(request)
        assert served.hits == (leading.index(0) if 0 in leading else len(leading))
        assert served.host_hits <= served.hits
        hits += served.hits
        cache.check_integrity()
    room = 4 + {"none": 0, "blocks": 7, "segments": 9}[ssd]
    assert hits <= optimal_hits(trace, room)


@settings(max_examples=60, deadline=None)
@given(trace=traces(size=7, requests_max=7), capacity=st.integers(1, 4))
def test_no_choice_of_prefixes_to_keep_beats_the_optimum(trace: Trace, capacity: int) -> None:
    assert _best(trace, capacity) == optimal_hits(trace, capacity)


def _best(trace: Trace, capacity: int) -> int:
    """Every block may be kept or dropped after each request: the best of all, by search."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for request in trace.requests:
        reached: dict[frozenset[int], int] = {}
        for state, hits in states.items():
            found = hits + sum(1 for block in request.blocks if block in state)
            for kept in _prunings(state | set(request.blocks), trace, capacity):
                reached[kept] = max(found, reached.get(kept, 0))
        states = reached
    return max(states.values())


def _prunings(blocks: frozenset[int], trace: Trace, capacity: int) -> set[frozenset[int]]:
    """The largest sets of whole prefixes that fit: less is never better."""
    level = {blocks}
    while len(next(iter(level))) > capacity:
        level = {
            state - {leaf}
            for state in level
            for leaf in state
            if not any(trace.parents[each] == leaf for each in state)
        }
    return level
