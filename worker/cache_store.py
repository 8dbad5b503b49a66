"""Store: reserve what is missing, copy it, commit it. All or nothing.

    reserve (whole chain) -> copy pages (checksum of the page) -> commit, or abort on any failure

Invariant: the checksums committed are those of the caller's pages. What was reserved is committed,
or given back, or left to its deadline when the service cannot be reached. Runs on the caller's
thread, with copies spread over `CopyLanes`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from kvtier.keys import BlockHash, pack_hashes
from kvtier.v1 import cache_pb2
from worker.cache_port import PageBytes, StoreResult
from worker.cache_session import CacheSession
from worker.transfer import CopyLanes, NonsenseError, TimeUpError, copy_hashed, page_checksum

__all__ = ["Store"]

FRAME_BYTES = 1024 * 1024
ABORT_SECONDS_MAX = 5.0


class Store:
    """Stores `chain` from `pages` in one session; both equally long, one reserve's worth."""

    def __init__(
        self,
        session: CacheSession,
        lanes: CopyLanes,
        clock: Callable[[], float],
        chain: Sequence[BlockHash],
        pages: Sequence[PageBytes],
        deadline: float,
    ) -> None:
        self._session = session
        self._lanes = lanes
        self._clock = clock
        self._chain = chain
        self._pages = pages
        self._deadline = deadline

    def run(self, request_id: str) -> StoreResult:
        """Raises grpc.RpcError, NonsenseError, TimeUpError; then nothing of it is stored."""
        reserved = self._session.stub.ReserveBlocks(
            cache_pb2.ReserveBlocksRequest(
                session_id=self._session.id,
                request_id=request_id,
                block_hashes=pack_hashes(self._chain),
            ),
            timeout=self._seconds_left(),
        )
        missing = list(reserved.missing_indexes)
        present = len(self._chain) - len(missing) - reserved.refused_count
        if not reserved.reservation_id:
            return StoreResult(0, present, reserved.refused_count)
        with self._session.renewing(reservation=reserved.reservation_id):
            try:
                self._check(reserved, missing)
                checksums = self._move(reserved, missing)
                committed = self._commit(reserved.reservation_id, checksums)
            except BaseException:
                self._abort(reserved.reservation_id)
                raise
        return StoreResult(committed, present, reserved.refused_count)

    def _check(self, reserved: cache_pb2.ReserveBlocksResponse, missing: list[int]) -> None:
        ascending = all(a < b for a, b in pairwise(missing))
        if not missing or not ascending or missing[0] < 0 or missing[-1] >= len(self._chain):
            raise NonsenseError("a reservation for blocks outside the chain")
        if self._session.arena is not None and len(reserved.slab_offsets) != len(missing):
            raise NonsenseError("not one slab for each missing block")

    def _move(self, reserved: cache_pb2.ReserveBlocksResponse, missing: list[int]) -> list[int]:
        if self._session.arena is None:
            return self._send(reserved.reservation_id, missing)
        slabs = [self._session.arena.slab(offset) for offset in reserved.slab_offsets]
        if len(set(reserved.slab_offsets)) != len(slabs):
            raise NonsenseError("one slab for two blocks")
        checksums = [0] * len(missing)

        def copy_one(i: int) -> bool:
            if self._clock() >= self._deadline:
                return False
            page = self._pages[missing[i]]
            checksums[i] = copy_hashed(self._chain[missing[i]], page, slabs[i], page)
            return True

        if self._lanes.run(len(missing), copy_one) < len(missing):
            raise TimeUpError("the time for a store is up")
        return checksums

    def _send(self, reservation_id: str, missing: list[int]) -> list[int]:
        checksums = [page_checksum(self._chain[index], self._pages[index]) for index in missing]
        self._session.stub.StoreBlocks(
            self._frames(reservation_id, missing), timeout=self._seconds_left()
        )
        return checksums

    def _frames(
        self, reservation_id: str, missing: list[int]
    ) -> Iterator[cache_pb2.StoreBlocksRequest]:
        yield cache_pb2.StoreBlocksRequest(
            session_id=self._session.id, reservation_id=reservation_id
        )
        for index in missing:
            page = self._pages[index]
            for offset in range(0, len(page), FRAME_BYTES):
                yield cache_pb2.StoreBlocksRequest(
                    index=index, offset=offset, data=page[offset : offset + FRAME_BYTES].tobytes()
                )

    def _commit(self, reservation_id: str, checksums: list[int]) -> int:
        return self._session.stub.CommitBlocks(
            cache_pb2.CommitBlocksRequest(
                session_id=self._session.id, reservation_id=reservation_id, checksums=checksums
            ),
            timeout=self._seconds_left(),
        ).committed_count

    def _abort(self, reservation_id: str) -> None:
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
