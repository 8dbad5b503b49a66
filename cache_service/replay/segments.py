"""SegmentTier: the SSD as the service keeps it, segments that are filled, sealed and recycled.

A block is written at the end of the open segment. When that is full, an empty one is opened and the
sealed segment whose blocks are worth least is emptied, so that one empty segment is always left. Of
its blocks stay, written again, those that are held or before something held, and, dearest first,
those above the policy's line with what is before them in the segment, up to `RELOG_SHARE_MAX` of
it. The others leave, with all that follows them.

Same rules as `cache_service/recycling.py`, in blocks instead of bytes.

Invariants: a block's parent is in the tier too; never more than `capacity` blocks in all segments
together, empty places counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from cache_service.replay.trace import NO_BLOCK
from cache_service.replay.tree import Tree
from storage.policy.order import EvictionOrder

__all__ = ["SEGMENTS_MIN", "SegmentTier"]

RELOG_SHARE_MAX = 0.5
SEGMENTS_MIN = 3

NOWHERE = -1


class SegmentTier:
    """`hold`, `extend` and `release` as in `LeafTier`."""

    def __init__(
        self,
        tree: Tree,
        order: EvictionOrder,
        capacity: int,
        segment_blocks: int,
        left: Callable[[int], None],
        relogged: Callable[[int], None],
    ) -> None:
        """`left` is called with each block that left, `relogged` with how many were written again.

        REQUIRES: room for `SEGMENTS_MIN`.
        """
        count = capacity // segment_blocks
        assert count >= SEGMENTS_MIN
        self.order = order
        self.present = bytearray(len(tree))
        self.write_count = 0
        self.relogged_count = 0
        self.evicted_count = 0
        self._tree = tree
        self._left = left
        self._relogged = relogged
        self._segment_blocks = segment_blocks
        self._segments: list[dict[int, None]] = [{} for _ in range(count)]
        """Live blocks, in the order in which they were written."""
        self._worths = [0] * count
        self._segment_of = [NOWHERE] * len(tree)
        self._empty = list(range(count - 1, 0, -1))
        self._sealed: dict[int, None] = {}
        """Oldest first."""
        self._open = 0
        self._filled = 0
        self._held: dict[int, int] = {}
        self._children: dict[int, set[int]] = {}

    def use(self, block: int) -> None:
        before = self.order.worth(block)
        self.order.use(block)
        self._worths[self._segment_of[block]] += self.order.worth(block) - before

    def hold(self, block: int) -> None:
        if block != NO_BLOCK:
            self._held[block] = self._held.get(block, 0) + 1

    def release(self, block: int) -> None:
        if block != NO_BLOCK:
            left = self._held.pop(block) - 1
            if left:
                self._held[block] = left

    def extend(self, block: int, uses: int) -> bool:
        """REQUIRES: absent; the parent is present and held, or there is none."""
        if self._filled == self._segment_blocks and not self._open_another():
            return False
        self.order.insert(block, self._tree.names[block], uses)
        self.present[block] = 1
        self._place(block)
        self.hold(block)
        parent = self._tree.parents[block]
        if parent != NO_BLOCK:
            self._children.setdefault(parent, set()).add(block)
            self.release(parent)
        return True

    # -- segments ------------------------------------------------------------------------------

    def _place(self, block: int) -> None:
        """Writes a block at the end of the open segment."""
        self._segments[self._open][block] = None
        self._segment_of[block] = self._open
        self._worths[self._open] += self.order.worth(block)
        self._filled += 1
        self.write_count += 1

    def _take_out(self, block: int) -> None:
        segment = self._segment_of[block]
        del self._segments[segment][block]
        self._worths[segment] -= self.order.worth(block)
        self._segment_of[block] = NOWHERE

    def _open_another(self) -> bool:
        """Seals the open segment and opens an empty one with room; False when all is held."""
        protected = self._protected()
        for _ in range(len(self._segments)):
            self._sealed[self._open] = None
            self._open = self._empty.pop()
            self._filled = 0
            if not self._empty:
                self._recycle(protected)
            if self._filled < self._segment_blocks:
                return True
        return False

    def _recycle(self, protected: set[int]) -> None:
        must = Counter(self._segment_of[block] for block in protected)
        victim = min(self._sealed, key=lambda segment: self._cost(segment, must[segment]))
        del self._sealed[victim]
        blocks = list(self._segments[victim])
        keep = self._kept(victim, blocks, protected)
        dropped = [block for block in blocks if block not in keep]
        age_to = self._age_to(dropped)
        for block in dropped:
            if self.present[block]:
                self._drop(block)
        for block in blocks:
            if block in keep:
                self._take_out(block)
                self._place(block)
        self.relogged_count += len(keep)
        self._relogged(len(keep))
        self.order.advance(age_to)
        self._empty.append(victim)

    def _cost(self, segment: int, must: int) -> tuple[bool, int]:
        if must > RELOG_SHARE_MAX * self._segment_blocks:
            return True, must
        return False, self._worths[segment] - len(self._segments[segment]) * self.order.clock

    def _kept(self, victim: int, blocks: list[int], protected: set[int]) -> set[int]:
        keep = {block for block in blocks if block in protected}
        room = int(RELOG_SHARE_MAX * self._segment_blocks) - len(keep)
        again = [block for block in blocks if self.order.above_line(block)]
        for block in sorted(again, key=self.order.standing, reverse=True):
            here = (each for each in self._up(block) if self._segment_of[each] == victim)
            needed = [each for each in here if each not in keep]
            if len(needed) <= room:
                room -= len(needed)
                keep.update(needed)
        return keep

    def _age_to(self, dropped: list[int]) -> int:
        """The greatest worth that leaves for being worth little, not for want of room."""
        worths = [self.order.worth(each) for each in dropped if not self.order.above_line(each)]
        return max(worths, default=self.order.clock)

    def _drop(self, block: int) -> None:
        """Takes out a block and all that follows it."""
        below = [block]
        for each in below:
            below.extend(self._children.pop(each, ()))
        parent = self._tree.parents[block]
        if parent != NO_BLOCK:
            self._children[parent].discard(block)
        for each in below:
            self._take_out(each)
            self.order.remove(each)
            self.present[each] = 0
            self.evicted_count += 1
            self._left(each)

    def _protected(self) -> set[int]:
        return {each for held in self._held for each in self._up(held)}

    def _up(self, block: int) -> Iterator[int]:
        while block != NO_BLOCK:
            yield block
            block = self._tree.parents[block]

    def check_integrity(self) -> None:
        assert not self._tree.stranded(self.present)
        assert sum(self.present) == len(self.order) == sum(len(each) for each in self._segments)
        assert sorted([self._open, *self._empty, *self._sealed]) == list(range(len(self._segments)))
        assert len(self._segments[self._open]) <= self._filled <= self._segment_blocks
        for segment, blocks in enumerate(self._segments):
            assert len(blocks) <= self._segment_blocks
            assert self._worths[segment] == sum(self.order.worth(block) for block in blocks)
            assert all(self._segment_of[block] == segment for block in blocks)
        self.order.check_integrity()
