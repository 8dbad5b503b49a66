"""Restore: one acquire, its ranges copied into pages as they become readable.

    match -> ready ranges -> (take, settle, landed) -> end -> the lease goes back

What is all in host memory comes in one answer; else the service says so, and a stream is asked for.
A message of the stream carries one of these events or several; they are taken in this order.

Invariant: `Restored.tiers` grows by verified pages only, in chain order; whatever goes wrong later
leaves it true. The lease is given back on every way out, once no slab is read any more. Runs on the
caller's thread, with copies spread over `CopyLanes`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import grpc
import numpy as np

from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, pack_hashes
from kvtier.v1 import cache_pb2
from worker.bulk_lane import BulkLanes, Loaded
from worker.cache_port import NO_HINTS, CacheHints
from worker.cache_session import RELEASE_SECONDS_MAX, CacheSession
from worker.landing import Landing, PageBytes
from worker.transfer import CopyLanes, NonsenseError, TimeUpError, answered, page_checksum

__all__ = ["Restore", "Restored", "Wanted", "failure_reason"]

LOAD_SHARE = 0.9
"""Share of the caller's time the service may take: its own cut comes before our deadline."""

RECOMPUTE_SECONDS_MAX = 3600.0
"""More than any deadline: the service refuses to be told of more."""

LEASE_ID_CHARS_MAX = 64
"""The service's have 32. They go into usage events, which hold a thousand."""

FRAME_BYTES_MAX = 2 * 1024 * 1024

PART_BYTES = 256 * 1024 * 1024
"""Of a range: so much has landed, and may be used, before the rest has."""

Acquired = cache_pb2.AcquirePrefixResponse | cache_pb2.AcquireResidentResponse


@dataclass(slots=True)
class Restored:
    """What one acquire has brought so far. Written by the restoring call only."""

    tiers: list[Tier] = field(default_factory=list)
    reason: MissReason = MissReason.UNAVAILABLE
    ended: bool = False
    """The service said its last word."""
    corrupt: list[BlockHash] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a restore is asked for."""

    chain: Sequence[BlockHash]
    pages: Landing
    """At least as many as blocks."""
    deadline: float
    hints: CacheHints = NO_HINTS
    recompute_seconds: float | None = None
    """What computing a block costs; None: unknown."""
    first_page: int = 0
    """That of the chain's first block."""

    def part(self, first: int, end: int) -> "Wanted":
        hints = self.hints
        if first and hints.place is not None:
            hints = replace(hints, place=(hints.place[0] + first, self.chain[first - 1]))
        return replace(
            self, chain=self.chain[first:end], first_page=self.first_page + first, hints=hints
        )


class Restore:
    """Restores what is wanted in one session: one acquire's worth, a page for each block."""

    def __init__(
        self,
        session: CacheSession,
        lanes: CopyLanes,
        clock: Callable[[], float],
        wanted: Wanted,
    ) -> None:
        self._session = session
        self._lanes = lanes
        self._clock = clock
        self._chain = wanted.chain
        self._pages = wanted.pages
        self._first_page = wanted.first_page
        self._deadline = wanted.deadline
        self._hints = wanted.hints
        self._recompute_seconds = wanted.recompute_seconds
        self._matched: list[Tier] = []
        self._lease_id = ""

    def run(self, request_id: str, restored: Restored) -> None:
        """Fills `restored`, also when it raises: grpc.RpcError, NonsenseError, TimeUpError."""
        request = cache_pb2.AcquireResidentRequest(
            session_id=self._session.id,
            request_id=request_id,
            block_hashes=pack_hashes(self._chain),
            returned_lease_ids=self._session.lease_returns.take(),
            one_off=self._hints.one_off,
            ttl=self._hints.ttl,
            whole_units=self._hints.whole_units,
            place=self._place(),
        )
        answer = answered(self._session.stub.AcquireResident(request, timeout=self._seconds_left()))
        if answer.ByteSize():
            if not (answer.HasField("match") and answer.HasField("end")):
                raise NonsenseError("an acquire in one answer without its match or its end")
            with self._leased(answer.match, restored):
                self._read_match(answer.match)
                self._take(answer, restored)
            return
        call = self._session.stub.AcquirePrefix(
            self._request(request_id), timeout=self._seconds_left()
        )
        try:
            self._run_stream(call, restored)
        finally:
            call.cancel()

    def _run_stream(
        self, call: Iterator[cache_pb2.AcquirePrefixResponse], restored: Restored
    ) -> None:
        first = next(iter(call), None)
        if first is None or not first.HasField("match"):
            raise NonsenseError("an acquire did not begin with its match")
        with self._leased(first.match, restored):
            self._read_match(first.match)
            if not self._take(first, restored):
                return
            for message in call:
                if message.HasField("match") or not _says_anything(message):
                    raise NonsenseError("an acquire's event out of order")
                if not self._take(message, restored):
                    return
            raise NonsenseError("an acquire stopped before its end")

    def _request(self, request_id: str) -> cache_pb2.AcquirePrefixRequest:
        request = cache_pb2.AcquirePrefixRequest(
            session_id=self._session.id,
            request_id=request_id,
            block_hashes=pack_hashes(self._chain),
            one_off=self._hints.one_off,
            ttl=self._hints.ttl,
            whole_units=self._hints.whole_units,
            place=self._place(),
        )
        request.load_timeout.FromNanoseconds(int(self._seconds_left() * LOAD_SHARE * 1e9))
        if self._recompute_seconds is not None:
            seconds = min(self._recompute_seconds, RECOMPUTE_SECONDS_MAX)
            request.recompute_time_per_block.FromNanoseconds(int(seconds * 1e9))
        return request

    def _place(self) -> cache_pb2.ChainPlace | None:
        if self._hints.place is None:
            return None
        first, parent_hash = self._hints.place
        return cache_pb2.ChainPlace(first_index=first, parent_hash=parent_hash)

    @contextlib.contextmanager
    def _leased(self, match: cache_pb2.PrefixMatch, restored: Restored) -> Iterator[None]:
        if not match.lease_id:
            yield
            return
        if len(match.lease_id) > LEASE_ID_CHARS_MAX or not match.lease_id.isprintable():
            raise NonsenseError("a lease whose id is no name")
        self._pages.leased(match.lease_id)
        with self._session.renewing(lease=match.lease_id):
            try:
                yield
            finally:
                self._pages.close()
                self._give_back(match.lease_id, restored.corrupt)

    def _give_back(self, lease_id: str, corrupt: Sequence[BlockHash]) -> None:
        if not corrupt:
            self._session.lease_returns.put(lease_id)
            return
        # Nobody waits for the answer: a release that is lost ends at the lease's deadline.
        request = cache_pb2.ReleaseLeaseRequest(
            session_id=self._session.id,
            lease_id=lease_id,
            corrupt_block_hashes=pack_hashes(corrupt),
        )
        self._session.send_off(
            self._session.stub.ReleaseLease.future(request, timeout=RELEASE_SECONDS_MAX)
        )

    def _read_match(self, match: cache_pb2.PrefixMatch) -> None:
        if len(match.tiers) != match.matched_count or match.matched_count > len(self._chain):
            raise NonsenseError("a match that does not fit the chain")
        try:
            self._matched = [Tier(number) for number in match.tiers]
        except ValueError as error:
            raise NonsenseError(str(error)) from None
        self._lease_id = match.lease_id

    def _take(self, message: Acquired, restored: Restored) -> bool:
        """Takes what a message says after a match; False when that was all that matters."""
        if message.HasField("ready") and not self._take_range(message.ready, restored):
            return False
        if not message.HasField("end"):
            return True
        # Fewer than were ready: the lease ended under way. What was verified is good anyway.
        if message.end.ready_count > len(restored.tiers):
            raise NonsenseError("an acquire's end counts more blocks than were ready")
        restored.reason = _miss_reason(message.end.miss_reason)
        restored.ended = True
        return False

    def _take_range(self, ready: cache_pb2.ReadyRange, restored: Restored) -> bool:
        first, count = len(restored.tiers), len(ready.checksums)
        if ready.first_index != first or first + count > len(self._matched):
            raise NonsenseError("a ready range out of order")
        if self._session.arena is not None:
            self._take_slabs(first, ready, restored)
        elif self._session.lanes is not None:
            self._load_bulk(self._session.lanes, first, ready.checksums, restored)
        else:
            self._load(first, ready.checksums, restored)
        good = len(restored.tiers) - first
        if good == count:
            return True
        if self._clock() >= self._deadline:
            restored.reason = MissReason.DEADLINE
        else:
            restored.reason = MissReason.CORRUPT
            restored.corrupt.append(self._chain[first + good])
        restored.ended = True
        return False

    def _take_slabs(self, first: int, ready: cache_pb2.ReadyRange, restored: Restored) -> None:
        """Moves slabs into pages. One part is settled when the next has begun: a device that is
        copied to has something to do meanwhile."""
        arena = self._session.arena
        assert arena is not None
        if len(ready.slab_offsets) != len(ready.checksums):
            raise NonsenseError("not one slab for each checksum")
        slabs = [arena.slab(offset) for offset in ready.slab_offsets]
        checksums = list(ready.checksums)

        def take(start: int, end: int) -> int:
            if self._clock() >= self._deadline:
                return 0
            at = first + start
            return self._pages.take(
                self._first_page + at,
                self._chain[at : first + end],
                slabs[start:end],
                checksums[start:end],
            )

        size, begun = max(1, PART_BYTES // self._pages.page_bytes), 0
        for at in range(0, len(slabs), size):
            count = min(size, len(slabs) - at)
            taken = self._lanes.run_parts(
                count, self._pages.page_bytes, functools.partial(_shifted, take, at)
            )
            if not self._settle(begun, restored):
                return
            begun = taken
            if taken < count:
                break
        self._settle(begun, restored)

    def _settle(self, count: int, restored: Restored) -> bool:
        """The next `count` blocks were taken or pushed: whether all of them landed."""
        first = len(restored.tiers)
        good = self._pages.settle(self._first_page + first, count, self._lanes.run)
        tiers = self._matched[first : first + good]
        restored.tiers.extend(tiers)
        self._pages.landed(tiers)
        return good == count

    def _load_bulk(
        self, lanes: BulkLanes, first: int, checksums: Sequence[int], restored: Restored
    ) -> None:
        """The same over the bulk lane."""
        end = first + len(checksums)
        while (at := len(restored.tiers)) < end:
            room = self._pages.room(self._first_page + at, end - at)
            upto = at + len(room)
            sums = checksums[at - first : upto - first]
            blocks = list(zip(self._chain[at:upto], room, sums, strict=True))
            loaded = Loaded()
            try:
                lanes.load(self._lease_id, at, blocks, self._deadline, loaded)
            finally:
                self._push(room[: loaded.count], restored)
            if loaded.count < len(room):
                return

    def _push(self, filled: Sequence[PageBytes], restored: Restored) -> None:
        self._pages.push(self._first_page + len(restored.tiers), filled)
        self._settle(len(filled), restored)

    def _load(self, first: int, checksums: Sequence[int], restored: Restored) -> None:
        """The same over gRPC."""
        call = self._session.stub.LoadBlocks(
            cache_pb2.LoadBlocksRequest(
                session_id=self._session.id,
                lease_id=self._lease_id,
                first_index=first,
                block_count=len(checksums),
            ),
            timeout=self._seconds_left(),
        )
        frames = iter(call)
        try:
            for at, checksum in enumerate(checksums, first):
                room = self._pages.room(self._first_page + at, 1)
                self._read_block(frames, at, room[0])
                if page_checksum(self._chain[at], room[0]) != checksum:
                    return
                self._push(room, restored)
                if self._clock() >= self._deadline:
                    return
        finally:
            call.cancel()

    def _read_block(
        self, frames: Iterator[cache_pb2.LoadBlocksResponse], index: int, page: PageBytes
    ) -> None:
        offset = 0
        while offset < len(page):
            frame = next(frames, None)
            if frame is None:
                raise NonsenseError("a load stopped before its last block")
            offset = _take_frame(frame, index, offset, page)

    def _seconds_left(self) -> float:
        left = self._deadline - self._clock()
        if left <= 0:
            raise TimeUpError("the caller's time is up")
        return left


def _shifted(work: Callable[[int, int], int], by: int, first: int, end: int) -> int:
    return work(by + first, by + end)


def _take_frame(
    frame: cache_pb2.LoadBlocksResponse, index: int, offset: int, page: PageBytes
) -> int:
    """Where the block goes on."""
    size = len(frame.data)
    if (frame.index, frame.offset) != (index, offset):
        raise NonsenseError("a frame out of order")
    if not 0 < size <= min(FRAME_BYTES_MAX, len(page) - offset):
        raise NonsenseError("a frame that does not fit its block")
    np.copyto(page[offset : offset + size], np.frombuffer(frame.data, dtype=np.uint8))
    return offset + size


def _says_anything(message: cache_pb2.AcquirePrefixResponse) -> bool:
    return message.HasField("ready") or message.HasField("end")


def _miss_reason(number: int) -> MissReason:
    try:
        return MissReason(number)
    except ValueError:
        return MissReason.UNAVAILABLE  # a word of a newer service


def failure_reason(error: BaseException) -> MissReason:
    """Why a restore that raised `error` ended where it did."""
    late = isinstance(error, TimeUpError | TimeoutError) or (
        isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    )
    return MissReason.DEADLINE if late else MissReason.UNAVAILABLE
