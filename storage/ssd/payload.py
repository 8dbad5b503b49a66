"""Do stored bytes decode to the payload that their record names? Pure, any thread."""

from kvtier.keys import payload_checksum
from storage.codec import Codec, decode
from storage.ssd.files import Scratch
from storage.ssd.format import RecordHeader

__all__ = ["payload_matches"]


def payload_matches(header: RecordHeader, stored: memoryview, scratch: Scratch) -> bool:
    """True when `stored` decodes to the record's payload. Raises CodecError."""
    payload = stored
    if header.codec is not Codec.NONE:
        payload = scratch.take(header.record.payload_bytes)
        decode(header.codec, stored, payload)
    return payload_checksum(header.record.block_hash, payload) == header.record.checksum
