"""Calls that store: reserve, send, commit or abort."""

from collections.abc import AsyncIterator

from cache_service import wire
from cache_service.edge.calls import FRAME_BYTES, Calls, Context
from cache_service.errors import InvalidRangeError, ReservationIncompleteError
from kvtier.v1 import cache_pb2 as pb

__all__ = ["StoreCalls"]


class StoreCalls(Calls):
    """From a chain to committed blocks, under a reservation."""

    async def ReserveBlocks(
        self, request: pb.ReserveBlocksRequest, context: Context
    ) -> pb.ReserveBlocksResponse:
        self._cache.give_back(request.session_id, request.returned_lease_ids)
        view = await self._cache.reserve(
            request.session_id,
            wire.text("request_id", request.request_id),
            wire.chain(request.block_hashes),
            wire.hints(request),
        )
        response = pb.ReserveBlocksResponse(
            reservation_id=view.reservation_id,
            missing_indexes=view.missing,
            refused_count=view.refused_count,
            refused_reason=wire.reason(view.refused_reason),
        )
        if view.reservation_id:
            response.expire_time.CopyFrom(self._time_in(view.expire_seconds))
        if self._cache.maps_arena(request.session_id):
            response.slab_offsets.extend(slab.offset for slab in view.slabs)
        elif view.reservation_id:
            _, block_bytes = self._cache.reserved_slab(
                request.session_id, view.reservation_id, view.missing[0]
            )
            self._intake.expect(request.session_id, view.reservation_id, view.missing, block_bytes)
        return response

    async def StoreBlocks(
        self, requests: AsyncIterator[pb.StoreBlocksRequest], context: Context
    ) -> pb.StoreBlocksResponse:
        session_id = reservation_id = ""
        whole: set[int] = set()
        async for request in requests:
            if not session_id:
                session_id, reservation_id = request.session_id, request.reservation_id
                # An unknown session is refused before any payload is awaited.
                self._cache.renew(session_id, [reservation_id])
                if not request.data:
                    continue
            if self._store_frame(session_id, reservation_id, request):
                whole.add(request.index)
        return pb.StoreBlocksResponse(stored_count=len(whole))

    async def CommitBlocks(
        self, request: pb.CommitBlocksRequest, context: Context
    ) -> pb.CommitBlocksResponse:
        session_id, reservation_id = request.session_id, request.reservation_id
        verify = self._intake.streams(session_id)
        short = self._intake.first_short(session_id, reservation_id)
        if short is not None:
            # That it expired, or ended otherwise, comes first: the core says so here.
            self._cache.reserved_slab(session_id, reservation_id, short)
            raise ReservationIncompleteError(
                f"block {short} was not received whole; send it, then commit", index=short
            )
        count = await self._cache.commit(
            session_id, reservation_id, list(request.checksums), verify=verify
        )
        self._intake.forget(session_id, reservation_id)
        return pb.CommitBlocksResponse(committed_count=count)

    async def AbortReservation(
        self, request: pb.AbortReservationRequest, context: Context
    ) -> pb.AbortReservationResponse:
        self._cache.abort(request.session_id, request.reservation_id)
        self._intake.forget(request.session_id, request.reservation_id)
        return pb.AbortReservationResponse()

    def _store_frame(
        self, session_id: str, reservation_id: str, frame: pb.StoreBlocksRequest
    ) -> bool:
        """Copies one frame into its slab; True when the block is whole."""
        slab, block_bytes = self._cache.reserved_slab(session_id, reservation_id, frame.index)
        size = len(frame.data)
        if size > FRAME_BYTES:
            raise InvalidRangeError(f"a frame has at most {FRAME_BYTES} bytes, not {size}")
        whole = self._intake.take(
            session_id, reservation_id, frame.index, block_bytes, (frame.offset, size)
        )
        self._cache.arena.view(slab)[frame.offset : frame.offset + size] = frame.data
        return whole
