"""The index of the SSD tier: one RocksDB row per block, one more for a block that expires, one per
segment, one per owner of blocks, one for the directory.

Invariant: a batch is applied whole or not at all, and is durable once `apply` returns (unsynced
WriteBatch, then `flush_wal(True)`: p99 1.0 ms where a synced write has 10). The meta row is written
last, so an index that has one is complete. Row layouts: docs/formats/segment.md. The index is read
once, at open; looked up is only what is about to be changed. Writer thread only, after recovery.

RocksDB is kept small: 16 MiB memtables, a bounded WAL, few log files; a row costs about 170 bytes.
"""

import contextlib
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import rocksdict

from storage.errors import (
    DataDirectoryError,
    DirectoryFullError,
    DirectoryLockedError,
    TierIOError,
)
from storage.ssd.block_rows import BLOCK_KEY, BlockRowReader, BlockRows, sealed_row
from storage.ssd.expiry_rows import EXPIRY_KEY, expiry_entry, read_expiry
from storage.ssd.format import FORMAT_VERSION, refuse_newer
from storage.ssd.memo_rows import MEMO_KEY, memo_entry, read_memo
from storage.ssd.owner_rows import OWNER_KEY, owner_entry, owner_key, read_owner
from storage.ssd.segments import FREE, OPEN, SEALED, Segment
from storage.ssd.wear import WEAR_KEY, Wear, pack_wear, parse_wear
from storage.tier import SegmentId

__all__ = [
    "IndexBatch",
    "IndexContent",
    "IndexUnusableError",
    "MetaRow",
    "SegmentRow",
    "SsdIndex",
    "count_blocks",
]

Entries = Iterator[tuple[bytes, bytes]]

_SEGMENT = struct.Struct("<QQQQQ")
_META = struct.Struct("<QQQ")
_STATES = (FREE, OPEN, SEALED)
_META_KEY = b"m"
_COUNT_PROPERTY = "rocksdb.estimate-num-keys"
_ROWS_PER_BATCH_MAX = 50_000
_ROWS_PER_CHUNK = 1024
"""Read at one go: few enough to be hashed and joined while they are in the processor's cache, and
for memory that was just given back to be had again."""


WRITE_BUFFER_BYTES = 4 << 20
"""About 25,000 blocks. It fills in minutes and then empties: a larger one looks like a leak for
that long, and twice its size is what it takes."""


class IndexUnusableError(Exception):
    """The index is missing, unfinished or damaged: rebuild it. Stays inside the SSD room."""


@dataclass(frozen=True, slots=True)
class MetaRow:
    """What is true of the whole directory."""

    format_version: int
    segment_bytes: int
    open_count: int
    """How often the directory was opened: upper half of sequence numbers."""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment as the index knows it."""

    segment_id: SegmentId
    generation: int
    state: str
    tail: int
    seed: int
    prewritten_bytes: int


@dataclass(frozen=True, slots=True)
class IndexContent:
    """Everything the index holds."""

    meta: MetaRow
    segments: dict[SegmentId, SegmentRow]
    blocks: BlockRows
    damaged_hashes: list[bytes]
    """Keys whose row does not match its checksum."""
    expiries: Mapping[bytes, int] = field(default_factory=dict)
    """Block hash -> Unix second, of blocks that have an end; some may be of none that is here."""
    memos: Mapping[bytes, bytes] = field(default_factory=dict)
    """Name -> value."""
    damaged_memo_count: int = 0
    owners: Mapping[int, str] = field(default_factory=dict)
    """Number in block rows -> owner; without those whose row is damaged."""
    wear: Wear | None = None
    """None in a store of a version that did not count, or where the count is damaged."""


@dataclass(frozen=True, slots=True)
class IndexBatch:
    """Changes that become durable together."""

    put_blocks: Sequence[tuple[bytes, bytes]] = ()
    """(block hash, row value) as `block_row` makes it."""
    delete_blocks: Sequence[bytes] = ()
    put_expiries: Sequence[tuple[bytes, int]] = ()
    """(block hash, Unix second)."""
    delete_expiries: Sequence[bytes] = ()
    put_memos: Sequence[tuple[bytes, bytes | None]] = ()
    """(name, value); None deletes it."""
    put_owners: Sequence[tuple[int, str]] = ()
    """(number, owner)."""
    delete_owners: Sequence[int] = ()
    put_segments: Sequence[Segment] = ()
    delete_segments: Sequence[SegmentId] = ()
    put_wear: Wear | None = None
    put_meta: MetaRow | None = None


class SsdIndex:
    """An open RocksDB. Owned by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates; nothing is compacted yet.

        Raises IndexUnusableError, DirectoryLockedError, DirectoryFullError.
        """
        options = _options()
        options.set_disable_auto_compactions(True)
        try:
            # By name: else the options that an existing index was made with are used.
            self._db = rocksdict.Rdict(str(path), options, column_families={"default": options})
        except Exception as error:  # the binding raises plain Exception for every RocksDB status
            raise _translated(error) from error

    def load(self) -> IndexContent:
        """Every row. Raises IndexUnusableError, FormatTooNewError."""
        others: list[tuple[bytes, bytes]] = []
        items: Entries = iter(())
        try:
            reader = BlockRowReader(self._db.property_int_value(_COUNT_PROPERTY) or 0)
            # Raw mode: keys and values are bytes, which the binding's types cannot say.
            items = cast("Entries", iter(self._db.items(read_opt=_bulk())))
            while chunk := list(itertools.islice(items, _ROWS_PER_CHUNK)):
                if chunk[0][0][:1] != BLOCK_KEY or chunk[-1][0][:1] != BLOCK_KEY:
                    others += [entry for entry in chunk if entry[0][:1] != BLOCK_KEY]
                    chunk = [entry for entry in chunk if entry[0][:1] == BLOCK_KEY]
                reader.take(chunk)
        except Exception as error:  # as above: a bad SST block ends the iteration with one
            raise _translated(error) from error
        finally:
            # While an iterator lives, also in a traceback, RocksDB does not let go of its files.
            items = iter(())
        expiries = dict(read_expiry(*entry) for entry in others if entry[0][:1] == EXPIRY_KEY)
        memos = [read_memo(*entry) for entry in others if entry[0][:1] == MEMO_KEY]
        found = (read_owner(*entry) for entry in others if entry[0][:1] == OWNER_KEY)
        owners = dict(owner for owner in found if owner is not None)
        beside = (EXPIRY_KEY, MEMO_KEY, OWNER_KEY)
        meta, segments, wear = _read_others([e for e in others if e[0][:1] not in beside])
        return IndexContent(
            meta,
            segments,
            reader.rows(),
            reader.damaged_hashes,
            expiries,
            dict(memo for memo in memos if memo is not None),
            memos.count(None),
            owners,
            wear,
        )

    def block_values(self, hashes: Sequence[bytes]) -> list[bytes | None]:
        """Values of block rows; None where there is none. Raises TierIOError."""
        try:
            found = self._db.get([BLOCK_KEY + block_hash for block_hash in hashes])
        except Exception as error:  # the binding raises plain Exception for every RocksDB status
            raise TierIOError(f"the SSD index cannot be read: {error}") from error
        return cast("list[bytes | None]", found)

    def start_compaction(self) -> None:
        """Lets RocksDB compact from now on, as it has to. Before, it would take a processor and
        the disk from who is loading. Raises TierIOError."""
        try:
            self._db.set_options({"disable_auto_compactions": "false"})
        except Exception as error:  # the binding raises plain Exception for every RocksDB status
            raise TierIOError(f"the SSD index cannot be compacted: {error}") from error

    def apply(self, batch: IndexBatch) -> None:
        """Durable on return. Raises TierIOError; what the index holds is unknown then."""
        try:
            for write in _write_batches(batch):
                self._db.write(write)
            self._db.flush_wal(True)
        except Exception as error:  # the binding raises plain Exception for every RocksDB status
            raise TierIOError(f"the SSD index cannot be written: {error}") from error

    def note(self, wear: Wear) -> None:
        """Kept if this process is killed; durable with the next `apply`. Raises TierIOError."""
        try:
            for write in _write_batches(IndexBatch(put_wear=wear)):
                self._db.write(write)
        except Exception as error:  # the binding raises plain Exception for every RocksDB status
            raise TierIOError(f"the SSD index cannot be written: {error}") from error

    def close(self) -> None:
        """Closes. What `apply` made durable stays so, whatever the disk says by now."""
        # Once a write has failed RocksDB refuses the flush that closing begins with; every
        # acknowledged row is in its synced log, where the next start finds it.
        with contextlib.suppress(Exception):
            self._db.close()


def count_blocks(path: Path) -> int | None:
    """Block rows of an index of any format, by their keys alone; None when it cannot be read."""
    try:
        index = rocksdict.Rdict(str(path), _options())
        try:
            keys = cast("list[bytes]", list(index.keys()))
            return sum(key[:1] == BLOCK_KEY for key in keys)
        finally:
            index.close()
    except Exception:  # the binding raises plain Exception for every RocksDB status
        return None


def _write_batches(batch: IndexBatch) -> list[rocksdict.WriteBatch]:
    """In order; all of an ordinary batch in one, so that it is atomic. Only recovery exceeds one
    batch, and there the meta row, in the last one, is what makes the index count."""
    puts: list[tuple[bytes, bytes | None]] = [
        (BLOCK_KEY + key, value) for key, value in batch.put_blocks
    ]
    puts += [(BLOCK_KEY + key, None) for key in batch.delete_blocks]
    puts += [expiry_entry(key, second) for key, second in batch.put_expiries]
    puts += [(EXPIRY_KEY + key, None) for key in batch.delete_expiries]
    puts += [memo_entry(name, value) for name, value in batch.put_memos]
    puts += [owner_entry(number, owner) for number, owner in batch.put_owners]
    puts += [(owner_key(number), None) for number in batch.delete_owners]
    puts += [(_segment_key(s.segment_id), _segment_value(s)) for s in batch.put_segments]
    puts += [(_segment_key(segment_id), None) for segment_id in batch.delete_segments]
    if batch.put_wear is not None:
        puts.append((WEAR_KEY, sealed_row(WEAR_KEY, pack_wear(batch.put_wear))))
    if batch.put_meta is not None:
        puts.append((_META_KEY, _meta_value(batch.put_meta)))
    writes = []
    for start in range(0, len(puts), _ROWS_PER_BATCH_MAX):
        write = rocksdict.WriteBatch(raw_mode=True)
        for key, value in puts[start : start + _ROWS_PER_BATCH_MAX]:
            if value is None:
                write.delete(key)
            else:
                write.put(key, value)
        writes.append(write)
    return writes


def _read_others(
    entries: Sequence[tuple[bytes, bytes]],
) -> tuple[MetaRow, dict[SegmentId, SegmentRow], Wear | None]:
    """The rows that are no block's."""
    meta: MetaRow | None = None
    wear: Wear | None = None
    segments: dict[SegmentId, SegmentRow] = {}
    for key, value in entries:
        whole = value == sealed_row(key, value[:-8])
        if key == WEAR_KEY:
            wear = parse_wear(value[:-8]) if whole else None
            continue
        if not whole:
            raise IndexUnusableError(f"the index row {key[:1]!r} is damaged")
        if key == _META_KEY:
            meta = MetaRow(*_META.unpack_from(value))
        elif key[:1] == b"s":
            segment = _segment_row(key[1:], value)
            segments[segment.segment_id] = segment
        else:
            raise IndexUnusableError(f"an index row of unknown kind {key[:1]!r}")
    if meta is None:
        raise IndexUnusableError("the index was never finished")
    refuse_newer(meta.format_version)
    if meta.format_version != FORMAT_VERSION:
        raise IndexUnusableError(f"its rows are of format {meta.format_version}")
    return meta, segments, wear


def _segment_key(segment_id: SegmentId) -> bytes:
    return b"s" + segment_id.to_bytes(4, "big")


def _segment_value(s: Segment) -> bytes:
    fields = _SEGMENT.pack(s.generation, _STATES.index(s.state), s.tail, s.seed, s.prewritten_bytes)
    return sealed_row(_segment_key(s.segment_id), fields)


def _segment_row(key: bytes, value: bytes) -> SegmentRow:
    generation, state, tail, seed, prewritten = _SEGMENT.unpack_from(value)
    segment_id = SegmentId(int.from_bytes(key, "big"))
    return SegmentRow(segment_id, generation, _STATES[state], tail, seed, prewritten)


def _meta_value(meta: MetaRow) -> bytes:
    fields = _META.pack(meta.format_version, meta.segment_bytes, meta.open_count)
    return sealed_row(_META_KEY, fields)


def _translated(error: Exception) -> Exception:
    text = str(error)
    if "No space left" in text:
        return DirectoryFullError(f"no room for the SSD index: {text}; free some space")
    if "Too many open files" in text:
        return DataDirectoryError(f"the SSD index cannot be opened: {text}; raise ulimit -n")
    if "lock" in text.lower() and "hold" in text.lower():
        return DirectoryLockedError(f"another process has the SSD index open: {text}")
    return IndexUnusableError(text)


def _bulk() -> rocksdict.ReadOptions:
    """For reading everything once, in order."""
    options = rocksdict.ReadOptions()
    options.fill_cache(False)  # type: ignore[call-arg]  # the stub forgets the argument
    options.set_readahead_size(4 << 20)
    return options


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    # The default (point in time) silently ends at the first bad WAL record and would forget
    # acknowledged blocks behind it; this one accepts a torn end and reports anything else.
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_paranoid_checks(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_max_total_wal_size(64 << 20)
    options.set_target_file_size_base(64 << 20)
    options.set_max_bytes_for_level_base(256 << 20)
    options.set_max_background_jobs(2)
    options.set_max_open_files(256)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    table = rocksdict.BlockBasedOptions()
    table.set_checksum_type(rocksdict.ChecksumType.xxh3())
    table.set_block_cache(rocksdict.Cache(8 << 20))
    table.set_block_size(16 << 10)
    options.set_block_based_table_factory(table)
    return options
