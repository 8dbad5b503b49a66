"""The SSD tier's door: async calls in, frozen facts out, bytes moved on the tier's own threads.

    event loop --> writer lane (1 thread): append, forget, relog, recycle, pre-writing between them
                     and its own readers of what is written again (`relog_reads.py`)
               --> reader lane (N threads): read, measuring codecs
               --> scrub lane (1 thread): verify
               --> codec lane (2 threads): encode, before the writer; decoding is part of a read

Mechanism only: which block is written, forgotten or re-logged, and which segment is recycled, is
the owner's decision. Invariant: see `writer.py` and `reader.py`; additionally, no call touches
memory or disk after it returned or raised, no write ever stands before a read, and a call that
finds its lane full raises TierBusyError at once. All methods belong to one event loop; `open`
blocks and is called before, or in a thread.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kvtier.keys import BlockHash
from storage.codec_choice import CodecChoice
from storage.env import Env, RealEnv
from storage.errors import StorageError, TierBusyError, TierIOError
from storage.ssd.codec_selector import CodecMeasurer, CodecSelector, Measure, Placed
from storage.ssd.directory import DataDirectory, explained
from storage.ssd.encoder import BlockEncoder
from storage.ssd.format import record_bytes
from storage.ssd.key_opening import open_key_ring
from storage.ssd.key_ring import NO_ENCRYPTION, Destroyed, Encryption, EncryptionView, KeyRing
from storage.ssd.lanes import Lane
from storage.ssd.prewrite import Prewriter
from storage.ssd.read_lane import ReadLane
from storage.ssd.read_order import ReadFlow
from storage.ssd.reader import BlockRead, BlockReader
from storage.ssd.recovered import NO_BLOCKS, RecoveredColumns
from storage.ssd.recovery import Progress, RecoveredTier, recover
from storage.ssd.sizes import check_sizes
from storage.ssd.wear import Wear
from storage.ssd.writer import SegmentWriter
from storage.tier import (
    BlockRecord,
    RecoveryReport,
    SegmentId,
    SegmentState,
    SsdLocation,
)

__all__ = ["SsdStats", "SsdTier"]

log = logging.getLogger(__name__)

READER_THREADS = max(2, min(4, os.cpu_count() or 2))
"""More than the cores only wait for each other: on 2 cores, 4 threads took a fifth more CPU for the
same bytes (`kvtier bench storage`)."""

_WRITER_QUEUE_MAX = 256
_READER_QUEUE_MAX = 32_768
"""As many as one call may name; what they may hold is bounded by the owner's memory for them."""
_CODEC_THREADS = 2
_CODEC_QUEUE_MAX = 4096
"""Blocks of all appends under way."""
_SCRUB_QUEUE_MAX = 4
_SAMPLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SsdStats:
    """Sizes now, and bytes moved since open."""

    used_bytes: int
    """In open and sealed segments, live or not."""
    capacity_bytes: int
    """Of all segment files."""
    written_bytes: int
    """Records and segment headers."""
    read_bytes: int
    """Stored bytes and record headers of successful reads."""
    index_bytes: int
    """RocksDB files, at most a second old."""
    prewritten_bytes: int
    """Zeros, once in each segment's life."""


class SsdTier:
    """An open SSD tier."""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        capacity_bytes: int,
        segment_bytes: int,
        reader_threads: int = READER_THREADS,
        codec: str = "none",
        encryption: Encryption = NO_ENCRYPTION,
        env: Env | None = None,
        progress: Progress | None = None,
        measure: Measure | None = None,
    ) -> Self:
        """Creates what is missing, locks, recovers. Blocks.

        `codec` is one of `CODEC_SETTINGS` and is for what is written from now on; what is there is
        read whatever it has. So it is with `encryption`, but what is encrypted needs its keys:
        without them it is refused, or with `give_up` dropped. `measure` takes the place of
        measuring, for `auto`. Raises DataDirectoryError subclasses, CapacityError (needs at least 4
        segments of whole pages).
        """
        check_sizes(capacity_bytes, segment_bytes, reader_threads)
        selector = CodecSelector(codec)
        env = env or RealEnv()
        data = DataDirectory(env, directory, segment_bytes)
        try:
            keys = open_key_ring(env, data, encryption)
            count = capacity_bytes // segment_bytes
            found = recover(env, data, keys, count, progress or _silent)
        except OSError as error:
            data.unlock()
            raise explained(error, directory) from error
        except BaseException:
            data.unlock()
            raise
        return cls(env, data, keys, found, reader_threads, selector, measure)

    def __init__(
        self,
        env: Env,
        data: DataDirectory,
        keys: KeyRing,
        found: RecoveredTier,
        reader_threads: int,
        selector: CodecSelector,
        measure: Measure | None,
    ) -> None:
        """Use `open`."""
        self.report: RecoveryReport = found.report
        self.io_mode = "direct" if data.direct else "buffered"
        self.io_problem = data.io_problem
        """Why not direct; else empty."""
        self._env = env
        self._data = data
        self._blocks = found.blocks
        self.memos = found.memos
        """The owner's small values by name, as they were when it opened."""
        self._table = found.table
        self._keys = keys
        self.clear_ends = found.clear_ends
        """By segment id: no live block at or behind that offset is in clear; without segments where
        nothing is encrypted. For looking at."""
        self._reader = BlockReader(env, found.table, keys)
        self._writer = SegmentWriter(
            env,
            found.table,
            found.index,
            found.first_sequence,
            found.owners,
            found.wear,
            keys,
            expiries=data.expiries,
            mark_expiries=data.mark_expiries,
        )
        self._prewriter = Prewriter(env, found.table, self._writer.remember, self._writer.count)
        self._selector = selector
        self._measure = measure or CodecMeasurer(env, found.table, self._reader)
        self._measuring: asyncio.Task[None] | None = None
        self._codec_lane = Lane("ssd-codec", _CODEC_THREADS, _CODEC_QUEUE_MAX)
        self._write_lane = Lane("ssd-writer", 1, _WRITER_QUEUE_MAX)
        self._encoder = BlockEncoder(keys, self._codec_lane, _CODEC_THREADS, self._write_lane)
        self._read_lane = ReadLane(self._reader.read_run, reader_threads, _READER_QUEUE_MAX)
        self._scrub_lane = Lane("ssd-scrub", 1, _SCRUB_QUEUE_MAX)
        self.reads_under_way = 0
        """Calls of `read` that have not returned yet."""
        self._prewriting: asyncio.Task[None] | None = None
        self._index_bytes = self._data.index_file_bytes()
        self._sampled_at = env.monotonic_seconds()
        self._closed = False

    def recovered(self) -> RecoveredColumns:
        """Readable blocks found at open, as columns, parents before children. Once: the memory
        they take is handed over, so a second call has no rows."""
        found, self._blocks = self._blocks, NO_BLOCKS
        return found

    def record_bytes(self, payload_bytes: int) -> int:
        """Bytes a block of that payload takes in a segment, at most: a codec may make it fewer."""
        return record_bytes(payload_bytes)

    def segments(self) -> list[SegmentState]:
        """All segments by id, as of the last finished call."""
        return self._table.states()

    @property
    def codec_choice(self) -> CodecChoice:
        """What new blocks are stored with, and why."""
        return self._selector.choice

    @property
    def free_segment_count(self) -> int:
        return self._table.free_count()

    async def append(
        self,
        batch: Sequence[tuple[BlockRecord, memoryview]],
        expire_seconds: Sequence[int] = (),
        owners: Sequence[str] = (),
        unit_ends: Collection[BlockHash] = frozenset(),
    ) -> list[SsdLocation]:
        """Writes blocks, durable on return; all or none is indexed.

        `expire_seconds`: the Unix second at which each ends, NEVER for none; nothing for all NEVER.
        `owners`: whose each is, which comes back when the tier is opened; nothing for all nobody's.
        `unit_ends`: with which of them a prefix unit ends, which comes back too.

        Each view is page-aligned memory of `rounded(payload_bytes)` bytes that stays as it is until
        this returns; it is trusted to match `record.checksum` (readers verify). Parents are on the
        SSD already or earlier in the batch. Raises SegmentsFullError (nothing was written),
        BlockTooLargeError, TierIOError.
        """
        self._check_open()
        codec = self._selector.choice.codec
        blocks = await self._encoder.encoded(batch, owners or [""] * len(batch), codec)
        if unit_ends:
            blocks = [b._replace(unit_end=b.record.block_hash in unit_ends) for b in blocks]
        try:
            locations = await self._write_lane.run(self._writer.append, blocks, expire_seconds)
        finally:
            self._encoder.written(blocks)
        self._prewrite_ahead()
        if self._selector.due(len(batch)):
            placed = zip((record for record, _ in batch), locations, strict=True)
            self._measure_codecs(self._selector.sample(list(placed)))
        return locations

    async def read(self, record: BlockRecord, location: SsdLocation, into: memoryview) -> None:
        """Fills `into` (page-aligned, `rounded(payload_bytes)` bytes) and verifies everything.

        Raises CorruptBlockError (the block is a miss; forget it), TierIOError, TierBusyError (too
        many reads wait: a miss, this time). What `into` holds after an error is not to be used.
        """
        outcome: list[Exception | None] = []
        await self.read_many(
            [BlockRead(record, location, into)], lambda _, error: outcome.append(error)
        )
        if outcome[0] is not None:
            raise outcome[0]

    async def read_many(
        self,
        reads: Sequence[BlockRead],
        landed: Callable[[int, Exception | None], None],
        flow: ReadFlow | None = None,
    ) -> None:
        """As `read` for each, at a fraction of the cost for each where records lie in a row.

        Returns when all have ended. `landed(i, error)` is called on the loop as each ends, the
        first ones first as far as threads go: None, or what `read` would have raised. Reads of one
        `flow` follow each other, those of several take turns. Raises TierBusyError and TierIOError
        with none begun.
        """
        self._check_open()
        self.reads_under_way += len(reads)
        try:
            await self._read_lane.run(reads, landed, flow)
        finally:
            self.reads_under_way -= len(reads)

    def read_sooner(self, locations: Iterable[SsdLocation], flow: ReadFlow) -> None:
        """Reads of those blocks that others asked for and that wait are done when `flow` would
        have its turn, if that is sooner."""
        self._read_lane.sooner({(at.segment_id, at.offset) for at in locations}, flow)

    async def verify(self, record: BlockRecord, location: SsdLocation) -> None:
        """Reads the block and checks everything, as `read` does, and gives nothing back.

        On a thread of its own, so that reads never queue behind it; no part of the stats' reads.
        Raises CorruptBlockError, TierIOError.
        """
        self._check_open()
        await self._scrub_lane.run(self._reader.verify, record, location)

    async def relog(
        self,
        items: Sequence[tuple[BlockRecord, SsdLocation]],
        unit_ends: Collection[BlockHash] = frozenset(),
    ) -> list[SsdLocation | None]:
        """Copies blocks into the open segment, parents before children; None where corrupt.

        `unit_ends`: with which of them a prefix unit ends by now; the others keep their mark.
        Raises SegmentsFullError when not all would fit (nothing was written), TierIOError.
        """
        self._check_open()
        locations = await self._write_lane.run(self._writer.relog, list(items), unit_ends)
        self._prewrite_ahead()
        return locations

    async def forget(self, hashes: Sequence[BlockHash]) -> None:
        """Takes blocks out of the index, durable on return. Unknown ones are ignored."""
        self._check_open()
        await self._write_lane.run(self._writer.forget, list(hashes))

    async def save_expiries(self, expiries: Sequence[tuple[BlockHash, int]]) -> None:
        """Notes the Unix second at which blocks end, NEVER for none; durable on return.

        A block has been appended, or what is noted of it is forgotten at the next open. Raises
        TierIOError.
        """
        self._check_open()
        await self._write_lane.run(self._writer.save_expiries, list(expiries))

    async def save_unit_ends(self, hashes: Sequence[BlockHash]) -> None:
        """Notes that prefix units end with blocks that were appended; durable on return, lost with
        the index until the block is written again. Unknown ones are ignored. Raises TierIOError,
        TierBusyError.
        """
        self._check_open()
        await self._write_lane.run(self._writer.save_unit_ends, list(hashes))

    async def save_memos(self, memos: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Keeps small values of the owner's by name, or deletes them (None), all or none; durable
        on return. They are lost with the index. Raises TierIOError, TierBusyError.
        """
        self._check_open()
        await self._write_lane.run(self._writer.save_memos, list(memos))

    async def recycle(self, segment_id: SegmentId) -> None:
        """Makes a sealed segment free under its next generation, durable on return.

        REQUIRES: the owner has forgotten or re-logged every block in it. Raises ValueError when it
        is not sealed, TierIOError.
        """
        self._check_open()
        await self._write_lane.run(self._writer.recycle, segment_id)
        if self.clear_ends.size:
            self.clear_ends[segment_id] = 0
        self._prewrite_ahead()

    @property
    def encryption(self) -> EncryptionView:
        """Whether new blocks are encrypted, and what keys there are."""
        return self._keys.view

    def data_keys(self, organisation: str | None) -> tuple[bytes, ...]:
        """Ids of the data keys of an organisation ("": of nobody's blocks); None: of all."""
        return self._keys.those_of(organisation)

    async def destroy_keys(self, organisation: str | None) -> Destroyed:
        """Destroys those keys: what was encrypted under them opens no more, from now on here, and
        with `durable` after any restart. What is appended afterwards gets new ones.

        Blocks that are still here become corrupt: forget them before. Raises TierBusyError.
        """
        self._check_open()
        return await self._write_lane.run(self._keys.destroy, organisation)

    @property
    def wear(self) -> Wear:
        """What was written in the store's life, with the owner's note."""
        return self._writer.wear

    def note(self, note: bytes) -> None:
        """Keeps some bytes for the owner, with whatever is written next and with the close."""
        self._writer.note(note)

    def stats(self) -> SsdStats:
        now = self._env.monotonic_seconds()
        if not self._closed and now - self._sampled_at >= _SAMPLE_SECONDS:
            self._index_bytes, self._sampled_at = self._data.index_file_bytes(), now
        return SsdStats(
            used_bytes=self._table.used_bytes(),
            capacity_bytes=len(self._table.view) * self._table.segment_bytes,
            written_bytes=self._writer.written_bytes,
            read_bytes=self._read_lane.read_bytes,
            index_bytes=self._index_bytes,
            prewritten_bytes=self._prewriter.written_bytes,
        )

    def check_integrity(self) -> None:
        """Asserts that the parts agree; for tests and `verify`."""
        self._table.check_integrity()
        stats = self.stats()
        assert stats.used_bytes <= stats.capacity_bytes

    async def close(self) -> None:
        """Finishes queued calls, closes index and files, unlocks. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._prewriting is not None:
            self._prewriting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._prewriting
        if self._measuring is not None:
            await self._measuring
        await self._codec_lane.close()
        await self._scrub_lane.close()
        await self._read_lane.close()
        await self._write_lane.close(self._writer.close)
        self._data.unlock()

    # --- codecs ---------------------------------------------------------------------------------

    def _measure_codecs(self, placed: list[Placed]) -> None:
        if placed:
            self._measuring = asyncio.get_running_loop().create_task(self._remeasure(placed))

    async def _remeasure(self, placed: list[Placed]) -> None:
        try:
            speeds = await self._codec_lane.run(self._measure, placed)
        except StorageError as error:
            self._selector.give_up()
            log.warning("measuring codecs failed", extra={"error": str(error)})
            return
        if self._selector.settle(speeds):
            choice = self._selector.choice
            fields = {"codec": choice.codec.label, "why": choice.reason}
            log.info("ssd codec chosen", extra=fields)

    # --- pre-writing --------------------------------------------------------------------------

    def _prewrite_ahead(self) -> None:
        """Starts pre-writing between later calls, where direct I/O makes it worth something."""
        idle = self._prewriting is None or self._prewriting.done()
        if self._data.direct and idle and not self._closed and self._prewriter.wanted():
            self._prewriting = asyncio.get_running_loop().create_task(self._prewrite())

    async def _prewrite(self) -> None:
        # One step per turn: each goes to the end of the writer's queue, so appends pass it.
        try:
            while not self._closed and self._prewriter.wanted():
                await self._write_lane.run(self._prewriter.step)
        except TierBusyError:
            return  # the next append starts it again
        except (OSError, TierIOError) as error:
            log.warning("pre-writing a segment failed", extra={"error": str(error)})

    def _check_open(self) -> None:
        if self._closed:
            raise TierIOError("the SSD tier is closed")


def _silent(what: str, done: int, total: int) -> None:
    """Nobody asked."""
