"""Walk the records of one segment, first to last, and stop at the first that is not valid.

Invariant: only what `parse_record_header` accepts is returned, in rising sequence. The walk never
looks for a next record behind a bad one: what lies there may be payload, and payload is whatever a
client wrote. Used by recovery, on the opening thread.
"""

from collections.abc import Iterator

from storage.codec import CodecError
from storage.env import Env
from storage.ssd.files import Scratch, TruncatedFileError, aligned_buffer, read_all
from storage.ssd.format import (
    BadPageError,
    RecordHeader,
    SegmentHeader,
    parse_record_header,
    record_bytes,
)
from storage.ssd.payload import payload_matches
from storage.tier import PAGE_BYTES, rounded

__all__ = ["SegmentScanner"]


class SegmentScanner:
    """Reads records of segments; keeps its buffers between walks."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._page = aligned_buffer(PAGE_BYTES)
        self._stored, self._payload = Scratch(), Scratch()

    def walk(
        self, fd: int, segment: SegmentHeader, start: int, after_sequence: int, payloads: bool
    ) -> Iterator[RecordHeader]:
        """Valid records from offset `start`; with `payloads` also their payload is verified.

        A page that the disk cannot read ends the walk like any other bad page.
        """
        offset, sequence = start, after_sequence
        while offset + PAGE_BYTES < segment.segment_bytes:
            try:
                read_all(self._env, fd, [self._page], offset)
                header = parse_record_header(self._page, segment, offset)
                if header.sequence <= sequence:
                    return
                if payloads and not self._payload_valid(fd, header):
                    return
            except (OSError, TruncatedFileError, BadPageError, CodecError):
                return
            yield header
            sequence = header.sequence
            offset += record_bytes(header.location.stored_bytes)

    def whole(self, fd: int, header: RecordHeader) -> bool:
        """True when the record's payload is what its header says; False also when unreadable."""
        try:
            return self._payload_valid(fd, header)
        except (OSError, TruncatedFileError, BadPageError, CodecError):
            return False

    def _payload_valid(self, fd: int, header: RecordHeader) -> bool:
        size = header.location.stored_bytes
        stored = self._stored.take(rounded(size))
        read_all(self._env, fd, [stored], header.location.offset + PAGE_BYTES)
        return payload_matches(header, stored[:size], self._payload)
