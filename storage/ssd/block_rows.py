"""Block rows of the index: their bytes, and many of them as columns.

Invariant: what `BlockRows.read` takes in matched its checksum, over key and value, row by row. The
layout is frozen: it is on disk (docs/formats/segment.md). Pure functions, any thread.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from storage.ssd.format import RecordHeader

__all__ = ["BLOCK_KEY", "BLOCK_ROW", "BlockRows", "block_row", "sealed_row"]

BLOCK_KEY = b"b"
"""First byte of a block row's key; the block hash follows."""

BLOCK_ROW = np.dtype(
    [
        ("parent", "V32"),
        ("namespace", "V32"),
        ("segment_id", "<u4"),
        ("codec", "<u4"),
        ("generation", "<u8"),
        ("offset", "<u8"),
        ("payload_bytes", "<u8"),
        ("stored_bytes", "<u8"),
        ("checksum", "<u8"),
        ("sequence", "<u8"),
        ("row_checksum", "<u8"),
    ]
)
"""Value of a block row."""

_BLOCK = struct.Struct("<32s32sIIQQQQQQ")
_SEAL = struct.Struct("<Q")
_KEY_BYTES = len(BLOCK_KEY) + 32
_KEY = np.dtype([("kind", "V1"), ("hash", "V32")])


@dataclass(frozen=True, slots=True, eq=False)
class BlockRows:
    """Blocks as columns: `hashes[i]` (V32) belongs to `rows[i]` (`BLOCK_ROW`)."""

    hashes: NDArray[np.void]
    rows: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, pairs: Sequence[tuple[bytes, bytes]]) -> "BlockRows":
        """From (block hash, row value) pairs as `block_row` makes them."""
        hashes = b"".join([block_hash for block_hash, _ in pairs])
        rows = b"".join([value for _, value in pairs])
        return cls(np.frombuffer(hashes, "V32"), np.frombuffer(rows, BLOCK_ROW))

    @classmethod
    def read(cls, entries: Sequence[tuple[bytes, bytes]]) -> tuple["BlockRows", list[bytes]]:
        """From (key, value) pairs as the index holds them; and the hashes of damaged ones."""
        keys = [key for key, _ in entries]
        values = [value for _, value in entries]
        if {*map(len, keys)} - {_KEY_BYTES} or {*map(len, values)} - {BLOCK_ROW.itemsize}:
            return cls._read_each(entries)
        seal = xxhash.xxh3_64_intdigest
        found = np.array([seal(key + value[:-8]) for key, value in entries], np.uint64)
        rows = np.frombuffer(b"".join(values), BLOCK_ROW)
        hashes = np.frombuffer(b"".join(keys), _KEY)["hash"]
        blocks = cls(np.ascontiguousarray(hashes), rows)
        good = found == rows["row_checksum"]
        return blocks.chosen(good), blocks.hashes[~good].tolist()

    @classmethod
    def _read_each(cls, entries: Sequence[tuple[bytes, bytes]]) -> tuple["BlockRows", list[bytes]]:
        """Rows of which some have not even the right length."""
        good, damaged = [], []
        for key, value in entries:
            whole = (len(key), len(value)) == (_KEY_BYTES, BLOCK_ROW.itemsize)
            if whole and value[-8:] == sealed_row(key, value[:-8])[-8:]:
                good.append((key[1:], value))
            else:
                damaged.append(key[1:])
        return cls.of(good), damaged

    @classmethod
    def joined(cls, parts: "Sequence[BlockRows]") -> "BlockRows":
        """One after the other."""
        if not parts:
            return cls.of(())
        return cls(
            np.concatenate([part.hashes for part in parts]),
            np.concatenate([part.rows for part in parts]),
        )

    def chosen(self, keep: NDArray[np.bool_]) -> "BlockRows":
        """The rows where `keep` is true."""
        return self if keep.all() else BlockRows(self.hashes[keep], self.rows[keep])


def block_row(header: RecordHeader) -> tuple[bytes, bytes]:
    """(block hash, row value)."""
    record, location = header.record, header.location
    fields = _BLOCK.pack(
        record.parent_hash,
        record.namespace_id,
        location.segment_id,
        header.codec,
        location.generation,
        location.offset,
        location.payload_bytes,
        location.stored_bytes,
        location.checksum,
        header.sequence,
    )
    return record.block_hash, sealed_row(BLOCK_KEY + record.block_hash, fields)


def sealed_row(key: bytes, fields: bytes) -> bytes:
    """A row's value: its fields, and the checksum over key and fields."""
    return fields + _SEAL.pack(xxhash.xxh3_64_intdigest(key + fields))


assert BLOCK_ROW.itemsize == _BLOCK.size + _SEAL.size
