"""From a directory in any state to blocks that can be read, and a report of what was found.

    load index -> settle each segment -> walk the open one -> drop the stranded -> write back

Invariant: a function of the directory; safe to run twice and to be killed in. Every block whose
append returned is kept, unless its own bytes, its segment's or an ancestor's were damaged. Runs on
the opening thread, before there is a writer. Step by step: docs/formats/segment.md.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.env import Env
from storage.ssd.block_rows import BlockRows
from storage.ssd.directory import DataDirectory
from storage.ssd.files import aligned_buffer, write_all
from storage.ssd.format import (
    FORMAT_VERSION,
    RecordHeader,
    SegmentHeader,
    pack_segment_header,
    record_bytes,
)
from storage.ssd.headers import open_segments
from storage.ssd.index import (
    IndexBatch,
    IndexContent,
    IndexUnusableError,
    MetaRow,
    SegmentRow,
    SsdIndex,
)
from storage.ssd.key_ring import KeyRing
from storage.ssd.key_use import KeyUse
from storage.ssd.lineage import STRANDED, depths, parent_positions, parents_first
from storage.ssd.owner_rows import OwnerNumbers, whose_is_known
from storage.ssd.recovered import RecoveredColumns, recovered_columns
from storage.ssd.scan import SegmentScanner, key_gone
from storage.ssd.segments import FREE, OPEN, SEALED, Segment, SegmentTable, freed
from storage.ssd.settling import Found, settle
from storage.ssd.wear import Wear
from storage.tier import PAGE_BYTES, RecoveryReport, SegmentId

__all__ = ["Progress", "RecoveredTier", "recover"]

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) between slow steps of opening. Must return quickly."""

_EMPTY = IndexContent(MetaRow(FORMAT_VERSION, 0, 0), {}, BlockRows.of(()), [])


@dataclass(frozen=True, slots=True)
class RecoveredTier:
    """What the tier starts from."""

    table: SegmentTable
    index: SsdIndex
    blocks: RecoveredColumns
    first_sequence: int
    owners: OwnerNumbers
    wear: Wear
    memos: Mapping[bytes, bytes]
    """The owner's, by name."""
    clear_ends: NDArray[np.int64]
    """As `KeyUse` has it."""
    report: RecoveryReport


def recover(
    env: Env, directory: DataDirectory, keys: KeyRing, segment_count: int, progress: Progress
) -> RecoveredTier:
    """Opens `segment_count` segments of a locked directory. Raises OSError, DataDirectoryError."""
    started = env.monotonic_seconds()
    recovery = _Recovery(env, directory, keys, segment_count, progress)
    try:
        with _collector_paused():
            recovery.load_index()
            recovery.match_files()
            recovery.settle_segments()
            keys.note_clear(recovery.written_before(), segment_count)
            blocks, dropped = recovery.collect_blocks()
            recovery.index.start_compaction()
            wear = recovery.wear()
            first_sequence = recovery.write_back(dropped, wear)
            keys.keep(recovery.keys.used)
    except BaseException:
        recovery.abandon()
        raise
    report = RecoveryReport(
        kept_count=len(blocks),
        dropped_count=len(dropped) + directory.dropped_count,
        repaired_count=recovery.repaired_count,
        kept_bytes=int(blocks.payload_bytes.sum()),
        duration_seconds=max(0.0, env.monotonic_seconds() - started),
        problems=tuple(recovery.problems),
    )
    table = SegmentTable(recovery.segments, directory.segment_bytes)
    return RecoveredTier(
        table,
        recovery.index,
        blocks,
        first_sequence,
        recovery.owners,
        wear,
        recovery.memos,
        recovery.keys.clear_ends,
        report,
    )


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of short-lived pairs make no circles; looking for some took half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Recovery:
    """One run. Every attribute is written by the step that is named for it."""

    def __init__(
        self,
        env: Env,
        directory: DataDirectory,
        keys: KeyRing,
        segment_count: int,
        progress: Progress,
    ) -> None:
        self._env = env
        self._directory = directory
        self._segment_count = segment_count
        self._progress = progress
        self._scanner = SegmentScanner(env, keys)
        self._page = aligned_buffer(PAGE_BYTES)
        self.problems = list(directory.problems)
        self._opened: list[SsdIndex] = []
        self._content = _EMPTY
        self._rebuild = False
        self._index_loss = ""
        self._made: set[SegmentId] = set()
        self._unsettled: list[int] = []
        self.segments: list[Segment] = []
        self._walked: list[tuple[bytes, bytes]] = []
        self._orphaned: list[bytes] = []
        """Hashes of expiry rows without a block."""
        self.owners = OwnerNumbers({})
        self._disowned: list[int] = []
        """Numbers of owner rows without a block."""
        self.keys = KeyUse(keys)
        self.repaired_count = 0
        self._highest_sequence = 0
        self._written_before = False

    @property
    def index(self) -> SsdIndex:
        return self._opened[-1]

    @property
    def memos(self) -> Mapping[bytes, bytes]:
        return self._content.memos

    def abandon(self) -> None:
        """Closes what was opened, after a failure."""
        for index in self._opened:
            index.close()
        for fd in [*self._unsettled, *(segment.fd for segment in self.segments)]:
            self._env.close(fd)

    # --- load -------------------------------------------------------------------------------

    def load_index(self) -> None:
        missing = not self._directory.has_index
        try:
            self._opened.append(SsdIndex(self._directory.index_path))
            self._content = self.index.load()
        except IndexUnusableError as error:
            self._rebuild = True
            self._index_loss = "it was missing" if missing else str(error)
            if self._opened:
                self._opened.pop().close()
            self._directory.remove_index()
            self._opened.append(SsdIndex(self._directory.index_path))
        damaged = len(self._content.damaged_hashes)
        if damaged:
            self.problems.append(f"{damaged} index rows were damaged; their blocks are dropped")
        if self._content.damaged_memo_count:
            self.problems.append(
                f"{self._content.damaged_memo_count} memos (pins) were damaged and are lost"
            )
        self.owners = OwnerNumbers(self._content.owners)

    # --- files ------------------------------------------------------------------------------

    def match_files(self) -> None:
        """Exactly `segment_count` files of the right size; what is too much goes first."""
        directory = self._directory
        present = directory.segment_ids()
        surplus = sorted(i for i in present if i >= self._segment_count)
        for segment_id in surplus:
            directory.remove_segment(segment_id)
        if surplus:
            self.problems.append(f"{len(surplus)} segments were removed to fit the capacity")
        known = self._content.segments
        for segment_id in sorted(present - set(surplus)):
            size = directory.segment_file_bytes(segment_id)
            if size != directory.segment_bytes:
                directory.remove_segment(segment_id)
                present.discard(segment_id)
                self.problems.append(f"segment {segment_id}: its file had {size} bytes; made anew")
        missing = [i for i in map(SegmentId, range(self._segment_count)) if i not in present]
        self._create(missing)
        lost = [i for i in missing if i in known and known[i].state != FREE]
        if lost:
            self.problems.append(f"{len(lost)} segments with blocks had no usable file")
        if surplus or missing:
            directory.sync_segments()

    def _create(self, missing: list[SegmentId]) -> None:
        """All or none: a capacity that does not fit leaves no new file behind."""
        self._directory.check_room(len(missing))
        for done, segment_id in enumerate(missing):
            self._progress("preallocating segments", done, len(missing))
            try:
                self._directory.create_segment(segment_id)
            except OSError:
                for made in self._made:
                    self._directory.remove_segment(made)
                raise
            self._made.add(segment_id)

    # --- segments ---------------------------------------------------------------------------

    def settle_segments(self) -> None:
        opened = open_segments(self._env, self._directory, self._segment_count)
        self._unsettled = [fd for fd, _ in reversed(opened)]
        for number, (fd, found) in enumerate(opened):
            self.segments.append(self._settled(SegmentId(number), fd, found))
            self._unsettled.pop()

    def _settled(self, segment_id: SegmentId, fd: int, found: Found) -> Segment:
        self._written_before |= found.header is not None or bool(found.damage)
        if self._index_loss and (found.header or found.damage):
            # Said only once something was ever written: a first start has no index either.
            self.problems.append(f"the index is rebuilt from the segments: {self._index_loss}")
            self._index_loss = ""
        if self._rebuild and found.header is not None:
            # Without an index the header is all there is; its records are walked later.
            header = found.header
            state = SEALED if header.seed else FREE
            row = SegmentRow(segment_id, header.generation, state, PAGE_BYTES, header.seed, 0)
            return _segment(row, fd)
        settled = settle(segment_id, self._content.segments.get(segment_id), found)
        if settled.problem:
            self.problems.append(settled.problem)
        segment = _segment(settled.row, fd)
        if segment_id in self._made:
            segment = _segment(settled.row, fd, prewritten_bytes=0)
        if settled.rewrite_header:
            self._write_header(segment)
        return segment

    def _write_header(self, segment: Segment) -> None:
        self._page[:] = pack_segment_header(self._header_of(segment))
        write_all(self._env, segment.fd, [self._page], 0)
        self._env.fdatasync(segment.fd)

    def _header_of(self, s: Segment) -> SegmentHeader:
        return SegmentHeader(s.segment_id, s.generation, self._directory.segment_bytes, s.seed)

    # --- blocks -----------------------------------------------------------------------------

    def collect_blocks(self) -> tuple[RecoveredColumns, list[bytes]]:
        """Blocks to keep, in order, and the hashes of those that are dropped."""
        indexed = self._content.blocks
        inside = self._where_segments_say(indexed)
        owned = whose_is_known(indexed, self._content.owners)
        if not owned.all():
            # Whoever purges an owner must find all that is its.
            self.problems.append(f"{int((~owned).sum())} blocks had lost the row of their owner")
            inside &= owned
        known = indexed.chosen(inside)
        found = self._walk_all() if self._rebuild else self._walk_open(known)
        merged = _merged(known, found)
        # Of what is dropped below as well: a later record may come to lie behind it, and must not
        # have a lower number.
        self._highest_sequence = int(merged["sequence"].max(initial=self.keys.highest_sequence))
        merged = self.keys.kept(merged, self.owners.known(), len(self.segments))
        self.problems += self.keys.problems()
        parent = parent_positions(merged.hashes, merged["parent"])
        depth = depths(parent)
        stranded = merged.hashes[depth == STRANDED].tolist()
        if stranded:
            self.problems.append(f"{len(stranded)} blocks had lost an ancestor and are dropped")
        unread = self.keys.gone_hashes
        found_kept = {block_hash for block_hash, _ in found}.difference(stranded, unread)
        gone = indexed.hashes[~inside].tolist() + self._content.damaged_hashes + stranded
        gone += unread
        dropped = set(gone).difference(found_kept)
        self._walked = [pair for pair in found if pair[0] in found_kept]
        self.repaired_count = 0 if self._rebuild else len(self._walked)
        generations = np.array([s.generation for s in self.segments], np.uint64)
        columns = recovered_columns(
            merged,
            parent,
            parents_first(depth),
            generations,
            self._content.expiries,
            self.owners.known(),
        )
        self._disowned = self.owners.keep(columns.owners)
        if self._content.expiries:
            self._orphaned = list(self._content.expiries.keys() - set(columns.hashes.tolist()))
        return columns, list(dropped)

    def written_before(self) -> dict[int, int]:
        """Segments that ever held a record, and their generations."""
        used = (s for s in self.segments if s.state != FREE or s.generation > 1)
        return {s.segment_id: s.generation for s in used}

    def _where_segments_say(self, blocks: BlockRows) -> NDArray[np.bool_]:
        """True for rows inside a segment of their own generation, before its tail."""
        count = len(self.segments)
        generation = np.zeros(count + 1, np.uint64)
        tail = np.zeros(count + 1, np.uint64)
        for s in self.segments:
            if s.state != FREE:
                generation[s.segment_id], tail[s.segment_id] = s.generation, s.tail
        at = np.minimum(blocks["segment_id"].astype(np.int64), count)
        end = blocks["offset"] + PAGE_BYTES + blocks["stored_bytes"]
        chosen: NDArray[np.bool_] = (blocks["generation"] == generation[at]) & (end <= tail[at])
        if not chosen.all():
            self.problems.append(f"{int((~chosen).sum())} blocks lay in segments that are gone")
        return chosen

    def _walk_open(self, known: BlockRows) -> list[tuple[bytes, bytes]]:
        """Records behind the tail that the index knows: an append that a crash cut short."""
        segment = next((s for s in self.segments if s.state == OPEN), None)
        if segment is None or self._directory.expiries:
            # Nobody was told that they are here, and their end is known to nobody.
            return []
        inside = known["segment_id"] == segment.segment_id
        highest = int(known["sequence"][inside].max(initial=0))
        return [self.owners.row_of(h) for h in self._walk(segment, highest, payloads=True)]

    def _walk_all(self) -> list[tuple[bytes, bytes]]:
        """Every record of every segment; of a block that lies in several places, the newest that is
        whole."""
        walked: dict[SegmentId, list[RecordHeader]] = {}
        for segment in list(self.segments):
            self._progress("scanning segments", segment.segment_id, len(self.segments))
            if segment.state != FREE and self._directory.expiries:
                walked[segment.segment_id] = []
            elif segment.state != FREE:
                walked[segment.segment_id] = list(self._walk(segment, 0, payloads=False))
        if walked and self._directory.expiries:
            self.problems.append("when blocks expire is lost with the index; all are dropped")
        if any(walked.values()):
            # Where the last writes went a whole header may stand before half a payload. What an
            # older failed append left like that was never acknowledged; its first reader finds out.
            last = max(walked, key=lambda i: walked[i][-1].sequence if walked[i] else 0)
            empty = _moved(self.segments[last], OPEN, PAGE_BYTES)
            walked[last] = list(self._walk(empty, 0, payloads=True))
        for segment_id, found in walked.items():
            if not found:
                segment = self.segments[segment_id]
                self.segments[segment_id] = freed(segment, segment.generation + 1)
        headers = [header for found in walked.values() for header in found]
        headers.sort(key=lambda header: header.sequence)
        return [self.owners.row_of(header) for header in self._newest_whole(headers)]

    def _newest_whole(self, headers: list[RecordHeader]) -> list[RecordHeader]:
        """One record for each block. A copy whose re-logging a crash cut short may be newer than
        the acknowledged one and torn, so of several one is taken whose payload is right."""
        places: dict[bytes, list[RecordHeader]] = {}
        for header in headers:
            places.setdefault(header.record.block_hash, []).append(header)
        return [found[0] if len(found) == 1 else self._whole(found) for found in places.values()]

    def _whole(self, oldest_first: list[RecordHeader]) -> RecordHeader:
        for header in reversed(oldest_first):
            if self._scanner.whole(self.segments[header.location.segment_id].fd, header):
                return header
        return oldest_first[-1]

    def _walk(self, segment: Segment, after: int, payloads: bool) -> Iterator[RecordHeader]:
        """Moves the segment's tail over what it yields."""
        tail = segment.tail
        walk = self._scanner.walk(segment.fd, self._header_of(segment), tail, after, payloads)
        for header in walk:
            tail += record_bytes(header.location.stored_bytes)
            if key_gone(header):
                self.keys.note_gone(header)
            else:
                yield header
        self.segments[segment.segment_id] = _moved(segment, segment.state, tail)

    # --- write back -------------------------------------------------------------------------

    def wear(self) -> Wear:
        """What was written in the store's life, as far as that is known."""
        return self._content.wear or Wear(self._env.wall_seconds(), not self._written_before)

    def write_back(self, dropped: list[bytes], wear: Wear) -> int:
        """Makes the outcome durable, meta row last. Returns the first sequence number to use."""
        open_count = max(self._content.meta.open_count, self._highest_sequence >> 32) + 1
        surplus = [i for i in self._content.segments if i >= self._segment_count]
        meta = MetaRow(FORMAT_VERSION, self._directory.segment_bytes, open_count)
        known = self._content.segments
        self.index.apply(
            IndexBatch(
                put_blocks=self._walked,
                delete_blocks=dropped,
                delete_expiries=self._orphaned,
                put_owners=self.owners.take_new(),
                delete_owners=self._disowned,
                put_segments=[s for s in self.segments if known.get(s.segment_id) != _row(s)],
                delete_segments=surplus,
                put_wear=wear,
                put_meta=meta,
            )
        )
        return open_count << 32


def _merged(known: BlockRows, found: list[tuple[bytes, bytes]]) -> BlockRows:
    """Found rows are newer and replace known ones of the same block."""
    if not found:
        return known
    newer = BlockRows.of(found)
    replaced = set(newer.hashes.tolist())
    keep = np.array([block_hash not in replaced for block_hash in known.hashes.tolist()], np.bool_)
    return BlockRows.joined([known.chosen(keep), newer])


def _segment(row: SegmentRow, fd: int, prewritten_bytes: int | None = None) -> Segment:
    written = row.prewritten_bytes if prewritten_bytes is None else prewritten_bytes
    return Segment(row.segment_id, fd, row.generation, row.state, row.tail, row.seed, written)


def _row(s: Segment) -> SegmentRow:
    return SegmentRow(s.segment_id, s.generation, s.state, s.tail, s.seed, s.prewritten_bytes)


def _moved(segment: Segment, state: str, tail: int) -> Segment:
    return Segment(
        segment.segment_id,
        segment.fd,
        segment.generation,
        state,
        tail,
        segment.seed,
        max(segment.prewritten_bytes, tail),
    )
