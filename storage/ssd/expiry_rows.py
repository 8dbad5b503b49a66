"""Expiry rows of the index: until when a block may be used, for those blocks that have an end.

Invariant: a row that does not match its checksum counts as long over, never as without an end. The
layout is frozen: it is on disk (docs/formats/segment.md). Pure, any thread.
"""

import struct

from storage.ssd.block_rows import sealed_row

__all__ = ["EXPIRY_KEY", "LONG_OVER", "expiry_entry", "read_expiry"]

EXPIRY_KEY = b"e"
"""First byte of an expiry row's key; the block hash follows."""

LONG_OVER = 0

_SECOND = struct.Struct("<Q")


def expiry_entry(block_hash: bytes, second: int) -> tuple[bytes, bytes]:
    """Key and value."""
    key = EXPIRY_KEY + block_hash
    return key, sealed_row(key, _SECOND.pack(second))


def read_expiry(key: bytes, value: bytes) -> tuple[bytes, int]:
    """(block hash, Unix second)."""
    if value != sealed_row(key, value[:-8]) or len(value) != 2 * _SECOND.size:
        return key[1:], LONG_OVER
    (second,) = _SECOND.unpack_from(value)
    return key[1:], second
