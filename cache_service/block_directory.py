"""BlockDirectory: block hash -> row, for millions of blocks without an object for any of them.

An open-addressing table of 4-byte entries over one column of 32-byte hashes:

    table   | 0 | row + 1 | 0 | row + 1 | row + 1 | ...     power of two, at most a quarter full
    hashes  | 32 bytes | 32 bytes | ...                     one per row

A row is a small number that its owner's columns are indexed with. Taking an entry out moves later
ones of its run up, so there are no tombstones and the table never has to be cleaned. Where an entry
goes is a multilinear hash (random odd multipliers over all four words, drawn at start): a client
may choose hashes freely and must not be able to choose collisions.

Memory is reserved ahead and touched only when used, so growing costs a pause only when more blocks
come than `reserve` was told of. A dict of `bytes` to `int` takes 150 bytes a block, this takes 40
to 48. Not thread-safe; the index owns it, on the event loop.
"""

import secrets
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvtier.keys import BlockHash

__all__ = ["ABSENT", "HASH_BYTES", "BlockDirectory"]

ABSENT = -1
HASH_BYTES = 32

_WORDS = struct.Struct("<4Q")
_WORD_MASK = (1 << 64) - 1
_ROWS_MIN = 1024
_VECTOR_MIN = 16
"""Fewer hashes than this are looked up one by one: NumPy calls cost more."""
_ALL_FOUR = np.uint32(0x01010101)
"""Four booleans that are true."""


class BlockDirectory:
    """Rows by hash. Rows that were removed are used again, the latest first."""

    def __init__(self) -> None:
        a, b, c, d = (secrets.randbits(64) | 1 for _ in range(4))
        self._multipliers = (a, b, c, d)
        self._factors = np.array(self._multipliers, np.uint64)
        self._count = 0
        self._high = 0
        """Rows below this were used at some time."""
        self._free: list[int] = []
        self._capacity = 0
        self._bytes_column: NDArray[np.uint8]
        self._words: NDArray[np.uint64]
        self._bytes: memoryview
        self._table: NDArray[np.int32]
        self._entries: memoryview
        self._allocate(_ROWS_MIN)

    def __len__(self) -> int:
        return self._count

    @property
    def row_capacity(self) -> int:
        """Rows that exist; the owner's columns have as many."""
        return self._capacity

    @property
    def row_high(self) -> int:
        """One more than the highest row in use since the start."""
        return self._high

    @property
    def memory_bytes(self) -> int:
        """What is touched: the table, and hashes of rows used so far."""
        return self._table.nbytes + self._high * HASH_BYTES + 8 * len(self._free)

    def reserve(self, row_count: int) -> None:
        """Makes room for that many rows; never shrinks. Growing costs a pass over all rows."""
        if row_count > self._capacity:
            self._allocate(row_count)

    # -- one ---------------------------------------------------------------------------------------

    def find(self, block_hash: bytes) -> int:
        """The row, or ABSENT."""
        table, mask, hashes = self._entries, self._mask, self._bytes
        at = self._home(block_hash)
        while entry := table[at]:
            start = (entry - 1) * HASH_BYTES
            if hashes[start : start + HASH_BYTES] == block_hash:
                return entry - 1
            at = (at + 1) & mask
        return ABSENT

    def hash_of(self, row: int) -> BlockHash:
        """REQUIRES: the row is in use, or was and has not been given away since."""
        return BlockHash(bytes(self._bytes[row * HASH_BYTES : (row + 1) * HASH_BYTES]))

    def name_of(self, row: int) -> int:
        """64 bits of the hash, for who only needs to recognise a block again."""
        return int(self._words[row, 0])

    def names(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """`name_of` for many rows."""
        names: NDArray[np.uint64] = self._words[rows, 0]
        return names

    def words(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """`hash_of` for many rows, as words (n, 4); for a row of -1 something."""
        words: NDArray[np.uint64] = self._words[rows]
        return words

    def insert(self, block_hash: bytes) -> int:
        """A row for a hash that is absent."""
        if self._free:
            row = self._free.pop()
        else:
            if self._high == self._capacity:
                self._allocate(2 * self._capacity)
            row = self._high
            self._high += 1
        self._bytes[row * HASH_BYTES : (row + 1) * HASH_BYTES] = block_hash
        table, mask = self._entries, self._mask
        at = self._home(block_hash)
        while table[at]:
            at = (at + 1) & mask
        table[at] = row + 1
        self._count += 1
        return row

    def unlist(self, row: int) -> None:
        """The hash leads nowhere from now on; the row stays taken until `free`."""
        table, mask = self._entries, self._mask
        hole = self._home_of(row)
        while table[hole] != row + 1:
            assert table[hole], "the row is not listed"
            hole = (hole + 1) & mask
        # Later entries of the run move up unless that would put one before its home.
        at = hole
        while entry := table[(at := (at + 1) & mask)]:
            home = self._home_of(entry - 1)
            if (at - home) & mask >= (at - hole) & mask:
                table[hole] = entry
                hole = at
        table[hole] = 0
        self._count -= 1

    def free(self, row: int) -> None:
        """Gives away a row that is not listed any more."""
        self._free.append(row)

    # -- many --------------------------------------------------------------------------------------

    def find_many(self, hashes: Sequence[bytes]) -> list[int]:
        """Rows, ABSENT where there is none."""
        words = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 4)
        found: list[int] = self.find_words(words).tolist()
        return found

    def find_words(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """As `find_many`, for hashes as words (n, 4)."""
        found = np.full(len(words), ABSENT, np.int64)
        if len(words) < _VECTOR_MIN:
            left = np.arange(len(words))
        else:
            left = self._find_by_first_word(words, found)
        for i in left.tolist():
            found[i] = self.find(words[i].tobytes())
        return found

    def _find_by_first_word(
        self, words: NDArray[np.uint64], found: NDArray[np.int64]
    ) -> NDArray[np.intp]:
        """Fills in most of `found`; returns which are left to be looked at one by one."""
        first = np.ascontiguousarray(words[:, 0])
        at = self._homes(words)
        left = np.arange(len(words))
        while len(left) >= _VECTOR_MIN:
            rows = self._table[at].astype(np.int64) - 1  # nothing listed there is ABSENT
            found[left] = rows
            passed = (self._words[rows, 0] != first[left]) & (rows != ABSENT)
            left, at = left[passed], (at[passed] + 1) & self._mask
        # Hashes that begin alike: rare, unless somebody makes them so.
        same = (self._words.take(found, axis=0) == words).view(np.uint32)[:, 0] == _ALL_FOUR
        wrong = ~same & (found != ABSENT)
        wrong[left] = False
        return np.concatenate((left, np.flatnonzero(wrong))) if wrong.any() else left

    def insert_run(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """A row for each of different hashes that are absent, as words (n, 4); as `insert`."""
        count, taken = len(words), len(self._free)
        reused = self._free[: -count - 1 : -1]
        del self._free[taken - len(reused) :]
        fresh = count - len(reused)
        if self._high + fresh > self._capacity:
            self._allocate(max(2 * self._capacity, self._high + fresh))
        rows = np.array([*reused, *range(self._high, self._high + fresh)], np.int64)
        self._high += fresh
        self._words[rows] = words
        self._list_all(rows)
        self._count += count
        return rows

    def unlist_run(self, rows: NDArray[np.int64]) -> None:
        """As `unlist` of one after the other."""
        table, mask = self._table, self._mask
        at, left = self._homes(self._words[rows]), np.arange(len(rows))
        while len(left := left[table[at[left]] != rows[left] + 1]):
            assert table[at[left]].all(), "a row is not listed"
            at[left] = (at[left] + 1) & mask
        # With nothing behind it an entry goes without moving others.
        last = table[(at + 1) & mask] == 0
        table[at[last]] = 0
        self._count -= int(last.sum())
        for row in rows[~last].tolist():
            self.unlist(row)

    def free_run(self, rows: NDArray[np.int64]) -> None:
        """As `free` of one after the other."""
        self._free.extend(rows.tolist())

    def insert_many(self, hashes: NDArray[np.uint8]) -> None:
        """Rows 0 to n-1 for n different hashes (n, 32). REQUIRES: the directory is empty and was
        never used."""
        assert self._high == 0
        count = len(hashes)
        self.reserve(count)
        self._bytes_column[:count] = hashes
        self._high = self._count = count
        self._list_all(np.arange(count, dtype=np.int64))

    # -- below -------------------------------------------------------------------------------------

    def _home_of(self, row: int) -> int:
        return self._home(self._bytes, row * HASH_BYTES)

    def _home(self, hashes: bytes | memoryview, start: int = 0) -> int:
        a, b, c, d = _WORDS.unpack_from(hashes, start)
        m0, m1, m2, m3 = self._multipliers
        home: int = ((a * m0 + b * m1 + c * m2 + d * m3) & _WORD_MASK) >> self._shift
        return home

    def _homes(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        mixed: NDArray[np.uint64] = words @ self._factors
        return (mixed >> np.uint64(self._shift)).astype(np.int64)

    def _allocate(self, row_count: int) -> None:
        """New table and hashes for at least `row_count` rows, with everything that is listed."""
        listed = np.empty(0, np.int64)
        if self._capacity:
            listed = self._table[self._table != 0].astype(np.int64) - 1
        slots = 1 << max(4 * row_count - 1, 1).bit_length()
        hashes = np.empty((row_count, HASH_BYTES), np.uint8)
        if self._high:
            hashes[: self._high] = self._bytes_column[: self._high]
        self._capacity = row_count
        self._bytes_column = hashes
        self._words = hashes.view(np.uint64)
        self._bytes = hashes.reshape(-1).data
        self._table = np.zeros(slots, np.int32)
        self._entries = self._table.data
        self._mask = slots - 1
        self._shift = 64 - (slots.bit_length() - 1)
        self._list_all(listed)

    def _list_all(self, rows: NDArray[np.int64]) -> None:
        """Lists rows of different hashes: each round, who finds an empty entry first takes it."""
        at = self._homes(self._words[rows])
        while len(rows):
            empty = self._table[at] == 0
            self._table[at[empty]] = (rows[empty] + 1).astype(np.int32)
            settled = self._table[at] == rows + 1
            rows, at = rows[~settled], (at[~settled] + 1) & self._mask

    def check_integrity(self) -> None:
        """Every listed row is found by its hash; nothing is listed twice or free as well."""
        listed = (self._table[self._table != 0] - 1).tolist()
        assert len(listed) == len(set(listed)) == self._count
        assert set(listed).isdisjoint(self._free)
        assert len(self._free) == len(set(self._free))
        assert all(row < self._high for row in listed)
        assert 2 * self._count <= len(self._table)
        for row in listed:
            assert self.find(self.hash_of(row)) == row
