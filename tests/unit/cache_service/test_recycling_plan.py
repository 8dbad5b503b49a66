"""Which segment is recycled, and what of it stays."""

from collections.abc import Iterable, Iterator

import pytest

from cache_service.block_tree import NOWHERE
from cache_service.index import BlockIndex
from cache_service.recycling import RecyclePlan, plan_recycling
from kvtier.keys import BlockHash, NamespaceId
from storage.host.arena import HostArena
from storage.policy.greedy_dual import GreedyDual
from storage.tier import PAGE_BYTES, SegmentId, SegmentState, SsdLocation

SIZE = 100
RECORD = 10 * PAGE_BYTES
CAPACITY = 100 * PAGE_BYTES


class Ring:
    """Sealed segments of ten records; blocks are numbers."""

    def __init__(self, index: BlockIndex) -> None:
        self.index = index
        self.segments: dict[int, int] = {}

    def put(self, number: int, segment: int, parent: int | None = None) -> int:
        row = self.index.add(
            BlockHash(number.to_bytes(32, "big")),
            NOWHERE if parent is None else self[parent],
            NamespaceId(bytes(32)),
            SIZE,
        )
        used = self.segments.setdefault(segment, 0)
        self.index.put_ssd(row, SsdLocation(SegmentId(segment), 1, used, SIZE, 0, SIZE))
        self.segments[segment] = used + RECORD
        return row

    def __getitem__(self, number: int) -> int:
        return self.index.tree.find(BlockHash(number.to_bytes(32, "big")))

    def numbers(self, rows: Iterable[int]) -> list[int]:
        return [int.from_bytes(self.index.tree.block_hash(row), "big") for row in rows]

    def plan(self, share: float = 0.5) -> RecyclePlan | None:
        states = [
            SegmentState(SegmentId(segment), 1, "sealed", used, CAPACITY)
            for segment, used in self.segments.items()
        ]
        states.append(SegmentState(SegmentId(99), 1, "open", 0, CAPACITY))
        return plan_recycling(self.index, states, lambda payload_bytes: RECORD, share)


@pytest.fixture
def ring() -> Iterator[Ring]:
    arena = HostArena(4 * PAGE_BYTES, extent_bytes=PAGE_BYTES)
    yield Ring(BlockIndex(arena, GreedyDual(), GreedyDual(), 8))
    arena.close()


def test_without_a_sealed_segment_there_is_no_plan(ring: Ring) -> None:
    assert ring.plan() is None


def test_the_segment_worth_least_is_the_victim(ring: Ring) -> None:
    for number in range(10):
        ring.put(number, segment=number // 5)
    ring.index.use([ring[0], ring[1]])
    plan = ring.plan()
    assert plan is not None
    assert plan.segment_id == 1
    assert plan.keep == ()
    assert ring.numbers(plan.drop) == [5, 6, 7, 8, 9]


def test_a_segment_whose_blocks_have_left_goes_first(ring: Ring) -> None:
    ring.put(1, segment=0)
    ring.put(2, segment=1)
    ring.segments[2] = CAPACITY
    plan = ring.plan()
    assert plan is not None
    assert (plan.segment_id, plan.keep, plan.drop) == (2, (), ())


def test_pinned_blocks_and_all_before_them_stay(ring: Ring) -> None:
    ring.put(1, segment=0)
    ring.put(2, segment=0, parent=1)
    ring.put(3, segment=1, parent=2)
    ring.put(4, segment=0)
    del ring.segments[1]  # not sealed yet
    ring.index.pin(ring[3])
    plan = ring.plan()
    assert plan is not None
    assert ring.numbers(plan.keep) == [1, 2]
    assert ring.numbers(plan.drop) == [4]


def test_blocks_used_again_stay_within_the_share_dearest_first(ring: Ring) -> None:
    for number in range(10):
        ring.put(number, segment=0)
    ring.index.use([ring[number] for number in range(8)])
    plan = ring.plan(share=0.3)
    assert plan is not None
    assert ring.numbers(plan.keep) == [5, 6, 7]
    assert len(plan.drop) == 7


def test_a_kept_block_keeps_what_it_needs_before_it(ring: Ring) -> None:
    ring.put(1, segment=0)
    ring.put(2, segment=0, parent=1)
    ring.put(3, segment=0)
    ring.index.use([ring[2]])
    plan = ring.plan()
    assert plan is not None
    assert ring.numbers(plan.keep) == [1, 2]


def test_a_block_used_again_ages_out_once_the_clock_passed_it(ring: Ring) -> None:
    ring.put(1, segment=0)
    ring.index.use([ring[1]])
    plan = ring.plan()
    assert plan is not None
    assert ring.numbers(plan.keep) == [1]
    ring.index.age_ssd(2)
    plan = ring.plan()
    assert plan is not None
    assert ring.numbers(plan.drop) == [1]


def test_a_segment_full_of_pinned_blocks_is_avoided_and_then_refused(ring: Ring) -> None:
    for number in range(10):
        ring.put(number, segment=0)
        ring.index.pin(ring[number])
    assert ring.plan() is None
    ring.put(10, segment=1)
    ring.index.use([ring[10]])
    plan = ring.plan()
    assert plan is not None
    assert plan.segment_id == 1


def test_a_segment_with_more_pinned_than_the_share_is_taken_when_none_is_better(
    ring: Ring,
) -> None:
    for number in range(10):
        ring.put(number, segment=0)
    for number in range(8):
        ring.index.pin(ring[number])
    plan = ring.plan()
    assert plan is not None
    assert ring.numbers(plan.keep) == list(range(8))
    assert ring.numbers(plan.drop) == [8, 9]
