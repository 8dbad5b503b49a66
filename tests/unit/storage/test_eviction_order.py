"""The eviction order: GreedyDual with capped use counts over keys that the owner offers."""

import random

import pytest

from storage.eviction import USES_MAX, EvictionOrder


def order_of(*keys: str) -> EvictionOrder[str]:
    order: EvictionOrder[str] = EvictionOrder()
    for key in keys:
        order.insert(key)
        order.offer(key)
    return order


def evict_all(order: EvictionOrder[str]) -> list[str]:
    gone = []
    while (key := order.victim()) is not None:
        order.evict(key)
        order.check_integrity()
        gone.append(key)
    return gone


def test_among_equals_the_longest_unused_goes_first() -> None:
    order = order_of("a", "b", "c")
    order.refresh("a")
    assert evict_all(order) == ["b", "c", "a"]


def test_a_block_that_was_used_again_outlives_newer_ones_used_once() -> None:
    order = order_of("hot", "x", "y")
    order.use("hot")
    order.insert("z")
    order.offer("z")
    assert evict_all(order) == ["x", "y", "z", "hot"]


def test_many_uses_count_no_more_than_the_cap() -> None:
    order = order_of("often", "twice")
    for _ in range(50):
        order.use("often")
    order.use("twice")
    assert order.uses("often") == USES_MAX == order.uses("twice")
    assert evict_all(order) == ["often", "twice"]


def test_a_once_popular_block_ages_out_as_the_clock_moves() -> None:
    order = order_of("old")
    order.use("old")
    for i in range(4):
        order.insert(f"n{i}")
        order.offer(f"n{i}")
        order.use(f"n{i}")
        if i < 2:
            order.evict(f"n{i}")
    assert order.victim() == "old"


def test_only_offered_keys_are_victims_and_withholding_takes_them_back() -> None:
    order = order_of("a", "b")
    order.insert("c")
    order.withhold("a")
    assert order.victim() == "b"
    order.withhold("b")
    assert order.victim() is None
    order.offer("a")
    assert order.victim() == "a"
    order.check_integrity()


def test_asking_for_the_victim_changes_nothing() -> None:
    order = order_of("a", "b")
    assert [order.victim() for _ in range(3)] == ["a", "a", "a"]
    assert len(order) == 2


def test_a_key_that_left_and_came_back_is_new() -> None:
    order = order_of("a", "b")
    order.use("a")
    order.remove("a")
    order.insert("a")
    order.offer("a")
    assert order.uses("a") == 1
    order.check_integrity()
    assert evict_all(order) == ["b", "a"]


@pytest.mark.parametrize("seed", range(5))
def test_the_heap_gives_the_same_victims_as_a_full_scan(seed: int) -> None:
    rng = random.Random(seed)
    order: EvictionOrder[int] = EvictionOrder()
    offered: set[int] = set()
    present: set[int] = set()
    for _ in range(3000):
        key = rng.randrange(60)
        action = rng.random()
        if key not in present:
            order.insert(key)
            present.add(key)
        elif action < 0.3:
            order.use(key)
        elif action < 0.5:
            order.offer(key)
            offered.add(key)
        elif action < 0.6:
            order.withhold(key)
            offered.discard(key)
        elif action < 0.7:
            order.remove(key)
            present.discard(key)
            offered.discard(key)
        elif offered:
            expected = min(offered, key=order.standing)
            assert order.victim() == expected
            order.evict(expected)
            present.discard(expected)
            offered.discard(expected)
    order.check_integrity()
    assert len(order) == len(present)


def test_on_a_skewed_stream_the_order_beats_plain_recency() -> None:
    rng = random.Random(7)
    stream = [
        rng.randrange(40) if rng.random() < 0.4 else 1000 + i for i in range(8000)
    ]  # 40 shared prefixes among endless one-time prompts

    def hits_of(second_chance: bool) -> int:
        order: EvictionOrder[int] = EvictionOrder()
        hits = 0
        for key in stream:
            if key in order:
                hits += 1
                if second_chance:
                    order.use(key)
                else:
                    order.refresh(key)
                continue
            if len(order) == 50:
                victim = order.victim()
                assert victim is not None
                order.evict(victim)
            order.insert(key)
            order.offer(key)
        return hits

    capped, recency = hits_of(True), hits_of(False)
    ideal = len([key for key in stream if key < 1000]) - 40
    assert 1.05 * recency < capped <= ideal
