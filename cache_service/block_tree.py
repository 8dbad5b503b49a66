"""BlockTree: the rows of all cached blocks, how they hang together, and where their copies lie.

A block is a *row*, a small number. A row means the same block as long as that block is cached or
pinned; who keeps a row across an await without a pin checks what it needs again, because the row
may have been given to another block. Children hang in a doubly linked list through their siblings.

Everybody in this room reads here; only `BlockIndex` and its parts write. Event loop only.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cache_service.block_columns import NOWHERE, BlockColumns
from cache_service.block_directory import ABSENT, BlockDirectory
from cache_service.chains import Chain
from cache_service.namespaces import NamespaceTable
from kvtier.keys import BlockHash, NamespaceId
from storage.tier import NO_PARENT, PAGE_BYTES, BlockRecord, SegmentId, Slab, SsdLocation, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from storage.ssd.recovered import RecoveredColumns

__all__ = ["ABSENT", "NOWHERE", "BlockTree"]


class BlockTree:
    """Facts about blocks by row, and the rows by hash."""

    def __init__(self) -> None:
        self.columns = BlockColumns()
        self.directory = BlockDirectory()
        self.namespaces = NamespaceTable()
        self.generations: dict[SegmentId, int] = {}
        """Of each segment that holds live records: those all have one."""
        self.columns.reserve(self.directory.row_capacity, self.directory.row_high)

    def __len__(self) -> int:
        return len(self.directory)

    def __iter__(self) -> Iterator[int]:
        """Rows of all cached blocks; for tests and tools."""
        cached = self.columns.cached
        return (row for row in range(self.directory.row_high) if cached[row])

    def reserve(self, row_count: int) -> None:
        """Makes room for that many blocks ahead, so that adding them costs no pause.

        Memory is taken when a row is first used, not here.
        """
        self.directory.reserve(row_count)
        self.columns.reserve(self.directory.row_capacity, self.directory.row_high)

    # -- finding -----------------------------------------------------------------------------------

    def find(self, block_hash: BlockHash) -> int:
        """The row of a cached block, or ABSENT."""
        return self.directory.find(block_hash)

    def find_chain(self, chain: Chain) -> "NDArray[np.int64]":
        """The row of each block of a chain; ABSENT where there is none."""
        return self.directory.find_words(chain.words)

    def served_count(self, rows: "NDArray[np.int64]", kind: int | None, *, host_only: bool) -> int:
        """How many of a chain's first blocks are there and of `kind`, in one look at all.

        None is nobody's kind. `host_only`: what lies on the SSD alone does not count.
        """
        # A row ABSENT is the last one in the columns: what that says does not matter.
        kinds = self.columns.array("kind")[rows]
        served = (rows != ABSENT) & (kinds == (ABSENT if kind is None else kind))
        if host_only:
            served &= self.columns.array("slab_page")[rows] != NOWHERE
        return len(rows) if served.all() else int(served.argmin())

    # -- facts about one row -----------------------------------------------------------------------

    def block_hash(self, row: int) -> BlockHash:
        return self.directory.hash_of(row)

    def cached(self, row: int) -> bool:
        """False from the moment the block left the cache; it may still be pinned."""
        return bool(self.columns.cached[row])

    def parent(self, row: int) -> int:
        """NOWHERE for the first block of a chain."""
        parent: int = self.columns.parent[row]
        return parent

    def pins(self, row: int) -> int:
        pins: int = self.columns.pins[row]
        return pins

    def namespace_id(self, row: int) -> NamespaceId:
        return self.namespaces.kind(self.columns.kind[row])[0]

    def kind(self, row: int) -> int:
        """Number of the block's namespace and size in `namespaces`."""
        kind: int = self.columns.kind[row]
        return kind

    def payload_bytes(self, row: int) -> int:
        return self.namespaces.kind(self.columns.kind[row])[1]

    def in_host(self, row: int) -> bool:
        return bool(self.columns.slab_page[row] != NOWHERE)

    def on_ssd(self, row: int) -> bool:
        return bool(self.columns.segment[row] != NOWHERE)

    def slab(self, row: int) -> Slab:
        """Where the copy in host memory lies. REQUIRES: there is one."""
        page = self.columns.slab_page[row]
        assert page != NOWHERE
        return Slab(page * PAGE_BYTES, rounded(self.payload_bytes(row)))

    def slabs(self, rows: Sequence[int]) -> list[Slab]:
        """As `slab` of each. REQUIRES: they are of one kind."""
        pages = self.columns.array("slab_page")[np.array(rows)].astype(np.int64)
        assert (pages != NOWHERE).all()
        size = rounded(self.payload_bytes(rows[0]))
        return [Slab(offset, size) for offset in (pages * PAGE_BYTES).tolist()]

    def checksums(self, rows: Sequence[int]) -> list[int]:
        """As `checksum` of each."""
        found: list[int] = self.columns.array("host_checksum")[np.array(rows)].tolist()
        return found

    def checksum(self, row: int) -> int:
        """Of the copy in host memory."""
        checksum: int = self.columns.host_checksum[row]
        return checksum

    def segment(self, row: int) -> int:
        """Segment of the record; NOWHERE when there is none."""
        segment: int = self.columns.segment[row]
        return segment

    def location(self, row: int) -> SsdLocation:
        """Where the record lies. REQUIRES: on the SSD."""
        columns = self.columns
        segment_id = SegmentId(columns.segment[row])
        return SsdLocation(
            segment_id,
            self.generations[segment_id],
            columns.record_page[row] * PAGE_BYTES,
            self.payload_bytes(row),
            columns.ssd_checksum[row],
            columns.stored_bytes[row],
        )

    def host_record(self, row: int) -> BlockRecord:
        """The record of the copy in host memory. REQUIRES: cached."""
        return self._record(row, self.columns.host_checksum[row])

    def ssd_record(self, row: int) -> BlockRecord:
        """The record of the copy on the SSD. REQUIRES: cached, on the SSD."""
        return self._record(row, self.columns.ssd_checksum[row])

    def _record(self, row: int, checksum: int) -> BlockRecord:
        parent = self.columns.parent[row]
        namespace_id, payload_bytes = self.namespaces.kind(self.columns.kind[row])
        parent_hash = NO_PARENT if parent == NOWHERE else self.directory.hash_of(parent)
        return BlockRecord(
            self.directory.hash_of(row), parent_hash, namespace_id, payload_bytes, checksum
        )

    # -- lineage -----------------------------------------------------------------------------------

    def has_children(self, row: int) -> bool:
        return bool(self.columns.first_child[row] != NOWHERE)

    def children(self, row: int) -> Iterator[int]:
        columns = self.columns
        child = columns.first_child[row]
        while child != NOWHERE:
            yield child
            child = columns.next_sibling[child]

    def ancestors(self, row: int) -> Iterator[int]:
        """Rows before this one, the nearest first."""
        columns = self.columns
        row = columns.parent[row]
        while row != NOWHERE:
            yield row
            row = columns.parent[row]

    def subtree(self, row: int) -> list[int]:
        """A block and everything after it, parents before children."""
        found = [row]
        for each in found:
            found.extend(self.children(each))
        return found

    # -- changes -----------------------------------------------------------------------------------

    def add(
        self, block_hash: BlockHash, parent: int, namespace_id: NamespaceId, payload_bytes: int
    ) -> int:
        """A row for a block that is not cached, without copies. REQUIRES: `parent` is cached."""
        assert parent == NOWHERE or self.columns.cached[parent]
        row = self.directory.insert(block_hash)
        self.columns.reserve(self.directory.row_capacity, self.directory.row_high)
        columns = self.columns
        columns.reset(row)
        columns.kind[row] = self.namespaces.enter(namespace_id, payload_bytes)
        if parent != NOWHERE:
            self._adopt(parent, row)
        return row

    def add_run(
        self,
        words: "NDArray[np.uint64]",
        parent: int,
        namespace_id: NamespaceId,
        payload_bytes: int,
    ) -> "NDArray[np.int64]":
        """As `add` of consecutive blocks of a chain, hashes as words (n, 4); their rows."""
        assert parent == NOWHERE or self.columns.cached[parent]
        rows = self.directory.insert_run(words)
        self.columns.reserve(self.directory.row_capacity, self.directory.row_high)
        columns = self.columns
        columns.reset_run(rows)
        kinds = columns.array("kind")
        kinds[rows] = self.namespaces.enter(namespace_id, payload_bytes, len(rows))
        columns.array("parent")[rows[1:]] = rows[:-1]
        columns.array("first_child")[rows[:-1]] = rows[1:]
        if parent != NOWHERE:
            self._adopt(parent, int(rows[0]))
        return rows

    def remove_run(self, rows: "NDArray[np.int64]") -> None:
        """As `remove` of one after the other, where each is the only child of the next.

        REQUIRES: of one kind, cached and not pinned; the first has no children.
        """
        columns, last = self.columns, int(rows[-1])
        assert columns.array("cached")[rows].all()
        assert not columns.array("pins")[rows].any()
        assert columns.first_child[rows[0]] == NOWHERE
        columns.array("cached")[rows] = 0
        self.directory.unlist_run(rows)
        if columns.parent[last] != NOWHERE:
            self._disown(columns.parent[last], last)
        columns.array("parent")[rows] = NOWHERE
        columns.array("first_child")[rows] = NOWHERE
        self.namespaces.leave(columns.kind[last], len(rows))
        self.directory.free_run(rows)

    def remove(self, row: int) -> None:
        """The block is not cached any more; its row stays while it is pinned.

        REQUIRES: cached, without children.
        """
        columns = self.columns
        assert columns.cached[row]
        assert columns.first_child[row] == NOWHERE
        columns.cached[row] = 0
        self.directory.unlist(row)
        if columns.parent[row] != NOWHERE:
            self._disown(columns.parent[row], row)
        columns.parent[row] = NOWHERE
        if not columns.pins[row]:
            self.let_go(row)

    def let_go(self, row: int) -> None:
        """Frees the row of a block that is neither cached nor pinned any more."""
        assert not self.columns.cached[row]
        assert not self.columns.pins[row]
        self.namespaces.leave(self.columns.kind[row])
        self.directory.free(row)

    def _adopt(self, parent: int, child: int) -> None:
        columns = self.columns
        first = columns.first_child[parent]
        columns.parent[child] = parent
        columns.next_sibling[child] = first
        if first != NOWHERE:
            columns.previous_sibling[first] = child
        columns.first_child[parent] = child

    def _disown(self, parent: int, child: int) -> None:
        columns = self.columns
        before, after = columns.previous_sibling[child], columns.next_sibling[child]
        if before == NOWHERE:
            columns.first_child[parent] = after
        else:
            columns.next_sibling[before] = after
        if after != NOWHERE:
            columns.previous_sibling[after] = before

    def recover(self, found: "RecoveredColumns") -> None:
        """Rows 0 to n-1 for what an SSD held, linked; their places are the segments' to enter.

        REQUIRES: no row was ever used.
        """
        count = len(found)
        self.reserve(count)
        self.directory.insert_many(
            np.ascontiguousarray(found.hashes).view(np.uint8).reshape(-1, 32)
        )
        columns = self.columns
        columns.array("kind")[:count] = self._kinds_of(found)
        columns.array("cached")[:count] = 1
        parents = columns.array("parent")
        parents[:count] = found.parent_row
        columns.array("slab_page")[:count] = NOWHERE
        for name in ("first_child", "next_sibling", "previous_sibling"):
            columns.array(name)[:count] = NOWHERE
        children = np.flatnonzero(found.parent_row >= 0)
        children = columns.grouped(children, found.parent_row)
        first = columns.chain("next_sibling", "previous_sibling", children, found.parent_row)
        columns.array("first_child")[found.parent_row[first]] = first
        columns.array("ssd_children")[:count] = np.bincount(
            found.parent_row[children], minlength=count
        )

    def _kinds_of(self, found: "RecoveredColumns") -> "NDArray[np.int64]":
        """The kind of each recovered block, counted in."""
        sizes, size_of = np.unique(found.payload_bytes, return_inverse=True)
        pairs = found.namespace_row.astype(np.int64) * len(sizes) + size_of
        kinds, kind_of, counts = np.unique(pairs, return_inverse=True, return_counts=True)
        numbers = []
        for pair, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            namespace, size = divmod(pair, len(sizes))
            namespace_id = found.namespace_ids[namespace]
            numbers.append(self.namespaces.enter(namespace_id, int(sizes[size]), count))
        return np.array(numbers, np.int64)[kind_of]

    # -- for tests and measurements ----------------------------------------------------------------

    def memory_bytes(self) -> int:
        """What rows used so far and the table take."""
        rows = self.directory.row_high * BlockColumns.bytes_per_row()
        return self.directory.memory_bytes + rows

    def check_integrity(self) -> None:
        """Hashes lead to rows, siblings and parents agree, no row is used twice."""
        self.directory.check_integrity()
        rows = list(self)
        assert len(rows) == len(self.directory)
        for row in rows:
            assert self.find(self.block_hash(row)) == row
            parent = self.parent(row)
            assert parent == NOWHERE or self.columns.cached[parent], "stranded: the parent left"
            assert parent == NOWHERE or row in self.children(parent)
            assert all(self.parent(child) == row for child in self.children(row))
        used = [*rows, *(r for r in range(self.directory.row_high) if self.pinned_only(r))]
        self.namespaces.check_integrity(self.columns.kind[row] for row in used)

    def pinned_only(self, row: int) -> bool:
        """True for a block that left the cache while somebody held it."""
        return bool(not self.columns.cached[row] and self.columns.pins[row])
