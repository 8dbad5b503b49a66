"""Walk the records of one segment, first to last, and stop at the first that is not valid.

Invariant: only what `parse_record_header` accepts is returned, in rising sequence. The walk never
looks for a next record behind a bad one: what lies there may be payload, and payload is whatever a
client wrote. Used by recovery, on the opening thread.
"""

from collections.abc import Iterator

from storage.codec import CodecError
from storage.env import Env
from storage.ssd.encryption import WrongTagError
from storage.ssd.files import Scratch, TruncatedFileError, aligned_buffer, read_all
from storage.ssd.format import (
    BadPageError,
    RecordHeader,
    SegmentHeader,
    parse_record_header,
    record_bytes,
)
from storage.ssd.key_ring import KeyRing
from storage.ssd.payload import PayloadScratch, payload_matches
from storage.tier import PAGE_BYTES, rounded

__all__ = ["SegmentScanner", "key_gone"]


class SegmentScanner:
    """Reads records of segments; keeps its buffers between walks."""

    def __init__(self, env: Env, keys: KeyRing) -> None:
        self._env = env
        self._keys = keys
        self._page = aligned_buffer(PAGE_BYTES)
        self._stored, self._payload = Scratch(), PayloadScratch()

    def walk(
        self, fd: int, segment: SegmentHeader, start: int, after_sequence: int, payloads: bool
    ) -> Iterator[RecordHeader]:
        """Valid records from offset `start`, unmasked; with `payloads` their payload is verified.
        Where the key is gone (`key_gone`), neither can be.

        A page that the disk cannot read ends the walk like any other bad page.
        """
        offset, sequence = start, after_sequence
        while offset + PAGE_BYTES < segment.segment_bytes:
            try:
                read_all(self._env, fd, [self._page], offset)
                header = self._keys.unmasked(parse_record_header(self._page, segment, offset))
                if header.sequence <= sequence:
                    return
                wanted = payloads and not key_gone(header)
                if wanted and not self._payload_valid(fd, header):
                    return
            except (OSError, TruncatedFileError, BadPageError, CodecError, WrongTagError):
                return
            yield header
            sequence = header.sequence
            offset += record_bytes(header.location.stored_bytes)

    def whole(self, fd: int, header: RecordHeader) -> bool:
        """True when the record's payload is what its header says; False also when unreadable."""
        try:
            return self._payload_valid(fd, header)
        except (OSError, TruncatedFileError, BadPageError, CodecError, WrongTagError):
            return False

    def _payload_valid(self, fd: int, header: RecordHeader) -> bool:
        size = header.location.stored_bytes
        stored = self._stored.take(rounded(size))
        read_all(self._env, fd, [stored], header.location.offset + PAGE_BYTES)
        return payload_matches(header, stored[:size], self._payload, self._keys)


def key_gone(header: RecordHeader) -> bool:
    """Whether it is encrypted under a key that is not here; `header` as a walk gives it."""
    return header.encrypted is not None and not header.encrypted.key_number
