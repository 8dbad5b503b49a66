"""Memo rows of the index: small values that the owner keeps beside the blocks, by name.

Invariant: a row that does not match its checksum is no memo. The layout is frozen: it is on disk
(docs/formats/segment.md). Pure, any thread.
"""

from storage.ssd.block_rows import sealed_row

__all__ = ["MEMO_KEY", "memo_entry", "read_memo"]

MEMO_KEY = b"n"
"""First byte of a memo's key; its name follows."""

_SEAL_BYTES = 8


def memo_entry(name: bytes, value: bytes | None) -> tuple[bytes, bytes | None]:
    """Key and value; None deletes it."""
    key = MEMO_KEY + name
    return key, None if value is None else sealed_row(key, value)


def read_memo(key: bytes, row: bytes) -> tuple[bytes, bytes] | None:
    """(name, value); None for a damaged one."""
    value = row[:-_SEAL_BYTES]
    return (key[len(MEMO_KEY) :], value) if row == sealed_row(key, value) else None
