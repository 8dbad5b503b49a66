"""Do stored bytes decrypt and decode to the payload that their record names? Any thread."""

from kvtier.keys import payload_checksum
from storage.codec import Codec, decode
from storage.ssd.files import Scratch
from storage.ssd.format import RecordHeader
from storage.ssd.key_ring import KeyRing

__all__ = ["PayloadScratch", "payload_matches"]


class PayloadScratch:
    """Memory of one thread."""

    def __init__(self) -> None:
        self.plain = Scratch()
        self.payload = Scratch()


def payload_matches(
    header: RecordHeader, stored: memoryview, scratch: PayloadScratch, keys: KeyRing
) -> bool:
    """True when `stored` decodes to the record's payload. `header` is unmasked. Raises CodecError,
    WrongTagError."""
    if header.encrypted is not None:
        plain = scratch.plain.take(stored.nbytes)
        keys.decrypt(header, stored, plain)
        stored = plain
    payload = stored
    if header.codec is not Codec.NONE:
        payload = scratch.payload.take(header.record.payload_bytes)
        decode(header.codec, stored, payload)
    return payload_checksum(header.record.block_hash, payload) == header.record.checksum
