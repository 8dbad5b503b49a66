"""Read one record and believe nothing: every byte that comes back was checked in this call.

Invariant: a call returns only if header and payload are those of the block that was asked for;
otherwise it raises, and what its target holds then is not to be used. Any reader thread; each
thread keeps memory of its own for the header page and for bytes that have a codec.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec

from kvtier.keys import payload_checksum
from storage.codec import Codec, CodecError, decode
from storage.env import Env
from storage.errors import CorruptBlockError, StorageError, TierIOError
from storage.ssd.files import Scratch, TruncatedFileError, aligned_buffer, check_aligned, read_all
from storage.ssd.format import (
    BadPageError,
    RecordHeader,
    is_raw_record,
    parse_record_header,
    record_bytes,
)
from storage.ssd.payload import payload_matches
from storage.ssd.segments import FREE, Segment, SegmentTable
from storage.tier import PAGE_BYTES, BlockRecord, SsdLocation, rounded

__all__ = ["RUN_READS_MAX", "BlockRead", "BlockReader", "lies_behind"]

P = ParamSpec("P")

RUN_READS_MAX = 64
"""Records in one system call."""


@dataclass(frozen=True, slots=True)
class BlockRead:
    """A block that is wanted, and the memory for it."""

    record: BlockRecord
    location: SsdLocation
    into: memoryview
    """Page-aligned, `rounded(payload_bytes)` bytes."""


def lies_behind(first: BlockRead, second: BlockRead) -> bool:
    """True when the two records can be read in one system call, without a copy."""
    a, b = first.location, second.location
    return (
        b.offset == a.offset + record_bytes(a.stored_bytes)
        and b.segment_id == a.segment_id
        and b.generation == a.generation
        and a.stored_bytes == a.payload_bytes
        and b.stored_bytes == b.payload_bytes
    )


class BlockReader:
    """Reads and verifies blocks of a `SegmentTable`."""

    def __init__(self, env: Env, table: SegmentTable) -> None:
        self._env = env
        self._table = table
        self._memory = _ThreadMemory()

    def read(self, record: BlockRecord, location: SsdLocation, into: memoryview) -> None:
        """Fills `into` (page-aligned, `rounded(payload_bytes)` bytes); bytes past the payload
        become zero. Raises CorruptBlockError, TierIOError, ValueError for a wrong `into`."""
        size = record.payload_bytes
        check_aligned(into, rounded(size))
        stored_bytes = _stored_bytes(record, location)
        if stored_bytes == size:
            self._check(self._page_and(into, location), BlockRead(record, location, into))
            return
        stored = self._memory.stored.take(rounded(stored_bytes))
        header = self._header_and(stored, record, location)
        try:
            decode(header.codec, stored[:stored_bytes], into[:size])
        except CodecError as error:
            raise _corrupt(f"its stored bytes do not decode: {error}", location) from None
        _check_payload(record, location, into)

    def read_run(self, reads: Sequence[BlockRead]) -> list[Exception | None]:
        """Reads records of which each `lies_behind` the one before, where possible in one system
        call. For each, None or what `read` would have raised."""
        pages = self._fetched(reads) if 1 < len(reads) <= RUN_READS_MAX else None
        if pages is None:
            return [_outcome(self.read, x.record, x.location, x.into) for x in reads]
        return [_outcome(self._check, page, x) for page, x in zip(pages, reads, strict=True)]

    def read_stored(self, record: BlockRecord, location: SsdLocation, into: memoryview) -> Codec:
        """As `read`, but `into` (`rounded(stored_bytes)` bytes) gets the bytes as they are stored;
        their codec is returned."""
        stored_bytes = _stored_bytes(record, location)
        check_aligned(into, rounded(stored_bytes))
        header = self._header_and(into, record, location)
        try:
            matches = payload_matches(header, into[:stored_bytes], self._memory.payload)
        except CodecError as error:
            raise _corrupt(f"its stored bytes do not decode: {error}", location) from None
        if not matches:
            raise _corrupt("its payload does not match its checksum", location)
        return header.codec

    def verify(self, record: BlockRecord, location: SsdLocation) -> None:
        """As `read`, into memory of this thread's own."""
        size = rounded(_stored_bytes(record, location))
        self.read_stored(record, location, self._memory.stored.take(size))

    def _header_and(
        self, stored: memoryview, record: BlockRecord, location: SsdLocation
    ) -> RecordHeader:
        """Reads the record, its bytes into `stored`; the header is the right one."""
        page = self._page_and(stored, location)
        return self._checked_header(page, self._segment_of(location), record, location)

    def _page_and(self, stored: memoryview, location: SsdLocation) -> memoryview:
        """Reads the record, its bytes into `stored`; the header's page, not looked at yet."""
        segment = self._segment_of(location)
        page = self._memory.pages[:PAGE_BYTES]
        try:
            read_all(self._env, segment.fd, [page, stored], location.offset)
        except OSError as error:
            raise TierIOError(
                f"segment {location.segment_id} cannot be read: {error}", errno=error.errno
            ) from error
        except TruncatedFileError as error:
            raise _corrupt(str(error), location) from None
        return page

    def _segment_of(self, location: SsdLocation) -> Segment:
        segment = self._table.get(location.segment_id)
        if segment is None or segment.state == FREE or segment.generation != location.generation:
            raise _corrupt("its segment was recycled", location)
        return segment

    def _checked_header(
        self, page: memoryview, segment: Segment, record: BlockRecord, location: SsdLocation
    ) -> RecordHeader:
        try:
            header = parse_record_header(page, self._table.header_of(segment), location.offset)
        except BadPageError as error:
            raise _corrupt(str(error), location) from None
        if header.record != record or header.location != location:
            raise _corrupt("another block lies there", location)
        return header

    # --- runs -----------------------------------------------------------------------------------

    def _fetched(self, reads: Sequence[BlockRead]) -> list[memoryview] | None:
        """Fills every read's memory; their header pages. None when that fails for any of them:
        each alone then shows which."""
        pages: list[memoryview] = []
        buffers: list[memoryview] = []
        for i, read in enumerate(reads):
            page = self._memory.pages[i * PAGE_BYTES : (i + 1) * PAGE_BYTES]
            pages.append(page)
            buffers += (page, read.into)
        first = reads[0].location
        try:
            for read in reads:
                check_aligned(read.into, rounded(read.location.stored_bytes))
            read_all(self._env, self._segment_of(first).fd, buffers, first.offset)
        except (OSError, ValueError, CorruptBlockError, TruncatedFileError):
            return None
        return pages

    def _check(self, page: memoryview, read: BlockRead) -> None:
        """What `read` checks, of a record without codec that is in memory already."""
        record, location = read.record, read.location
        segment = self._segment_of(location)
        if not is_raw_record(page, self._table.header_of(segment), record, location):
            self._checked_header(page, segment, record, location)  # says why, unless it is
        _check_payload(record, location, read.into)


class _ThreadMemory(threading.local):
    """Made anew in each thread that looks at it."""

    def __init__(self) -> None:
        self.pages = aligned_buffer(RUN_READS_MAX * PAGE_BYTES)
        self.stored = Scratch()
        self.payload = Scratch()


def _stored_bytes(record: BlockRecord, location: SsdLocation) -> int:
    """The location's, once it is known to need no more memory than the payload itself."""
    if not 0 < location.stored_bytes <= record.payload_bytes:
        raise _corrupt(f"its place has {location.stored_bytes} stored bytes", location)
    return location.stored_bytes


def _check_payload(record: BlockRecord, location: SsdLocation, into: memoryview) -> None:
    size = record.payload_bytes
    if payload_checksum(record.block_hash, into[:size]) != record.checksum:
        raise _corrupt("its payload does not match its checksum", location)
    if size != into.nbytes:
        into[size:] = bytes(into.nbytes - size)


def _outcome(check: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> Exception | None:
    try:
        check(*args, **kwargs)
    except (StorageError, ValueError) as error:
        return error
    return None


def _corrupt(what: str, location: SsdLocation) -> CorruptBlockError:
    return CorruptBlockError(
        f"a block on the SSD is unusable: {what}",
        segment_id=location.segment_id,
        offset=location.offset,
    )
