"""Read one record and believe nothing: every byte that comes back was checked in this call.

Invariant: a call returns only if header and payload are those of the block that was asked for;
otherwise it raises, and what its target holds then is not to be used. Any reader thread; each
thread keeps memory of its own for the header page and for bytes that have a codec.
"""

import threading

import xxhash

from storage.codec import Codec, CodecError, decode
from storage.env import Env
from storage.errors import CorruptBlockError, TierIOError
from storage.ssd.files import Scratch, TruncatedFileError, aligned_buffer, check_aligned, read_all
from storage.ssd.format import BadPageError, RecordHeader, parse_record_header
from storage.ssd.payload import payload_matches
from storage.ssd.segments import FREE, Segment, SegmentTable
from storage.tier import PAGE_BYTES, BlockRecord, SsdLocation, rounded

__all__ = ["BlockReader"]


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
        raw = stored_bytes == size
        stored = into if raw else self._memory.stored.take(rounded(stored_bytes))
        header = self._header_and(stored, record, location)
        if not raw:
            try:
                decode(header.codec, stored[:stored_bytes], into[:size])
            except CodecError as error:
                raise _corrupt(f"its stored bytes do not decode: {error}", location) from None
        if xxhash.xxh3_64_intdigest(into[:size]) != record.checksum:
            raise _corrupt("its payload does not match its checksum", location)
        if size != into.nbytes:
            into[size:] = bytes(into.nbytes - size)

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
        segment = self._table.get(location.segment_id)
        if segment is None or segment.state == FREE or segment.generation != location.generation:
            raise _corrupt("its segment was recycled", location)
        try:
            header = self._read(stored, segment, location)
        except OSError as error:
            raise TierIOError(
                f"segment {location.segment_id} cannot be read: {error}", errno=error.errno
            ) from error
        except (TruncatedFileError, BadPageError) as error:
            raise _corrupt(str(error), location) from None
        if header.record != record or header.location != location:
            raise _corrupt("another block lies there", location)
        return header

    def _read(self, stored: memoryview, segment: Segment, location: SsdLocation) -> RecordHeader:
        page = self._memory.page
        read_all(self._env, segment.fd, [page, stored], location.offset)
        return parse_record_header(page, self._table.header_of(segment), location.offset)


class _ThreadMemory(threading.local):
    """Made anew in each thread that looks at it."""

    def __init__(self) -> None:
        self.page = aligned_buffer(PAGE_BYTES)
        self.stored = Scratch()
        self.payload = Scratch()


def _stored_bytes(record: BlockRecord, location: SsdLocation) -> int:
    """The location's, once it is known to need no more memory than the payload itself."""
    if not 0 < location.stored_bytes <= record.payload_bytes:
        raise _corrupt(f"its place has {location.stored_bytes} stored bytes", location)
    return location.stored_bytes


def _corrupt(what: str, location: SsdLocation) -> CorruptBlockError:
    return CorruptBlockError(
        f"a block on the SSD is unusable: {what}",
        segment_id=location.segment_id,
        offset=location.offset,
    )
