"""Read one record and believe nothing: every byte that comes back was checked in this call.

Invariant: `read` returns only if header and payload are those of the block that was asked for;
otherwise it raises, and what `into` holds then is not to be used. Any reader thread; each thread
keeps a header page of its own.
"""

import threading

import xxhash

from storage.env import Env
from storage.errors import CorruptBlockError, TierIOError
from storage.ssd.files import TruncatedFileError, aligned_buffer, check_aligned, read_all
from storage.ssd.format import BadPageError, RecordHeader, parse_record_header
from storage.ssd.segments import FREE, Segment, SegmentTable
from storage.tier import PAGE_BYTES, BlockRecord, SsdLocation, rounded

__all__ = ["BlockReader"]


class BlockReader:
    """Reads and verifies blocks of a `SegmentTable`."""

    def __init__(self, env: Env, table: SegmentTable) -> None:
        self._env = env
        self._table = table
        self._local = threading.local()

    def read(self, record: BlockRecord, location: SsdLocation, into: memoryview) -> None:
        """Fills `into` (page-aligned, `rounded(payload_bytes)` bytes); bytes past the payload
        become zero. Raises CorruptBlockError, TierIOError, ValueError for a wrong `into`."""
        size = record.payload_bytes
        check_aligned(into, rounded(size))
        segment = self._table.get(location.segment_id)
        if segment is None or segment.state == FREE or segment.generation != location.generation:
            raise _corrupt("its segment was recycled", location)
        try:
            header = self._read_header_and(into, segment, location)
        except OSError as error:
            raise TierIOError(
                f"segment {location.segment_id} cannot be read: {error}", errno=error.errno
            ) from error
        except (TruncatedFileError, BadPageError) as error:
            raise _corrupt(str(error), location) from None
        if header.record != record or header.location != location:
            raise _corrupt("another block lies there", location)
        if xxhash.xxh3_64_intdigest(into[:size]) != record.checksum:
            raise _corrupt("its payload does not match its checksum", location)
        if size != into.nbytes:
            into[size:] = bytes(into.nbytes - size)

    def _read_header_and(
        self, into: memoryview, segment: Segment, location: SsdLocation
    ) -> RecordHeader:
        page = self._page()
        read_all(self._env, segment.fd, [page, into], location.offset)
        return parse_record_header(page, self._table.header_of(segment), location.offset)

    def _page(self) -> memoryview:
        page: memoryview | None = getattr(self._local, "page", None)
        if page is None:
            page = self._local.page = aligned_buffer(PAGE_BYTES)
        return page


def _corrupt(what: str, location: SsdLocation) -> CorruptBlockError:
    return CorruptBlockError(
        f"a block on the SSD is unusable: {what}",
        segment_id=location.segment_id,
        offset=location.offset,
    )
