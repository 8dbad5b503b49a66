"""Read one record and believe nothing: every byte that comes back was checked in this call.

Invariant: a call returns only if header and payload are those of the block that was asked for;
otherwise it raises, and what its target holds then is not to be used. Any reader thread; each
thread keeps memory of its own for the header page and for bytes that have a codec.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, ParamSpec

from kvtier.keys import payload_checksum, payload_checksums
from storage.codec import CodecError, decode
from storage.env import Env
from storage.errors import CorruptBlockError, StorageError, TierIOError
from storage.ssd.encryption import WrongTagError
from storage.ssd.files import Scratch, TruncatedFileError, aligned_buffer, check_aligned, read_all
from storage.ssd.format import (
    BadPageError,
    RawPages,
    RecordHeader,
    parse_record_header,
    record_bytes,
)
from storage.ssd.key_ring import KeyRing
from storage.ssd.payload import PayloadScratch, payload_matches
from storage.ssd.segments import FREE, Segment, SegmentTable
from storage.tier import PAGE_BYTES, BlockRecord, SegmentId, SsdLocation, rounded

__all__ = [
    "FIRST_RUN_BYTES",
    "RUN_BYTES_MAX",
    "RUN_BYTES_SHARED",
    "BlockRead",
    "BlockReader",
    "runs",
]

P = ParamSpec("P")

RUN_READS_MAX = 64
"""Records in one system call."""

FIRST_RUN_BYTES = 4 << 20
RUN_BYTES_MAX = 16 << 20
"""A run grows while it is smaller. Each costs a processor that slept three wake-ups, so few and
large ones take the least; the first of a flow is short, for whoever waits for its first block."""

RUN_BYTES_SHARED = 4 << 20
"""The same beside others who want little; `read_lane.py` says when."""


class BlockRead(NamedTuple):
    """A block that is wanted, and the memory for it."""

    record: BlockRecord
    location: SsdLocation
    into: memoryview
    """Page-aligned, `rounded(payload_bytes)` bytes."""


def runs(
    reads: Sequence[BlockRead],
    run_bytes_max: int = RUN_BYTES_MAX,
    first_bytes_max: int = FIRST_RUN_BYTES,
) -> Iterator[tuple[int, int, int]]:
    """Cuts reads where one system call ends: first, end and bytes of each run.

    The records of a run lie one behind the other and have no codec, so that each can be read to
    where it is wanted.
    """
    start = size = 0
    size_max = first_bytes_max
    follows: tuple[SegmentId, int, int] | None = None
    for i, (_, at, _) in enumerate(reads):
        raw = at.stored_bytes == at.payload_bytes
        room = record_bytes(at.stored_bytes)
        place = at.segment_id, at.generation, at.offset
        full = size >= size_max or i - start >= RUN_READS_MAX
        if i > start and (full or not raw or place != follows):
            yield start, i, size
            start, size, size_max = i, 0, run_bytes_max
        size += room
        follows = (at.segment_id, at.generation, at.offset + room) if raw else None
    if reads:
        yield start, len(reads), size


class BlockReader:
    """Reads and verifies blocks of a `SegmentTable`."""

    def __init__(self, env: Env, table: SegmentTable, keys: KeyRing) -> None:
        self._env = env
        self._table = table
        self._keys = keys
        self._memory = _ThreadMemory()

    def read(self, record: BlockRecord, location: SsdLocation, into: memoryview) -> None:
        """Fills `into` (page-aligned, `rounded(payload_bytes)` bytes); bytes past the payload
        become zero. Raises CorruptBlockError, TierIOError, ValueError for a wrong `into`."""
        size = record.payload_bytes
        check_aligned(into, rounded(size))
        stored_bytes = _stored_bytes(record, location)
        if stored_bytes == size:
            page = self._page_and(into, location)
            segment, this = self._segment_of(location), BlockRead(record, location, into)
            if self._memory.pages.hold(self._table.header_of(segment), [this]):
                _check_payload(*this)
            else:
                self._check(page, segment, this)
            return
        stored = self._memory.stored.take(rounded(stored_bytes))
        header = self._header_and(stored, record, location)
        self._decrypt(header, stored[:stored_bytes])
        try:
            decode(header.codec, stored[:stored_bytes], into[:size])
        except CodecError as error:
            raise _corrupt(f"its stored bytes do not decode: {error}", location) from None
        _check_payload(record, location, into)

    def read_run(self, reads: Sequence[BlockRead]) -> list[Exception | None]:
        """Reads the records of one of the `runs`, where possible in one system call. For each,
        None or what `read` would have raised."""
        segment = self._fetched(reads) if len(reads) > 1 else None
        if segment is None:
            return [_outcome(self.read, *each) for each in reads]
        header = self._table.header_of(segment)
        if self._memory.pages.hold(header, reads) and _payloads_match(reads):
            return [None] * len(reads)
        pages = zip(self._memory.pages.views, reads, strict=False)
        return [_outcome(self._check, page, segment, each) for page, each in pages]

    def read_stored(
        self, record: BlockRecord, location: SsdLocation, into: memoryview
    ) -> RecordHeader:
        """As `read`, but `into` (`rounded(stored_bytes)` bytes) gets the bytes as they are stored;
        what its header says is returned."""
        stored_bytes = _stored_bytes(record, location)
        check_aligned(into, rounded(stored_bytes))
        header = self._header_and(into, record, location)
        try:
            matches = payload_matches(header, into[:stored_bytes], self._memory.payload, self._keys)
        except WrongTagError as error:
            raise _corrupt(str(error), location) from None
        except CodecError as error:
            raise _corrupt(f"its stored bytes do not decode: {error}", location) from None
        if not matches:
            raise _corrupt("its payload does not match its checksum", location)
        return header

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
        page = self._memory.pages.views[0]
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
        if header.encrypted is not None:
            header = self._keys.unmasked_as(header, record)
        if header.record != record or header.location != location:
            raise _corrupt("another block lies there", location)
        return header

    def _decrypt(self, header: RecordHeader, stored: memoryview) -> None:
        """In place, where it is encrypted."""
        if header.encrypted is not None:
            try:
                self._keys.decrypt(header, stored, stored)
            except WrongTagError as error:
                raise _corrupt(str(error), header.location) from None

    def _fetched(self, reads: Sequence[BlockRead]) -> Segment | None:
        """Fills every read's memory, and this thread's header pages; their segment. None when that
        fails for any of them: each alone then shows which."""
        first = reads[0].location
        buffers: list[memoryview] = []
        for page, (_, location, into) in zip(self._memory.pages.views, reads, strict=False):
            if into.nbytes != rounded(location.stored_bytes):
                return None
            buffers += (page, into)
        try:
            # Memory that is not aligned is refused by the call itself where it matters.
            read_all(self._env, self._segment_of(first).fd, buffers, first.offset)
            return self._segment_of(first)
        except (OSError, CorruptBlockError, TruncatedFileError):
            return None

    def _check(self, page: memoryview, segment: Segment, read: BlockRead) -> None:
        """What `read` checks, of a record without codec that is in memory already."""
        header = self._checked_header(page, segment, read.record, read.location)
        self._decrypt(header, read.into[: read.location.stored_bytes])
        _check_payload(*read)


class _ThreadMemory(threading.local):
    """Made anew in each thread that looks at it."""

    def __init__(self) -> None:
        self.pages = RawPages(aligned_buffer(RUN_READS_MAX * PAGE_BYTES))
        """Header pages of a run."""
        self.stored = Scratch()
        self.payload = PayloadScratch()


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


def _payloads_match(reads: Sequence[BlockRead]) -> bool:
    """True when each payload fills its memory and has its checksum; one by one else."""
    hashes, checksums, targets = [], [], []
    for record, _, into in reads:
        if into.nbytes != record.payload_bytes:
            return False
        hashes.append(record.block_hash)
        checksums.append(record.checksum)
        targets.append(into)
    return payload_checksums(hashes, targets) == checksums


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
