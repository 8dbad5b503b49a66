"""GreedyDual on slots: same victims as the rule says, through any history of a slot."""

import random

import numpy as np
import pytest

from storage.policy.greedy_dual import GreedyDual
from storage.policy.order import USES_MAX, EvictionOrder


def order_of(count: int) -> GreedyDual:
    order = GreedyDual()
    for slot in range(count):
        order.insert(slot, name=slot)
        order.offer(slot)
    return order


def evict_all(order: EvictionOrder) -> list[int]:
    gone = []
    while (slot := order.victim()) is not None:
        order.evict(slot)
        order.check_integrity()
        gone.append(slot)
    return gone


def test_among_equals_the_longest_unused_goes_first() -> None:
    order = order_of(3)
    order.refresh(0)
    assert evict_all(order) == [1, 2, 0]


def test_a_block_that_was_used_again_outlives_newer_ones_used_once() -> None:
    order = order_of(3)
    order.use(0)
    order.insert(3, name=3)
    order.offer(3)
    assert evict_all(order) == [1, 2, 3, 0]


def test_many_uses_count_no_more_than_the_cap() -> None:
    order = order_of(2)
    for _ in range(50):
        order.use(0)
    order.use(1)
    assert order.uses(0) == USES_MAX == order.uses(1)
    assert evict_all(order) == [0, 1]


def test_a_once_popular_block_ages_out_as_the_clock_moves() -> None:
    order = order_of(1)
    order.use(0)
    for slot in range(1, 5):
        order.insert(slot, name=slot)
        order.offer(slot)
        order.use(slot)
        if slot < 3:
            order.evict(slot)
    assert order.victim() == 0


def test_only_offered_blocks_are_victims_and_withholding_takes_them_back() -> None:
    order = order_of(2)
    order.insert(2, name=2)
    order.withhold(0)
    assert order.victim() == 1
    order.withhold(1)
    assert order.victim() is None
    order.offer(0)
    assert [order.victim() for _ in range(3)] == [0, 0, 0]
    order.check_integrity()


@pytest.mark.parametrize("uses", [1, 2])
def test_a_slot_that_is_given_again_is_a_new_block(uses: int) -> None:
    order = order_of(3)
    order.use(1)
    order.withhold(1)
    order.remove(1)
    assert 1 not in order
    order.insert(1, name=9, uses=uses)
    assert order.victim() == 0
    order.offer(1)
    assert order.uses(1) == uses
    assert evict_all(order) == [0, 2, 1]


def test_making_room_for_many_moves_the_clock_and_the_line() -> None:
    order = order_of(2)
    order.use(0)
    assert order.above_line(0)
    assert not order.above_line(1)
    order.advance(1)
    assert order.above_line(0)
    order.advance(2)
    assert not order.above_line(0)
    order.advance(1)
    assert order.clock == 2


def test_blocks_taken_over_in_bulk_leave_in_the_order_given() -> None:
    order = GreedyDual()
    slots = np.array([5, 2, 9, 0], dtype=np.int64)
    order.insert_many(slots, np.zeros(4, dtype=np.uint64))
    assert order.victim() is None
    order.insert(1, name=1)
    order.offer_many(slots)
    order.offer_many(slots[:0])
    order.offer(1)
    order.use(2)
    assert evict_all(order) == [5, 9, 0, 1, 2]


def test_outdated_entries_are_dropped_before_they_are_many() -> None:
    order = order_of(10)
    small = order.memory_bytes()
    chance = random.Random(1)
    for _ in range(20_000):
        slot = chance.randrange(10)
        if chance.random() < 0.5:
            order.remove(slot)
            order.insert(slot, name=0)
            order.offer(slot)
        else:
            order.withhold(slot)
            order.offer(slot)
    order.check_integrity()
    assert order.memory_bytes() < small + 10_000
