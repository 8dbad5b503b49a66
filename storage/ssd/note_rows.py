"""Note rows of the index: small values that the owner keeps beside the blocks, by name.

Invariant: a row that does not match its checksum is no note. The layout is frozen: it is on disk
(docs/formats/segment.md). Pure, any thread.
"""

from storage.ssd.block_rows import sealed_row

__all__ = ["NOTE_KEY", "note_entry", "read_note"]

NOTE_KEY = b"n"
"""First byte of a note's key; its name follows."""

_SEAL_BYTES = 8


def note_entry(name: bytes, value: bytes | None) -> tuple[bytes, bytes | None]:
    """Key and value; None deletes it."""
    key = NOTE_KEY + name
    return key, None if value is None else sealed_row(key, value)


def read_note(key: bytes, row: bytes) -> tuple[bytes, bytes] | None:
    """(name, value); None for a damaged one."""
    value = row[:-_SEAL_BYTES]
    return (key[len(NOTE_KEY) :], value) if row == sealed_row(key, value) else None
