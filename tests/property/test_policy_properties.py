"""Every eviction policy chooses what its plain model chooses, whatever is offered and withheld."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.policy.choice import POLICIES, eviction_order
from storage.policy.ghosts import Ghosts
from storage.policy.order import EvictionOrder
from tests.property.policy_models import MODELS, PolicyModel

SLOTS = 9
NAMES = 14

MOVES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "insert",
                "insert",
                "insert",
                "use",
                "use",
                "refresh",
                "offer",
                "offer",
                "withhold",
                "remove",
                "evict",
                "evict",
            ]
        ),
        st.integers(0, SLOTS - 1),
        st.integers(0, NAMES - 1),
        st.integers(1, 2),
    ),
    max_size=120,
)


class Pair:
    """An order and its model, moved together."""

    def __init__(self, order: EvictionOrder, model: PolicyModel) -> None:
        self.order = order
        self.model = model
        self.names: dict[int, int] = {}
        self.offered: set[int] = set()

    def insert(self, slot: int, name: int, uses: int) -> None:
        if slot in self.names or name in self.names.values():
            return
        self.names[slot] = name
        self.order.insert(slot, name, uses)
        self.model.insert(slot, name, uses)

    def leave(self, slot: int, evicted: bool) -> None:
        for side in (self.order, self.model):
            (side.evict if evicted else side.remove)(slot)
        del self.names[slot]
        self.offered.discard(slot)

    def move(self, what: str, slot: int, name: int, uses: int) -> None:
        if what == "insert":
            self.insert(slot, name, uses)
        elif what == "evict":
            victim = self.order.victim()
            assert victim == self.model.victim(self.offered)
            assert victim == self.order.victim()
            if victim is not None:
                self.leave(victim, evicted=True)
        elif slot not in self.names:
            assert slot not in self.order
        elif what == "remove":
            self.leave(slot, evicted=False)
        elif what == "offer":
            self.order.offer(slot)
            self.offered.add(slot)
        elif what == "withhold":
            self.order.withhold(slot)
            self.offered.discard(slot)
        else:
            for side in (self.order, self.model):
                getattr(side, what)(slot)

    def check(self) -> None:
        assert len(self.order) == len(self.names)
        assert all(slot in self.order for slot in self.names)
        self.order.check_integrity()


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=120, deadline=None)
@given(moves=MOVES)
def test_victims_are_those_of_the_plain_model(
    policy: str, moves: list[tuple[str, int, int, int]]
) -> None:
    pair = Pair(eviction_order(policy), MODELS[policy]())
    for move in moves:
        pair.move(*move)
        pair.check()
    while pair.offered:
        pair.move("evict", 0, 0, 1)
    pair.check()


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=40, deadline=None)
@given(slots=st.permutations(range(8)), offered=st.sets(st.integers(0, 7)), later=MOVES)
def test_blocks_taken_over_in_bulk_are_as_if_they_came_one_by_one(
    policy: str,
    slots: list[int],
    offered: set[int],
    later: list[tuple[str, int, int, int]],
) -> None:
    pair = Pair(eviction_order(policy), MODELS[policy]())
    rows = np.array(slots, dtype=np.int64)
    pair.order.insert_many(rows, (rows + 100).astype(np.uint64))
    pair.order.offer_many(np.array(sorted(offered), dtype=np.int64))
    for slot in slots:
        pair.model.insert(slot, slot + 100, 1)
        pair.names[slot] = slot + 100
    pair.offered |= offered
    assert pair.order.worths(rows).tolist() == [pair.order.worth(slot) for slot in slots]
    for move in later:
        pair.move(*move)
        pair.check()


RUNS = st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=150, deadline=None)
@given(slots=RUNS, before=MOVES, later=MOVES)
def test_a_run_comes_and_is_wanted_as_if_it_were_one_by_one(
    policy: str,
    slots: list[int],
    before: list[tuple[str, int, int, int]],
    later: list[tuple[str, int, int, int]],
) -> None:
    pair = Pair(eviction_order(policy), MODELS[policy]())
    for move in before:
        pair.move(*move)
    unused = [name for name in range(NAMES) if name not in pair.names.values()]
    coming = [slot for slot in slots if slot not in pair.names]
    names = unused[: len(coming)]
    pair.order.insert_run(np.array(coming, np.int64), np.array(names, np.uint64))
    for slot, name in zip(coming, names, strict=True):
        pair.model.insert(slot, name, 1)
        pair.names[slot] = name
    pair.check()
    pair.order.refresh_many(np.array(slots, np.int64))
    for slot in slots:
        pair.model.refresh(slot)
    for move in later:
        pair.move(*move)
        pair.check()


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=200, deadline=None)
@given(run=RUNS, before=MOVES, later=MOVES)
def test_a_run_leaves_as_if_one_were_offered_after_the_other(
    policy: str,
    run: list[int],
    before: list[tuple[str, int, int, int]],
    later: list[tuple[str, int, int, int]],
) -> None:
    pair = Pair(eviction_order(policy), MODELS[policy]())
    for move in before:
        pair.move(*move)
    victim = pair.order.victim()
    if victim is None:
        return
    # What may follow it is present and not offered yet.
    run = [victim, *(s for s in run if s in pair.names and s not in pair.offered)]
    count = pair.order.leaving_run(run)
    assert 1 <= count <= len(run)
    one_by_one = copy.deepcopy(pair.order)
    for slot in run[:count]:
        one_by_one.offer(slot)
        assert one_by_one.victim() == slot
        one_by_one.evict(slot)
        pair.model.evict(slot)
        pair.offered.discard(slot)
        del pair.names[slot]
    if count < len(run) and policy in {"greedy_dual", "lru"}:
        one_by_one.offer(run[count])
        assert one_by_one.victim() != run[count], "it could have left too"
    pair.order.evict_run(run[:count])
    for move in later:
        pair.move(*move)
        pair.check()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "discard", "trim"]), st.integers(0, 60)), max_size=200
    ),
    st.integers(0, 64),
)
def test_ghosts_are_a_bounded_queue_of_names(moves: list[tuple[str, int]], shift: int) -> None:
    ghosts, model = Ghosts(), list[int]()
    for what, number in moves:
        name = (number << shift) % (1 << 64)
        if what == "trim":
            ghosts.trim(number)
            del model[: max(0, len(model) - number)]
            continue
        known = name in model
        assert (name in ghosts) == known
        if known:
            model.remove(name)
        if what == "discard":
            assert ghosts.discard(name) == known
        else:
            ghosts.add(name)
            model.append(name)
        assert list(ghosts) == model
        ghosts.check_integrity()


def state(order: Any) -> bytes:
    """All that an order knows, but for the functions its heaps ask."""
    leaves = [(heap._heap, heap._queued, heap._count_max) for heap in order._leaves]
    rest = {name: value for name, value in vars(order).items() if name != "_leaves"}
    return pickle.dumps((leaves, rest))


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(moves=MOVES, count=st.integers(1, SLOTS))
@settings(max_examples=150, deadline=None)
def test_what_leaves_next_is_told_without_changing_it(
    policy: str, moves: list[tuple[str, int, int, int]], count: int
) -> None:
    pair = Pair(eviction_order(policy), MODELS[policy]())
    for move in moves:
        pair.move(*move)
    before = state(pair.order)
    told = pair.order.leaving(count)
    assert state(pair.order) == before
    assert len(told) == len(set(told)) <= count
    assert set(told) <= pair.offered
    future = copy.deepcopy(pair.order)
    leaves = []
    while len(leaves) < count and (victim := future.victim()) is not None:
        future.evict(victim)
        leaves.append(victim)
    if policy != "s3_fifo":  # moves blocks from queue to queue, which is left out
        assert told == leaves
    elif told:
        assert len(told) <= len(leaves)
