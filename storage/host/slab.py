"""SlabAllocator: which bytes of the arena are taken. Accounting only, it touches no memory.

The arena is a row of equal extents. An extent belongs to no class, or to one class and is then cut
into slabs of that class's size:

    | extent 0: class 2 MiB | extent 1: free | extent 2: class 256 KiB | ...
    | slab | slab | slab | .. |                | s | s | s | s | s | .. |

A slab class appears with the first block of its size. An extent whose last slab was freed goes back
to the free extents at once, so no class keeps space that another needs. New slabs are taken from
the lowest partly used extent: that keeps classes dense and lets high extents run empty.

Invariants: slabs never overlap, start on a page, and stay inside the arena; used + free slabs of an
extent are exactly its slabs. Its owner is the arena; event loop only.
"""

import heapq
from dataclasses import dataclass

from storage.errors import BlockTooLargeError, CapacityError
from storage.tier import PAGE_BYTES, Slab, rounded

__all__ = ["SlabAllocator", "SlabClass"]


class _Extent:
    """One extent that belongs to a class. `free` is a stack of slab numbers in it."""

    __slots__ = ("free", "listed", "slab_bytes", "slab_count")

    def __init__(self, slab_bytes: int, slab_count: int) -> None:
        self.slab_bytes = slab_bytes
        self.slab_count = slab_count
        self.free = list(range(slab_count - 1, -1, -1))
        self.listed = False


@dataclass(frozen=True, slots=True)
class SlabClass:
    """Slabs of one size."""

    slab_bytes: int
    extent_count: int
    used_count: int
    """Slabs in use."""
    free_count: int
    """Slabs of its extents that are not."""


class SlabAllocator:
    """Cuts `capacity_bytes` into extents of `extent_bytes` and those into slabs."""

    def __init__(self, capacity_bytes: int, extent_bytes: int) -> None:
        """Raises CapacityError when not even one extent fits, or sizes are not whole pages."""
        if extent_bytes <= 0 or extent_bytes % PAGE_BYTES:
            raise CapacityError("an extent must be whole pages", extent_bytes=extent_bytes)
        if capacity_bytes < extent_bytes:
            raise CapacityError(
                "the arena is smaller than one extent",
                capacity_bytes=capacity_bytes,
                extent_bytes=extent_bytes,
            )
        self.extent_bytes = extent_bytes
        self.extent_count = capacity_bytes // extent_bytes
        self.used_bytes = 0
        self._free_extents = list(range(self.extent_count))
        self._extents: dict[int, _Extent] = {}
        self._partial: dict[int, list[int]] = {}
        """Class size -> heap of extents that may have a free slab (some entries are stale)."""
        self._used: dict[int, int] = {}
        """Offset of every slab in use -> its size."""

    @property
    def free_extent_count(self) -> int:
        return len(self._free_extents)

    @property
    def slab_count(self) -> int:
        return len(self._used)

    def slab_bytes(self, block_bytes: int) -> int:
        """Size of the slab for a block. Raises BlockTooLargeError."""
        size = rounded(block_bytes)
        if not 0 < size <= self.extent_bytes:
            raise BlockTooLargeError(
                f"a block of {block_bytes} bytes does not fit an extent of {self.extent_bytes}",
                block_bytes=block_bytes,
                extent_bytes=self.extent_bytes,
            )
        return size

    def extents(self) -> dict[int, tuple[int, int]]:
        """Extents that belong to a class: number -> (slab bytes, slabs in use)."""
        return {
            number: (extent.slab_bytes, extent.slab_count - len(extent.free))
            for number, extent in self._extents.items()
        }

    def classes(self) -> list[SlabClass]:
        """Every class that has extents, smallest slabs first."""
        counts: dict[int, list[int]] = {}
        for extent in self._extents.values():
            row = counts.setdefault(extent.slab_bytes, [0, 0, 0])
            row[0] += 1
            row[1] += extent.slab_count - len(extent.free)
            row[2] += len(extent.free)
        return [SlabClass(size, *counts[size]) for size in sorted(counts)]

    def allocate(self, block_bytes: int) -> Slab | None:
        """A free slab for a block, or None when the arena is full. Raises BlockTooLargeError."""
        size = self.slab_bytes(block_bytes)
        number = self._extent_with_room(size)
        if number is None:
            return None
        extent = self._extents[number]
        offset = number * self.extent_bytes + extent.free.pop() * size
        self._used[offset] = size
        self.used_bytes += size
        return Slab(offset, size)

    def free(self, slab: Slab) -> None:
        """Gives a slab back. REQUIRES: it came from `allocate` and was not freed since."""
        assert self._used.get(slab.offset) == slab.size_bytes, slab
        del self._used[slab.offset]
        self.used_bytes -= slab.size_bytes
        number, within = divmod(slab.offset, self.extent_bytes)
        extent = self._extents[number]
        extent.free.append(within // slab.size_bytes)
        if len(extent.free) == extent.slab_count:
            del self._extents[number]
            heapq.heappush(self._free_extents, number)
        elif not extent.listed:
            self._list(number, extent)

    def _extent_with_room(self, size: int) -> int | None:
        partial = self._partial.setdefault(size, [])
        while partial:
            extent = self._extents.get(partial[0])
            if extent is not None and extent.slab_bytes == size and extent.free:
                return partial[0]
            stale = heapq.heappop(partial)
            if extent is not None and extent.slab_bytes == size:
                self._extents[stale].listed = False
        if not self._free_extents:
            return None
        number = heapq.heappop(self._free_extents)
        extent = self._extents[number] = _Extent(size, self.extent_bytes // size)
        self._list(number, extent)
        return number

    def _list(self, number: int, extent: _Extent) -> None:
        extent.listed = True
        heapq.heappush(self._partial[extent.slab_bytes], number)

    def check_integrity(self) -> None:
        """Sum of parts = whole; no overlap; every free slab can be found again."""
        taken: dict[int, list[int]] = {}
        for offset, size in self._used.items():
            number, within = divmod(offset, self.extent_bytes)
            assert within % size == 0
            assert within + size <= self.extent_bytes
            assert self._extents[number].slab_bytes == size
            taken.setdefault(number, []).append(within // size)
        assert self.used_bytes == sum(self._used.values())
        assert set(self._free_extents).isdisjoint(self._extents)
        assert len(self._free_extents) + len(self._extents) == self.extent_count
        classes = self.classes()
        assert sum(c.used_count * c.slab_bytes for c in classes) == self.used_bytes
        assert sum(c.extent_count for c in classes) == len(self._extents)
        for number, extent in self._extents.items():
            slabs = sorted(taken.get(number, []) + extent.free)
            assert slabs == list(range(extent.slab_count)), number
            assert len(extent.free) < extent.slab_count, "an empty extent was kept"
            if extent.free:
                assert extent.listed
            if extent.listed:
                assert number in self._partial[extent.slab_bytes]
