"""A data directory as if a million blocks had been stored, without the payload.

Segments are sparse files with real headers, index rows are real and written through the index
itself, in chains of which each block names the one before. What opening such a directory costs is
what it costs with the payload there: nothing but headers and the index is read.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kvtier.keys import BlockHash, NamespaceId
from storage.codec import Codec
from storage.ssd.format import (
    FORMAT_VERSION,
    INDEX_DIRECTORY,
    MARKER_FILE,
    SEGMENT_DIRECTORY,
    Marker,
    RecordHeader,
    SegmentHeader,
    pack_marker,
    pack_segment_header,
    record_bytes,
    segment_path,
)
from storage.ssd.index import IndexBatch, MetaRow, SsdIndex
from storage.ssd.owner_rows import OwnerNumbers
from storage.ssd.segments import FREE, SEALED, Segment
from storage.tier import NO_PARENT, PAGE_BYTES, BlockRecord, SegmentId, SsdLocation

__all__ = [
    "BLOCK_BYTES",
    "NAMESPACE",
    "SEGMENT_BYTES",
    "capacity_bytes",
    "hash_of",
    "make_directory",
]

BLOCK_BYTES = 2 << 20
SEGMENT_BYTES = 1 << 30
NAMESPACE = NamespaceId(hashlib.sha256(b"kvtier bench restart").digest())
_CHAIN_BLOCKS = 64
_FREE_SEGMENTS = 4
_BLOCKS_PER_BATCH = 4096
_PER_SEGMENT = (SEGMENT_BYTES - PAGE_BYTES) // record_bytes(BLOCK_BYTES)


def capacity_bytes(block_count: int) -> int:
    """With which a directory of so many blocks is to be opened."""
    return (-(-block_count // _PER_SEGMENT) + _FREE_SEGMENTS) * SEGMENT_BYTES


def hash_of(number: int) -> BlockHash:
    """The name of block `number`, counted from 0."""
    return BlockHash(hashlib.sha256(b"%d" % number).digest())


def make_directory(
    path: Path,
    block_count: int,
    progress: Callable[[int, int], None],
    owner: str = "",
    *,
    one_tree: bool = False,
) -> None:
    """Makes it, as a clean stop would leave it. `progress` is told (done, total).

    `owner`: whose all blocks are. `one_tree`: every chain continues block 0.
    """
    (path / SEGMENT_DIRECTORY).mkdir(parents=True)
    (path / MARKER_FILE).write_bytes(pack_marker(Marker(FORMAT_VERSION, SEGMENT_BYTES)))
    segments = [
        _make_segment(path, number, block_count)
        for number in range(capacity_bytes(block_count) // SEGMENT_BYTES)
    ]
    index = SsdIndex(path / INDEX_DIRECTORY)
    index.start_compaction()
    batch: list[tuple[bytes, bytes]] = []
    owners = OwnerNumbers({})
    for done, header in enumerate(_headers(block_count, owner, one_tree), 1):
        batch.append(owners.row_of(header))
        if len(batch) == _BLOCKS_PER_BATCH or done == block_count:
            index.apply(IndexBatch(put_blocks=batch, put_owners=owners.take_new()))
            batch = []
            progress(done, block_count)
    meta = MetaRow(FORMAT_VERSION, SEGMENT_BYTES, 1)
    index.apply(IndexBatch(put_segments=segments, put_meta=meta))
    index.close()


def _make_segment(path: Path, number: int, block_count: int) -> Segment:
    segment_id = SegmentId(number)
    count = min(_PER_SEGMENT, max(0, block_count - number * _PER_SEGMENT))
    seed = number + 1 if count else 0
    with segment_path(path, segment_id).open("wb") as file:
        os.ftruncate(file.fileno(), SEGMENT_BYTES)
        if count:
            file.write(pack_segment_header(SegmentHeader(segment_id, 1, SEGMENT_BYTES, seed)))
    tail = PAGE_BYTES + count * record_bytes(BLOCK_BYTES)
    state = SEALED if count else FREE
    return Segment(segment_id, -1, 1, state, tail, seed, SEGMENT_BYTES)


def _headers(block_count: int, owner: str, one_tree: bool) -> Iterator[RecordHeader]:
    root = hash_of(0) if one_tree else NO_PARENT
    parent = NO_PARENT
    for number in range(block_count):
        if number and number % _CHAIN_BLOCKS == 0:
            parent = root
        block_hash = hash_of(number)
        record = BlockRecord(block_hash, parent, NAMESPACE, BLOCK_BYTES, number)
        at, slot = divmod(number, _PER_SEGMENT)
        offset = PAGE_BYTES + slot * record_bytes(BLOCK_BYTES)
        location = SsdLocation(SegmentId(at), 1, offset, BLOCK_BYTES, number, BLOCK_BYTES)
        yield RecordHeader(record, location, (1 << 32) + number, Codec.NONE, owner)
        parent = block_hash
