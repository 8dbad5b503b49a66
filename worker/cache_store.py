"""Store: reserve what is missing, copy it, commit it, one slice of the chain after the other.

    slice 1   reserve  copy pages (checksum of the page)  commit
    slice 2            reserve                            copy    commit
    slice 3                                               reserve copy    commit

While the pages of a slice are copied the service makes room for the next one and enters the one
before. A slice is stored whole or not at all, and only with everything before it.

Invariant: the checksums committed are those of the caller's pages. What was reserved is committed,
or given back, or left to its deadline when the service cannot be reached. Runs on the caller's
thread, with copies spread over `CopyLanes`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, zip_longest

import grpc

from kvtier.keys import BlockHash, pack_hashes
from kvtier.v1 import cache_pb2
from worker.cache_port import NO_HINTS, CacheHints, StoreResult
from worker.cache_session import CacheSession
from worker.landing import Source
from worker.page_sums import PageSums
from worker.transfer import (
    CopyLanes,
    NonsenseError,
    TimeUpError,
    answered,
    copy_hashed,
    page_checksum,
)

__all__ = ["Store"]

FRAME_BYTES = 1024 * 1024
ABORT_SECONDS_MAX = 5.0

FIRST_SLICE_BYTES = 32 * 1024 * 1024
"""What is reserved while nothing is copied yet."""

SLICE_GROWTH = 3
SLICE_BYTES_MAX = 256 * 1024 * 1024
"""Each slice is larger than the one before: the service's work on it, a third of what copying takes
with blocks of 256 KiB, is still hidden behind the copies of that one; and fewer slices are fewer
calls, two for each. A call costs the service as much as a hundred blocks of it."""

LANE_FIRST_SLICE_BYTES = 32 * 1024 * 1024
LANE_SLICE_GROWTH = 8
LANE_SLICE_BYTES_MAX = 256 * 1024 * 1024
"""Over a lane the sender also waits at each slice's end until the service has its last byte."""


class Store:
    """Stores `chain` from the first of `pages` in one session; one reserve's worth."""

    def __init__(
        self,
        session: CacheSession,
        lanes: CopyLanes,
        clock: Callable[[], float],
        chain: Sequence[BlockHash],
        pages: Source,
        deadline: float,
        hints: CacheHints = NO_HINTS,
    ) -> None:
        self._session = session
        self._lanes = lanes
        self._clock = clock
        self._chain = chain
        self._pages = pages
        self._deadline = deadline
        self._hints = hints

        self._reserved_id = ""
        """Reserved, and not committed yet."""
        self._coming: grpc.Future[cache_pb2.ReserveBlocksResponse] | None = None
        """The next slice's reservation, asked for."""
        self._moved: tuple[str, list[int]] | None = None
        """Reservation and checksums of what is with the service, and not committed yet."""
        self._commits: list[grpc.Future[cache_pb2.CommitBlocksResponse]] = []

    def run(self, request_id: str) -> StoreResult:
        """Raises grpc.RpcError, NonsenseError, TimeUpError; what was committed before stays."""
        with contextlib.ExitStack() as renewed:
            try:
                return self._run(request_id, renewed)
            except BaseException:
                self._let_go()
                raise

    def stored_count(self) -> int:
        """Blocks that the service said it has, so far; for who met an error in `run`."""
        ended = [c for c in self._commits if c.done() and not c.cancelled() and not c.exception()]
        return sum(answer.committed_count for c in ended if (answer := c.result()) is not None)

    def _run(self, request_id: str, renewed: contextlib.ExitStack) -> StoreResult:
        missing_count = refused_count = 0
        ends = self._ends()
        coming = self._coming = self._reserve(request_id, ends[0])
        for end, following in zip_longest(ends, ends[1:]):
            reserved = answered(coming.result())
            self._coming, self._reserved_id = None, reserved.reservation_id
            missing = self._checked(reserved, end)
            missing_count += len(missing)
            refused_count = reserved.refused_count
            if missing:
                renewed.enter_context(self._session.renewing(reservation=reserved.reservation_id))

            def go_on(asked: int | None = None if refused_count else following) -> None:
                """While bytes move, the service enters the slice before and makes room for the next
                one. Again: nothing."""
                self._commit_moved()
                if asked is not None and self._coming is None:
                    self._coming = self._reserve(request_id, asked)

            if missing:
                checksums = self._move(reserved, missing, go_on)
                self._moved, self._reserved_id = (reserved.reservation_id, checksums), ""
                if not self._goes_on_at_once():
                    self._commit_moved()
            else:
                go_on()
            if refused_count:
                refused_count += len(self._chain) - end
                break
            if self._coming is not None:
                coming = self._coming
        self._commit_moved()
        stored_count = sum(answered(commit.result()).committed_count for commit in self._commits)
        present_count = len(self._chain) - missing_count - refused_count
        return StoreResult(stored_count, present_count, refused_count)

    def _goes_on_at_once(self) -> bool:
        """Whether the next slice's bytes come before the commit of the one that moved: over a lane
        the service first has to say that it takes them, and would enter the blocks meanwhile."""
        return self._session.lanes is not None and self._coming is not None and self._coming.done()

    def _commit_moved(self) -> None:
        if self._moved is not None:
            self._commits.append(self._commit(*self._moved))
            self._moved = None

    def _ends(self) -> list[int]:
        """Where slices end."""
        count = len(self._chain)
        if self._session.arena is None and self._session.lanes is None:
            return [count]
        size, growth, size_max = FIRST_SLICE_BYTES, SLICE_GROWTH, SLICE_BYTES_MAX
        if self._session.arena is None:
            size, growth = LANE_FIRST_SLICE_BYTES, LANE_SLICE_GROWTH
            size_max = LANE_SLICE_BYTES_MAX
        block_bytes, end, ends = self._pages.page_bytes, 0, list[int]()
        while (end := end + max(1, size // block_bytes)) < count:
            ends.append(end)
            size = min(size_max, growth * size)
        return [*ends, count]

    def _reserve(self, request_id: str, end: int) -> "grpc.Future[cache_pb2.ReserveBlocksResponse]":
        request = cache_pb2.ReserveBlocksRequest(
            session_id=self._session.id,
            request_id=request_id,
            block_hashes=pack_hashes(self._chain[:end]),
            returned_lease_ids=self._session.lease_returns.take(),
            one_off=self._hints.one_off,
            ttl=self._hints.ttl,
            owner_runs=self._hints.owner_runs,
            unit_end_indexes=[count - 1 for count in self._hints.unit_ends if count <= end],
            common_prefix_ends_unit=self._hints.marks_forks,
        )
        return self._session.stub.ReserveBlocks.future(request, timeout=self._seconds_left())

    def _checked(self, reserved: cache_pb2.ReserveBlocksResponse, end: int) -> list[int]:
        """Positions of the blocks to copy. Raises NonsenseError."""
        missing = list(reserved.missing_indexes)
        ascending = all(a < b for a, b in pairwise(missing))
        if bool(missing) != bool(reserved.reservation_id):
            raise NonsenseError("a reservation without blocks, or blocks without one")
        if missing and (not ascending or missing[0] < 0 or missing[-1] >= end):
            raise NonsenseError("a reservation for blocks outside the chain")
        if self._session.arena is not None and len(reserved.slab_offsets) != len(missing):
            raise NonsenseError("not one slab for each missing block")
        return missing

    def _let_go(self) -> None:
        """Nobody waits any more: what is reserved is given back, what is committed runs on."""
        self._abort(self._reserved_id)
        try:
            self._commit_moved()
        except TimeUpError:
            assert self._moved is not None
            self._abort(self._moved[0])
        for commit in self._commits:
            self._session.send_off(commit)
        if self._coming is not None:
            self._coming.add_done_callback(self._give_back)
            self._session.send_off(self._coming)

    def _give_back(self, reserved: "grpc.Future[cache_pb2.ReserveBlocksResponse]") -> None:
        with contextlib.suppress(
            grpc.RpcError, grpc.FutureCancelledError, NonsenseError, ValueError
        ):
            self._abort(answered(reserved.result()).reservation_id)

    def _move(
        self,
        reserved: cache_pb2.ReserveBlocksResponse,
        missing: list[int],
        go_on: Callable[[], None],
    ) -> list[int]:
        """Checksums of what was moved. Calls `go_on` before the first byte."""
        if self._session.lanes is not None:
            return self._send_bulk(reserved.reservation_id, missing, go_on)
        go_on()
        if self._session.arena is None:
            return self._send(reserved.reservation_id, missing)
        slabs = [self._session.arena.slab(offset) for offset in reserved.slab_offsets]
        if len(set(reserved.slab_offsets)) != len(slabs):
            raise NonsenseError("one slab for two blocks")
        checksums = [0] * len(missing)

        def copy(first: int, end: int) -> int:
            if self._clock() >= self._deadline:
                return 0
            indexes = missing[first:end]
            with self._pages.lend(indexes) as pages:
                blocks = [self._chain[index] for index in indexes]
                checksums[first:end] = copy_hashed(blocks, pages, slabs[first:end], pages)
            return end - first

        if self._lanes.run_parts(len(missing), self._pages.page_bytes, copy) < len(missing):
            raise TimeUpError("the time for a store is up")
        return checksums

    def _send_bulk(
        self, reservation_id: str, missing: list[int], go_on: Callable[[], None]
    ) -> list[int]:
        lanes = self._session.lanes
        assert lanes is not None
        with self._pages.lend(missing) as pages:
            views = [page.data for page in pages]
            sums = PageSums([self._chain[index] for index in missing], views)
            with self._lanes.beside(sums.take_all):
                try:
                    blocks = list(zip(missing, views, strict=True))
                    lanes.store(reservation_id, blocks, self._deadline, go_on, sums.sent)
                except BaseException:
                    sums.stop()
                    raise
        return sums.sums

    def _send(self, reservation_id: str, missing: list[int]) -> list[int]:
        checksums: list[int] = []
        self._session.stub.StoreBlocks(
            self._frames(reservation_id, missing, checksums), timeout=self._seconds_left()
        )
        if len(checksums) < len(missing):
            raise NonsenseError("the service took a store before its last block")
        return checksums

    def _frames(
        self, reservation_id: str, missing: list[int], checksums: list[int]
    ) -> Iterator[cache_pb2.StoreBlocksRequest]:
        """Fills `checksums`."""
        yield cache_pb2.StoreBlocksRequest(
            session_id=self._session.id, reservation_id=reservation_id
        )
        for index in missing:
            with self._pages.lend([index]) as (page,):
                checksums.append(page_checksum(self._chain[index], page))
                for offset in range(0, len(page), FRAME_BYTES):
                    data = page[offset : offset + FRAME_BYTES].tobytes()
                    yield cache_pb2.StoreBlocksRequest(index=index, offset=offset, data=data)

    def _commit(
        self, reservation_id: str, checksums: list[int]
    ) -> "grpc.Future[cache_pb2.CommitBlocksResponse]":
        request = cache_pb2.CommitBlocksRequest(
            session_id=self._session.id, reservation_id=reservation_id, checksums=checksums
        )
        return self._session.stub.CommitBlocks.future(request, timeout=self._seconds_left())

    def _abort(self, reservation_id: str) -> None:
        if not reservation_id:
            return
        # Nobody waits for the answer: an abort that is lost ends at the reservation's deadline.
        request = cache_pb2.AbortReservationRequest(
            session_id=self._session.id, reservation_id=reservation_id
        )
        self._session.send_off(
            self._session.stub.AbortReservation.future(request, timeout=ABORT_SECONDS_MAX)
        )

    def _seconds_left(self) -> float:
        left = self._deadline - self._clock()
        if left <= 0:
            raise TimeUpError("the time for a store is up")
        return left
