"""Leaf heaps that share a column: what one has of a slot that is another's now changes nothing."""

from array import array

from storage.policy.leaf_heap import ABSENT, FOREIGN, LeafHeap


def test_a_slot_that_moved_to_another_heap_stays_listed_there() -> None:
    owner, standings = {1: "a", 2: "a"}, {1: 10, 2: 20}
    column = array("b")

    def standing_in(name: str) -> LeafHeap:
        def standing(slot: int) -> int:
            return standings.get(slot, ABSENT) if owner.get(slot) == name else FOREIGN

        return LeafHeap(standing, column)

    a, b = standing_in("a"), standing_in("b")
    a.push(1)
    a.push(2)
    a.forget(2)  # its block left; another one's has the slot
    owner[2] = "b"
    b.push(2)
    a.forget(1)
    del owner[1]
    assert a.first() is None, "what it had of both is gone"
    b.check_integrity({2})
    assert b.first() == 2
    assert b.least(3) == [2]
