"""Blocks as they will lie on the disk: encoded where that saves a page, otherwise as they are.

Invariant: `StoredBlock.view` is page-aligned and `rounded(stored_bytes)` long; the codec is none
exactly when stored and payload bytes are equal. Pure, any thread.
"""

from typing import NamedTuple

from storage.codec import Codec, encode
from storage.ssd.files import aligned_buffer, check_aligned
from storage.ssd.format import record_bytes
from storage.tier import BlockRecord, rounded

__all__ = ["StoredBlock", "as_stored", "stored_block"]


class StoredBlock(NamedTuple):
    """A block ready to be written."""

    record: BlockRecord
    codec: Codec
    stored_bytes: int
    view: memoryview
    """The caller's own memory where the codec is none."""
    record_bytes: int
    """Room the record takes: header page and `view`."""
    owner: str = ""
    unit_end: bool = False
    """A prefix unit ends with the block."""


def as_stored(record: BlockRecord, view: memoryview, codec: Codec, owner: str = "") -> StoredBlock:
    """`view` is page-aligned memory of `rounded(payload_bytes)` bytes; ValueError otherwise."""
    size = record.payload_bytes
    check_aligned(view, rounded(size))
    if codec is not Codec.NONE and size > 0:
        encoded = encode(codec, view[:size])
        if rounded(encoded.nbytes) < rounded(size):
            target = aligned_buffer(rounded(encoded.nbytes))
            target[: encoded.nbytes] = encoded
            return stored_block(record, codec, encoded.nbytes, target, owner)
    return stored_block(record, Codec.NONE, size, view, owner)


def stored_block(
    record: BlockRecord, codec: Codec, stored_bytes: int, view: memoryview, owner: str = ""
) -> StoredBlock:
    """REQUIRES: `view` is as the invariant says."""
    return StoredBlock(record, codec, stored_bytes, view, record_bytes(stored_bytes), owner)
