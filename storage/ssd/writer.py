"""Everything that changes segments and index, on one thread, in one durable order.

    append:  data -> fdatasync -> index batch -> flush_wal -> tail moves -> return

Invariant: what a call returned is on disk and indexed; a call that raised before touching the index
made no block visible to a reader. If the index itself fails, what it holds is unknown, so the
writer refuses every later change until the directory is opened again.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from storage.codec import Codec
from storage.env import Env
from storage.errors import (
    BlockTooLargeError,
    StorageError,
    TierIOError,
)
from storage.ssd.block_rows import with_unit_end
from storage.ssd.encoding import StoredBlock, encrypted_block, stored_block
from storage.ssd.encryption import organisation_of
from storage.ssd.files import aligned_buffer, aligned_pages, write_all
from storage.ssd.format import (
    RecordHeader,
    SegmentHeader,
    pack_segment_header,
    write_record_header,
)
from storage.ssd.index import IndexBatch, SsdIndex
from storage.ssd.key_ring import KeyRing
from storage.ssd.owner_rows import OwnerNumbers
from storage.ssd.planning import Part, plan_append
from storage.ssd.reader import BlockReader
from storage.ssd.relog_reads import RelogReads, chunks
from storage.ssd.segments import SEALED, Segment, SegmentTable, freed
from storage.ssd.wear import Wear
from storage.tier import NEVER, PAGE_BYTES, BlockRecord, SegmentId, SsdLocation

__all__ = ["SegmentWriter"]

_RECORDS_PER_WRITE_MAX = 128
"""Header pages kept for one vectored write."""
_ZEROS_BYTES = 1 << 20


class SegmentWriter:
    """The one writer of the tier."""

    def __init__(
        self,
        env: Env,
        table: SegmentTable,
        index: SsdIndex,
        first_sequence: int,
        owners: OwnerNumbers,
        wear: Wear,
        keys: KeyRing,
        *,
        expiries: bool,
        mark_expiries: Callable[[], None],
    ) -> None:
        """`expiries`: the directory says that some blocks have an end; else `mark_expiries` makes
        it say so."""
        self._env = env
        self._table = table
        self._index = index
        self._relog_reads = RelogReads(BlockReader(env, table, keys))
        self._keys = keys
        self._sequence = first_sequence
        self._owners = owners
        self._headers = aligned_pages(_RECORDS_PER_WRITE_MAX)
        self._failure: StorageError | None = None
        self._expiries = expiries
        self._mark_expiries = mark_expiries
        self.written_bytes = 0
        """Records and headers, since open."""
        self.wear = wear
        """Frozen; for reading from any thread."""
        self._note = wear.note

    def append(
        self, batch: Sequence[StoredBlock], expire_seconds: Sequence[int] = ()
    ) -> list[SsdLocation]:
        """Writes all of `batch` with what `expire_seconds` says of each (nothing: never), durable
        on return. Raises SegmentsFullError (nothing was written), BlockTooLargeError, TierIOError.
        """
        self._check_usable()
        for block in batch:
            self._check_size(block.record.payload_bytes)
            self._check_key(block)
        if not batch:
            return []
        names = [block.record.block_hash for block in batch]
        put, delete = self._expiries_of(names, expire_seconds or [NEVER] * len(batch))
        return self._append(batch, put, delete)

    def _append(
        self,
        batch: Sequence[StoredBlock],
        put: Sequence[tuple[bytes, int]],
        delete: Sequence[bytes],
    ) -> list[SsdLocation]:
        """`put` and `delete`: what becomes of expiry rows with it."""
        plan = plan_append(self._table, batch, self._env.random_seed)
        self.count(sum(block.record.payload_bytes for block in batch), plan.written_bytes)
        headers: list[RecordHeader] = []
        try:
            for part in plan.parts:
                headers += self._write_part(part)
                self._env.fdatasync(part.segment.fd)
            cleaned = [s for s in plan.changed if s.state == SEALED and self._clear_rest(s)]
        except OSError as error:
            raise _io_error("written", error) from error
        self._apply(
            IndexBatch(
                put_blocks=[self._owners.row_of(h) for h in headers],
                put_owners=self._owners.take_new(),
                put_expiries=put,
                delete_expiries=delete,
                put_segments=plan.changed,
            )
        )
        self._table.put(*plan.changed)
        for segment in cleaned:
            self._keys.cleaned(segment.segment_id)
        return [h.location for h in headers]

    def forget(self, hashes: Sequence[bytes]) -> None:
        """Deletes index rows, durable on return. Raises TierIOError."""
        self._check_usable()
        if hashes:
            ends = hashes if self._expiries else ()
            self._apply(IndexBatch(delete_blocks=hashes, delete_expiries=ends))

    def save_expiries(self, expiries: Sequence[tuple[bytes, int]]) -> None:
        """Until when blocks may be used, durable on return. Raises TierIOError."""
        self._check_usable()
        put, delete = self._expiries_of(*zip(*expiries, strict=True)) if expiries else ((), ())
        if put or delete:
            self._apply(IndexBatch(put_expiries=put, delete_expiries=delete))

    def save_unit_ends(self, hashes: Sequence[bytes]) -> None:
        """Prefix units end with these blocks, durable on return; what has no row is passed over.
        Records stay as they are. Raises TierIOError."""
        self._check_usable()
        rows = zip(hashes, self._index.block_values(hashes), strict=True)
        marked = [(each, with_unit_end(each, row)) for each, row in rows if row is not None]
        put = [(each, row) for each, row in marked if row is not None]
        if put:
            self._apply(IndexBatch(put_blocks=put))

    def save_memos(self, memos: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Keeps or deletes (None) values by name, durable on return. Raises TierIOError."""
        self._check_usable()
        if memos:
            self._apply(IndexBatch(put_memos=memos))

    def relog(
        self,
        items: Sequence[tuple[BlockRecord, SsdLocation]],
        unit_ends: Collection[bytes] = frozenset(),
    ) -> list[SsdLocation | None]:
        """Copies records to the open segment; None where one turned out corrupt. `unit_ends`: of
        which of them units end since the record was written, too. Raises SegmentsFullError when not
        all would fit (nothing was written), TierIOError."""
        self._check_usable()
        sizes = [_placeholder(record, location) for record, location in items]
        plan_append(self._table, sizes, self._env.random_seed)
        moved: list[SsdLocation | None] = []
        for chunk in chunks(items):
            moved += self._relog_chunk(chunk, unit_ends)
        return moved

    def recycle(self, segment_id: SegmentId) -> None:
        """Frees a sealed segment under the next generation, durable on return. TierIOError."""
        self._check_usable()
        segment = self._table.get(segment_id)
        if segment is None or segment.state != SEALED:
            raise ValueError(f"segment {segment_id} is not sealed")
        free = freed(segment, segment.generation + 1)
        self.count(0, PAGE_BYTES)
        try:
            self._write_segment_header(free)
            self._env.fdatasync(free.fd)
        except OSError as error:
            raise _io_error("recycled", error) from error
        self.remember(free)

    def remember(self, segment: Segment) -> None:
        """Makes a segment's state durable, then visible. Raises TierIOError."""
        self._check_usable()
        self._apply(IndexBatch(put_segments=[segment]))
        self._table.put(segment)

    def count(self, payload_bytes: int, device_bytes: int) -> None:
        """Adds what is about to be written to the wear. Raises TierIOError."""
        self.wear = replace(
            self.wear,
            payload_bytes=self.wear.payload_bytes + payload_bytes,
            device_bytes=self.wear.device_bytes + device_bytes,
            note=self._note,
        )
        try:
            self._index.note(self.wear)
        except TierIOError as error:
            self._failure = error
            raise

    def note(self, note: bytes) -> None:
        """The owner's bytes, kept from the next write or the close on. Any thread."""
        self._note = note

    def close(self) -> None:
        """Closes the index and the files; no call may follow."""
        if self._failure is None:
            with contextlib.suppress(TierIOError):
                self._apply(IndexBatch(put_wear=replace(self.wear, note=self._note)))
        self._relog_reads.close()
        self._index.close()
        for segment in self._table.view:
            self._env.close(segment.fd)

    # --- append -------------------------------------------------------------------------------

    def _check_size(self, payload_bytes: int) -> None:
        # Segments are whole pages: what fits without rounding up fits with it.
        room = self._table.segment_bytes - 2 * PAGE_BYTES
        if not 0 < payload_bytes <= room:
            raise BlockTooLargeError(
                f"a block of {payload_bytes} bytes does not fit a segment of"
                f" {self._table.segment_bytes}; make segments larger",
                payload_bytes=payload_bytes,
            )

    def _check_key(self, block: StoredBlock) -> None:
        """A key that was destroyed since would leave a record that nobody can read."""
        encrypted = block.encrypted
        if encrypted is not None and self._keys.find(encrypted.key_id) is None:
            raise TierIOError("a data key was destroyed before its block was written; store again")

    def _clear_rest(self, segment: Segment) -> bool:
        """Zeros over what an earlier life of the segment left behind its last record, where that
        may be in clear and its records are not. True: nothing of it is left. Raises OSError."""
        if not self._keys.filled_anew(segment.segment_id, segment.generation):
            return False
        self.count(0, self._table.segment_bytes - segment.tail)
        zeros = aligned_buffer(_ZEROS_BYTES)
        for offset in range(segment.tail, self._table.segment_bytes, _ZEROS_BYTES):
            size = min(_ZEROS_BYTES, self._table.segment_bytes - offset)
            write_all(self._env, segment.fd, [zeros[:size]], offset)
            self.written_bytes += size
        self._env.fdatasync(segment.fd)
        return True

    def _write_part(self, part: Part) -> Iterator[RecordHeader]:
        offset = part.segment.tail
        if offset == PAGE_BYTES:
            # First records of this segment: header and data share one fdatasync, and the row that
            # says "open" is in the same index batch as the first blocks.
            self._write_segment_header(part.segment)
        segment = self._table.header_of(part.segment)
        for start in range(0, len(part.items), _RECORDS_PER_WRITE_MAX):
            run = part.items[start : start + _RECORDS_PER_WRITE_MAX]
            buffers: list[memoryview] = []
            at = offset
            for page, block in zip(self._headers, run, strict=False):
                header = self._next_header(block, segment, at)
                write_record_header(header, segment.seed, page)
                buffers += (page, block.view)
                at += block.record_bytes
                yield header
            write_all(self._env, part.segment.fd, buffers, offset)
            self.written_bytes += at - offset
            offset = at

    def _next_header(self, block: StoredBlock, segment: SegmentHeader, at: int) -> RecordHeader:
        record = block.record
        location = SsdLocation(
            segment.segment_id,
            segment.generation,
            at,
            record.payload_bytes,
            record.checksum,
            block.stored_bytes,
        )
        # Never reused, also not after a failed write: a scan takes only rising numbers, and so
        # leaves out what a failed append left behind a later, shorter one.
        self._sequence += 1
        return RecordHeader(
            record,
            location,
            self._sequence,
            block.codec,
            block.owner,
            block.encrypted,
            block.unit_end,
        )

    def _write_segment_header(self, segment: Segment) -> None:
        page = aligned_buffer(PAGE_BYTES)
        page[:] = pack_segment_header(self._table.header_of(segment))
        write_all(self._env, segment.fd, [page], 0)
        self.written_bytes += PAGE_BYTES

    def _expiries_of(
        self, names: Sequence[bytes], seconds: Sequence[int]
    ) -> tuple[list[tuple[bytes, int]], list[bytes]]:
        """Rows to put and to delete. In a directory where nothing ever ended there is neither."""
        put = [pair for pair in zip(names, seconds, strict=True) if pair[1] != NEVER]
        if put and not self._expiries:
            try:
                self._mark_expiries()
            except OSError as error:
                raise _io_error("marked", error) from error
            self._expiries = True
        if not self._expiries:
            return [], []
        return put, [name for name, end in zip(names, seconds, strict=True) if end == NEVER]

    def _apply(self, batch: IndexBatch) -> None:
        try:
            self._index.apply(batch)
        except TierIOError as error:
            self._failure = error
            raise

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise TierIOError(
                "the SSD index failed earlier; the tier only reads until it is opened again"
            ) from self._failure

    # --- relog --------------------------------------------------------------------------------

    def _relog_chunk(
        self, chunk: Sequence[tuple[BlockRecord, SsdLocation]], unit_ends: Collection[bytes]
    ) -> list[SsdLocation | None]:
        found = self._relog_reads.read(chunk)
        good: list[StoredBlock] = []
        for header, view in (each for each in found if each is not None):
            unit_end = header.unit_end or header.record.block_hash in unit_ends
            good.append(self._again(header, view)._replace(unit_end=unit_end))
        written = iter(self._append(good, (), ()))
        return [None if each is None else next(written) for each in found]

    def _again(self, header: RecordHeader, view: memoryview) -> StoredBlock:
        """The record as it is; one in clear is encrypted where new ones are."""
        block = stored_block(
            header.record,
            header.codec,
            header.location.stored_bytes,
            view,
            header.owner,
            header.encrypted,
        )
        if header.encrypted is not None or not self._keys.enabled:
            return block
        organisation = organisation_of(header.owner)
        key = self._keys.prepare({organisation: 1})[organisation]
        return encrypted_block(block, key, self._keys.nonce(), view)


def _placeholder(record: BlockRecord, location: SsdLocation) -> StoredBlock:
    """For planning: as large as the block will be. Its codec has no part in that."""
    return stored_block(record, Codec.NONE, location.stored_bytes, memoryview(b""))


def _io_error(verb: str, error: OSError) -> TierIOError:
    return TierIOError(f"a segment cannot be {verb}: {error}", errno=error.errno)
