"""The gRPC edge of the cache: check, call, convert. No decisions, no state but the stream intake.

Invariant: nothing of `kvtier.v1` goes further in than this file and `wire.py`, nothing of the
core's further out.
Errors are raised as they are; `cache_service/status.py` gives them their codes. Every handler runs
on the event loop, and none holds it for longer than copying one frame.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from cache_service import wire
from cache_service.errors import (
    InvalidRangeError,
    KeySchemeMismatchError,
    ReservationIncompleteError,
)
from cache_service.intake import StreamIntake
from cache_service.stats_message import pass_message, stats_message
from cache_service.views import AcquireEvent, EndView, MatchView, ReadyView, Transport
from kvtier.keys import KEY_SCHEME_VERSION, NamespaceId
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["SERVICE_NAME", "CacheServicer"]

SERVICE_NAME = "kvtier.v1.CacheService"

FRAME_BYTES = 1024 * 1024

Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing that is used here


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """Serves `cache` to clients. `wall_clock` gives Unix seconds."""

    def __init__(
        self,
        cache: "Cache",
        intake: StreamIntake,
        arena_socket_path: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._intake = intake
        self._arena_socket_path = arena_socket_path
        self._wall_clock = wall_clock
        self._start_seconds = wall_clock()

    async def OpenSession(
        self, request: pb.OpenSessionRequest, context: Context
    ) -> pb.OpenSessionResponse:
        if request.key_scheme_version != KEY_SCHEME_VERSION:
            raise KeySchemeMismatchError(
                f"this service names blocks by scheme {KEY_SCHEME_VERSION}; use the same release"
                " on both ends",
                key_scheme_version=KEY_SCHEME_VERSION,
            )
        transport = wire.transport(request.transport)
        view = self._cache.open_session(
            NamespaceId(request.namespace_id),
            request.block_bytes,
            request.block_tokens,
            wire.text("client_name", request.client_name),
            transport,
        )
        response = pb.OpenSessionResponse(
            session_id=view.session_id,
            service_instance_id=self._cache.instance_id,
            session_ttl=wire.duration(view.session_ttl_seconds),
            lease_ttl=wire.duration(view.lease_ttl_seconds),
            reservation_ttl=wire.duration(view.reservation_ttl_seconds),
            max_blocks_per_call=view.max_blocks_per_call,
        )
        if transport is Transport.SHARED_MEMORY:
            response.arena.socket_path = self._arena_socket_path
            response.arena.ticket = view.ticket
            response.arena.arena_bytes = self._cache.arena.capacity_bytes
        else:
            self._intake.open_session(view.session_id)
        return response

    async def CloseSession(
        self, request: pb.CloseSessionRequest, context: Context
    ) -> pb.CloseSessionResponse:
        self._cache.close_session(request.session_id)
        return pb.CloseSessionResponse()

    async def LookupPrefix(
        self, request: pb.LookupPrefixRequest, context: Context
    ) -> pb.LookupPrefixResponse:
        view = self._cache.lookup(request.session_id, wire.chain(request.block_hashes))
        return pb.LookupPrefixResponse(
            present_count=view.present_count,
            tiers=view.tiers,
            miss_reason=wire.reason(view.miss_reason),
        )

    async def AcquirePrefix(
        self, request: pb.AcquirePrefixRequest, context: Context
    ) -> AsyncIterator[pb.AcquirePrefixResponse]:
        timeout = (
            wire.load_timeout(request.load_timeout) if request.HasField("load_timeout") else None
        )
        events = self._cache.acquire(
            request.session_id,
            wire.text("request_id", request.request_id),
            wire.chain(request.block_hashes),
            timeout,
        )
        # A client that vanishes cancels this handler: closing the core's iterator is what gives
        # its lease back, at once and not when the collector gets to it.
        async with aclosing(events):
            async for event in events:
                yield self._acquire_event(request.session_id, event)

    async def RenewLeases(
        self, request: pb.RenewLeasesRequest, context: Context
    ) -> pb.RenewLeasesResponse:
        ids = [*request.lease_ids, *request.reservation_ids]
        response = pb.RenewLeasesResponse()
        for name, seconds in self._cache.renew(request.session_id, ids).items():
            renewal = response.renewals.add(id=name)
            if seconds is not None:
                renewal.expire_time.CopyFrom(self._time_in(seconds))
        return response

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: Context
    ) -> pb.ReleaseLeaseResponse:
        corrupt = wire.chain(request.corrupt_block_hashes)
        self._cache.release(request.session_id, request.lease_id, corrupt)
        return pb.ReleaseLeaseResponse()

    async def ReserveBlocks(
        self, request: pb.ReserveBlocksRequest, context: Context
    ) -> pb.ReserveBlocksResponse:
        view = await self._cache.reserve(
            request.session_id,
            wire.text("request_id", request.request_id),
            wire.chain(request.block_hashes),
        )
        response = pb.ReserveBlocksResponse(
            reservation_id=view.reservation_id,
            missing_indexes=view.missing,
            refused_count=view.refused_count,
            refused_reason=wire.reason(view.refused_reason),
        )
        if view.reservation_id:
            response.expire_time.CopyFrom(self._time_in(view.expire_seconds))
        if not self._intake.streams(request.session_id):
            response.slab_offsets.extend(slab.offset for slab in view.slabs)
        elif view.reservation_id:
            _, block_bytes = self._cache.reserved_slab(
                request.session_id, view.reservation_id, view.missing[0]
            )
            self._intake.expect(request.session_id, view.reservation_id, view.missing, block_bytes)
        return response

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

    async def LoadBlocks(
        self, request: pb.LoadBlocksRequest, context: Context
    ) -> AsyncIterator[pb.LoadBlocksResponse]:
        session_id, lease_id = request.session_id, request.lease_id
        first, count = request.first_index, request.block_count
        if first < 0 or count < 1:
            raise InvalidRangeError("a load names a first block and at least one block")
        self._cache.leased_block(session_id, lease_id, first + count - 1)
        for index in range(first, first + count):
            slab, block_bytes = self._cache.leased_block(session_id, lease_id, index)
            for offset in range(0, block_bytes, FRAME_BYTES):
                # Asked again before every frame: while the last one was sent the lease may have
                # ended and the slab may hold another block.
                slab, block_bytes = self._cache.leased_block(session_id, lease_id, index)
                end = min(offset + FRAME_BYTES, block_bytes)
                data = bytes(self._cache.arena.view(slab)[offset:end])
                yield pb.LoadBlocksResponse(index=index, offset=offset, data=data)

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

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:
        return stats_message(self._cache.stats(), self._start_seconds)

    async def VerifyBlocks(
        self, request: pb.VerifyBlocksRequest, context: Context
    ) -> AsyncIterator[pb.VerifyBlocksResponse]:
        budget = wire.bytes_per_second(request.bytes_per_second)
        async with aclosing(self._cache.verify(budget)) as views:
            async for view in views:
                yield pb.VerifyBlocksResponse(progress=pass_message(view), done=view.done)

    def _acquire_event(self, session_id: str, event: AcquireEvent) -> pb.AcquirePrefixResponse:
        response = pb.AcquirePrefixResponse()
        if isinstance(event, MatchView):
            response.match.lease_id = event.lease_id
            response.match.matched_count = event.matched_count
            response.match.tiers = event.tiers
            response.match.miss_reason = wire.reason(event.miss_reason)
            if event.lease_id:
                response.match.expire_time.CopyFrom(self._time_in(event.expire_seconds))
        elif isinstance(event, ReadyView):
            response.ready.first_index = event.first_index
            response.ready.checksums.extend(event.checksums)
            if not self._intake.streams(session_id):
                response.ready.slab_offsets.extend(slab.offset for slab in event.slabs)
        else:
            assert isinstance(event, EndView)
            response.end.ready_count = event.ready_count
            response.end.miss_reason = wire.reason(event.miss_reason)
        return response

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

    def _time_in(self, seconds: float) -> Timestamp:
        return wire.timestamp(self._wall_clock() + seconds)
