"""What opening an SSD tier found, as columns: a million blocks without a million objects.

    row            0        1        2        ...   parents before children
    hashes         h0       h1       h2
    parent_row     -1       0        1              -1: the first block of a chain
    namespace_row  0        0        0              position in `namespace_ids`
    segment_id     7        7        2              its generation: `segment_generations[7]`
    offset, payload_bytes, stored_bytes, checksum, codec, sequence: as in the record's header
    owner_row      0        1        1              position in `owners`

Invariant: all columns are equally long; `parent_row[i] < i`; every block was readable as far as
index and segment headers can tell. Frozen data, any thread.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtier.keys import BlockHash, NamespaceId
from storage.ssd.block_rows import CODEC_MASK, UNIT_END, BlockRows, owner_numbers
from storage.ssd.lineage import same_words
from storage.tier import NEVER, NO_PARENT, BlockRecord, SegmentId, SsdLocation

__all__ = ["NO_BLOCKS", "RecoveredColumns", "recovered_columns"]

_NAMESPACE_PASSES_MAX = 16


@dataclass(frozen=True, slots=True, eq=False)
class RecoveredColumns:
    """Readable blocks, one row each, parents before children.

    Iterating makes a pair of objects for each row: meant for tests and tools, not for starting up.
    """

    hashes: NDArray[np.void]
    """dtype V32; `hashes.tolist()` gives `bytes`."""
    parent_row: NDArray[np.int32]
    """Row of the parent in these very columns, always a lower one; -1 for a first block."""
    namespace_ids: tuple[NamespaceId, ...]
    namespace_row: NDArray[np.int32]
    """Position in `namespace_ids`."""
    segment_id: NDArray[np.uint32]
    segment_generations: NDArray[np.uint64]
    """By segment id, of every segment: a row's generation is its segment's."""
    offset: NDArray[np.uint64]
    """Of the record's header, from the start of the segment."""
    payload_bytes: NDArray[np.uint64]
    stored_bytes: NDArray[np.uint64]
    """What follows the header before rounding to pages."""
    checksum: NDArray[np.uint64]
    """`kvtier.keys.payload_checksum` of the payload."""
    codec: NDArray[np.uint32]
    sequence: NDArray[np.uint64]
    expire_second: NDArray[np.uint32]
    """Unix second at which the block ends; NEVER for none."""
    owners: tuple[str, ...]
    """Of these blocks, each once; the first is "", nobody."""
    owner_row: NDArray[np.int32]
    """Position in `owners`."""
    unit_end: NDArray[np.bool_]
    """Whether a prefix unit ends with the block, as far as that was written down."""

    def __len__(self) -> int:
        return len(self.hashes)

    def __iter__(self) -> Iterator[tuple[BlockRecord, SsdLocation]]:
        for row in range(len(self)):
            yield self.record(row), self.location(row)

    def record(self, row: int) -> BlockRecord:
        """The block in `row` as a tier knows it."""
        parent = int(self.parent_row[row])
        return BlockRecord(
            BlockHash(self.hashes[row].tobytes()),
            BlockHash(self.hashes[parent].tobytes()) if parent >= 0 else NO_PARENT,
            self.namespace_ids[self.namespace_row[row]],
            int(self.payload_bytes[row]),
            int(self.checksum[row]),
        )

    def location(self, row: int) -> SsdLocation:
        """Where the block in `row` lies."""
        segment_id = int(self.segment_id[row])
        return SsdLocation(
            SegmentId(segment_id),
            int(self.segment_generations[segment_id]),
            int(self.offset[row]),
            int(self.payload_bytes[row]),
            int(self.checksum[row]),
            int(self.stored_bytes[row]),
        )

    @property
    def nbytes(self) -> int:
        """Memory of all columns."""
        columns = (getattr(self, name) for name in self.__slots__)
        return sum(c.nbytes for c in columns if isinstance(c, np.ndarray))


def recovered_columns(
    blocks: BlockRows,
    parent: NDArray[np.int64],
    order: NDArray[np.int64],
    segment_generations: NDArray[np.uint64],
    expiries: Mapping[bytes, int],
    owners: Mapping[int, str],
) -> RecoveredColumns:
    """The blocks at the positions `order`, in that order.

    `parent` has for each block the position of its parent, or a negative number for a first block;
    `owners` has each number of an owner.
    REQUIRES: a parent's position stands before its children's in `order`.
    """
    new_row = np.full(len(blocks) + 1, -1, np.int32)  # the last one is the root's
    new_row[order] = np.arange(len(order), dtype=np.int32)
    namespace_ids, namespace_row = _numbered(blocks["namespace"])
    owner_paths, owner_row = _owned(owner_numbers(blocks)[order], owners)
    return RecoveredColumns(
        hashes=blocks.hashes.take(order),
        parent_row=new_row[np.maximum(parent, -1)[order]],
        namespace_ids=namespace_ids,
        namespace_row=namespace_row[order],
        segment_id=blocks["segment_id"][order],
        segment_generations=segment_generations,
        offset=blocks["offset"][order],
        payload_bytes=blocks["payload_bytes"][order],
        stored_bytes=blocks["stored_bytes"][order],
        checksum=blocks["checksum"][order],
        codec=blocks["codec_owner"][order] & np.uint32(CODEC_MASK),
        sequence=blocks["sequence"][order],
        expire_second=_expire_seconds(blocks.hashes, order, expiries),
        owners=owner_paths,
        owner_row=owner_row,
        unit_end=(blocks["codec_owner"][order] & np.uint32(UNIT_END)) != 0,
    )


def _owned(
    numbers: NDArray[np.uint32], owners: Mapping[int, str]
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The owners that are named, and each row's position among them."""
    if not numbers.any():
        return ("",), np.zeros(len(numbers), np.int32)
    named = np.bincount(numbers) > 0
    named[0] = True
    positions = (named.cumsum() - 1).astype(np.int32)
    used = np.flatnonzero(named).tolist()
    return ("", *(owners[number] for number in used[1:])), positions[numbers]


def _expire_seconds(
    hashes: NDArray[np.void], order: NDArray[np.int64], expiries: Mapping[bytes, int]
) -> NDArray[np.uint32]:
    if not expiries:
        return np.full(len(order), NEVER, np.uint32)
    names = hashes.take(order).tolist()
    return np.fromiter((expiries.get(name, NEVER) for name in names), np.uint32, len(order))


def _numbered(column: NDArray[np.void]) -> tuple[tuple[NamespaceId, ...], NDArray[np.int32]]:
    """The distinct values of a column, and each row's position among them."""
    words = column.view(np.uint64).reshape(-1, 4)
    numbers = np.full(len(column), -1, np.int32)
    distinct: list[bytes] = []
    # One pass for each namespace, as there are few; a table of all rows when there are many.
    while len(distinct) < _NAMESPACE_PASSES_MAX:
        rest = np.flatnonzero(numbers < 0)
        if not rest.size:
            return tuple(map(NamespaceId, distinct)), numbers
        same = same_words(words, words[rest[0]])
        numbers[same] = len(distinct)
        distinct.append(column[rest[0]].tobytes())
    position: dict[bytes, int] = {}
    found = [position.setdefault(value, len(position)) for value in column.tolist()]
    return tuple(map(NamespaceId, position)), np.array(found, np.int32)


NO_BLOCKS = recovered_columns(
    BlockRows.of(()), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64), {}, {}
)
