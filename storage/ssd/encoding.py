"""Blocks as they will lie on the disk: encoded where that saves a page, otherwise as they are; then
encrypted, where that is wanted.

Invariant: `StoredBlock.view` is page-aligned and `rounded(stored_bytes)` long; the codec is none
exactly when stored and payload bytes are equal. Pure, any thread.
"""

from typing import NamedTuple

from storage.codec import Codec, encode
from storage.ssd.encryption import DataKey, Encrypted, bound_bytes
from storage.ssd.files import aligned_buffer, check_aligned
from storage.ssd.format import record_bytes
from storage.tier import BlockRecord, rounded

__all__ = ["StoredBlock", "as_stored", "as_stored_encrypted", "encrypted_block", "stored_block"]


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
    encrypted: Encrypted | None = None
    """None: `view` is in clear."""
    unit_end: bool = False
    """A prefix unit ends with the block."""


def as_stored(record: BlockRecord, view: memoryview, codec: Codec, owner: str = "") -> StoredBlock:
    """In clear. `view` is page-aligned memory of `rounded(payload_bytes)` bytes; ValueError
    otherwise."""
    size = record.payload_bytes
    check_aligned(view, rounded(size))
    if codec is not Codec.NONE and size > 0:
        encoded = encode(codec, view[:size])
        if rounded(encoded.nbytes) < rounded(size):
            target = aligned_buffer(rounded(encoded.nbytes))
            target[: encoded.nbytes] = encoded
            return stored_block(record, codec, encoded.nbytes, target, owner)
    return stored_block(record, Codec.NONE, size, view, owner)


def as_stored_encrypted(
    record: BlockRecord,
    view: memoryview,
    codec: Codec,
    owner: str,
    key: DataKey,
    nonce: bytes,
    target: memoryview,
) -> StoredBlock:
    """The same, encrypted: what was shrunk where it lies, the caller's memory into `target`, which
    is like it."""
    plain = as_stored(record, view, codec, owner)
    own = plain.codec is not Codec.NONE
    return encrypted_block(plain, key, nonce, plain.view if own else target)


def encrypted_block(
    plain: StoredBlock, key: DataKey, nonce: bytes, target: memoryview
) -> StoredBlock:
    """`target` is as long as `plain.view` and may be the same memory; what follows the stored bytes
    in it means nothing."""
    record, size = plain.record, plain.stored_bytes
    bound = bound_bytes(record, size, plain.codec, plain.owner, key.key_id)
    tag = key.encrypt(nonce, bound, plain.view[:size], target[:size])
    encrypted = key.encrypted(nonce, tag, record.block_hash)
    return plain._replace(view=target, encrypted=encrypted)


def stored_block(
    record: BlockRecord,
    codec: Codec,
    stored_bytes: int,
    view: memoryview,
    owner: str = "",
    encrypted: Encrypted | None = None,
) -> StoredBlock:
    """REQUIRES: `view` is as the invariant says."""
    room = record_bytes(stored_bytes)
    return StoredBlock(record, codec, stored_bytes, view, room, owner, encrypted)
