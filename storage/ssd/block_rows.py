"""Block rows of the index: their bytes, and many of them as columns.

Invariant: what `BlockRowReader` takes in matched its checksum, over key and value, row by row. The
layout is frozen: it is on disk (docs/formats/segment.md). Any thread; a reader belongs to one.
"""

import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from storage.ssd.format import RecordHeader

__all__ = [
    "BLOCK_KEY",
    "BLOCK_ROW",
    "CODEC_MASK",
    "OWNER_NUMBER_MAX",
    "OWNER_SHIFT",
    "UNIT_END",
    "BlockRowReader",
    "BlockRows",
    "block_row",
    "key_numbers",
    "owner_numbers",
    "sealed_row",
    "with_unit_end",
]

BLOCK_KEY = b"b"
"""First byte of a block row's key; the block hash follows."""

_FIELDS = [
    ("parent", "V32"),
    ("namespace", "V32"),
    ("segment_id", "<u4"),
    ("codec_owner", "<u4"),
    ("generation", "<u8"),
    ("offset", "<u8"),
    ("payload_bytes", "<u8"),
    ("stored_bytes", "<u8"),
    ("checksum", "<u8"),
    ("sequence", "<u8"),
]
_CHECKSUM = ("row_checksum", "<u8")
BLOCK_ROW = np.dtype([*_FIELDS, _CHECKSUM])
"""Value of a block row."""

OWNER_SHIFT = 8
"""Bits of `codec_owner` below the owner's number: the codec (three), whether a prefix unit ends
with the block (one), the number of the data key (four)."""
UNIT_END = 1 << 3
CODEC_MASK = UNIT_END - 1
_KEY_SHIFT = 4
OWNER_NUMBER_MAX = (1 << 32 - OWNER_SHIFT) - 1

_BLOCK = struct.Struct("<32s32sIIQQQQQQ")
_SEAL = struct.Struct("<Q")
_MARKED_BYTE = struct.calcsize("<32s32sI")
"""The lowest of `codec_owner`."""
_KEY_BYTES = len(BLOCK_KEY) + 32

_ENTRY = np.dtype([("kind", "u1"), ("hash", "V32"), *_FIELDS, _CHECKSUM])
"""Key and value, one behind the other."""
_SEALED = np.dtype([("covered", f"V{_ENTRY.itemsize - _SEAL.size}"), _CHECKSUM])
"""The same bytes, for their checksum."""
_COLUMNS = {name: np.dtype(kind) for name, kind in (("hash", "V32"), *_FIELDS)}


@dataclass(frozen=True, slots=True, eq=False)
class BlockRows:
    """Blocks as columns: `rows["offset"][i]` is of the block `rows.hashes[i]`.

    A column lies in one piece of memory: one field of a million whole rows takes as long to go
    through as all of them.
    """

    columns: Mapping[str, NDArray[Any]]
    """Equally long: "hash" (V32) and the fields of `BLOCK_ROW` but for the checksum."""

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    @property
    def hashes(self) -> NDArray[np.void]:
        return self.columns["hash"]

    @classmethod
    def of(cls, pairs: Sequence[tuple[bytes, bytes]]) -> "BlockRows":
        """From (block hash, row value) pairs as `block_row` makes them."""
        raw = b"".join([BLOCK_KEY + block_hash + value for block_hash, value in pairs])
        entries = np.frombuffer(raw, _ENTRY)
        return cls({name: np.ascontiguousarray(entries[name]) for name in _COLUMNS})

    @classmethod
    def joined(cls, parts: "Sequence[BlockRows]") -> "BlockRows":
        """One after the other. REQUIRES: at least one."""
        return cls({name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS})

    def chosen(self, keep: NDArray[np.bool_]) -> "BlockRows":
        """The rows where `keep` is true."""
        if keep.all():
            return self
        return BlockRows({name: column[keep] for name, column in self.columns.items()})


class BlockRowReader:
    """Takes in entries of the index, a few at a time; what matches its checksum becomes columns."""

    def __init__(self, expected_count: int) -> None:
        """`expected_count` is a guess: with a good one nothing is copied to make room."""
        self._count = 0
        self._columns = {name: np.empty(expected_count, dtype) for name, dtype in _COLUMNS.items()}
        self.damaged_hashes: list[bytes] = []
        """Keys whose row does not match its checksum."""

    def take(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """(key, value) pairs as the index holds them."""
        raw = b"".join(itertools.chain.from_iterable(entries))
        if not _all_whole(raw, len(entries)):
            raw = b"".join(self._whole_ones(entries))
        found = np.frombuffer(raw, _ENTRY)
        start, self._count = self._count, self._count + len(found)
        for name, column in self._columns.items():
            if self._count > len(column):
                room = np.empty(max(self._count, 2 * len(column)), column.dtype)
                room[:start] = column[:start]
                self._columns[name] = column = room
            column[start : self._count] = found[name]

    def rows(self) -> BlockRows:
        """All that were whole, in the order in which they came."""
        return BlockRows({name: column[: self._count] for name, column in self._columns.items()})

    def _whole_ones(self, entries: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
        for key, value in entries:
            whole = (len(key), len(value)) == (_KEY_BYTES, BLOCK_ROW.itemsize)
            if whole and value == sealed_row(key, value[: -_SEAL.size]):
                yield key + value
            else:
                self.damaged_hashes.append(key[1:])


def _all_whole(raw: bytes, count: int) -> bool:
    """True when `raw` is `count` entries of the right length and each matches its checksum."""
    if len(raw) != count * _ENTRY.itemsize:
        return False
    sealed = np.frombuffer(raw, _SEALED)
    # Digests are big-endian. Nothing here runs Python code for a row.
    digests = b"".join(map(xxhash.xxh3_64_digest, sealed["covered"].tolist()))
    return bool((np.frombuffer(digests, ">u8") == sealed["row_checksum"]).all())


def block_row(header: RecordHeader, owner_number: int = 0) -> tuple[bytes, bytes]:
    """(block hash, row value); of an encrypted record, the checksum under its mask."""
    record, location, encrypted = header.record, header.location, header.encrypted
    checksum, codec = location.checksum, int(header.codec)
    if encrypted is not None:
        checksum ^= encrypted.mask
        codec |= encrypted.key_number << _KEY_SHIFT
    fields = _BLOCK.pack(
        record.parent_hash,
        record.namespace_id,
        location.segment_id,
        codec | UNIT_END * header.unit_end | owner_number << OWNER_SHIFT,
        location.generation,
        location.offset,
        location.payload_bytes,
        location.stored_bytes,
        checksum,
        header.sequence,
    )
    return record.block_hash, sealed_row(BLOCK_KEY + record.block_hash, fields)


def key_numbers(rows: BlockRows) -> NDArray[np.uint8]:
    """Of each row's data key; 0: in clear."""
    numbers = rows["codec_owner"].astype(np.uint8) >> np.uint8(_KEY_SHIFT)
    return numbers.astype(np.uint8)


def owner_numbers(rows: BlockRows) -> NDArray[np.uint32]:
    """Of each row's owner; 0: nobody's."""
    numbers: NDArray[np.uint32] = rows["codec_owner"] >> np.uint32(OWNER_SHIFT)
    return numbers


def with_unit_end(block_hash: bytes, value: bytes) -> bytes | None:
    """The row of a block with which a unit ends; None where it says so already, or is damaged."""
    key, fields = BLOCK_KEY + block_hash, bytearray(value[: -_SEAL.size])
    if len(value) != BLOCK_ROW.itemsize or value != sealed_row(key, bytes(fields)):
        return None
    if fields[_MARKED_BYTE] & UNIT_END:
        return None
    fields[_MARKED_BYTE] |= UNIT_END
    return sealed_row(key, bytes(fields))


def sealed_row(key: bytes, fields: bytes) -> bytes:
    """A row's value: its fields, and the checksum over key and fields."""
    return fields + _SEAL.pack(xxhash.xxh3_64_intdigest(key + fields))


assert BLOCK_ROW.itemsize == _BLOCK.size + _SEAL.size
assert _ENTRY.itemsize == _SEALED.itemsize == _KEY_BYTES + BLOCK_ROW.itemsize
