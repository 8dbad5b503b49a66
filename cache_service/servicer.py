"""The gRPC edge of the cache: check, call, convert. No decisions, no state but the stream intake.

Invariant: nothing of `kvtier.v1` goes further in than this file, nothing of the core's further out.
Errors are raised as they are; `cache_service/status.py` gives them their codes. Every handler runs
on the event loop, and none holds it for longer than copying one frame.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cache_service.errors import (
    InvalidRangeError,
    InvalidTransportError,
    KeySchemeMismatchError,
    MalformedChainError,
    ReservationIncompleteError,
)
from cache_service.intake import StreamIntake
from cache_service.views import AcquireEvent, CacheStats, EndView, MatchView, ReadyView, Transport
from kvtier.blocks import MissReason, Tier
from kvtier.keys import (
    KEY_SCHEME_VERSION,
    BlockHash,
    MalformedHashesError,
    NamespaceId,
    unpack_hashes,
)
from kvtier.serving import MalformedRequestError
from kvtier.v1 import cache_pb2 as pb
from kvtier.v1 import cache_pb2_grpc

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["SERVICE_NAME", "CacheServicer"]

SERVICE_NAME = "kvtier.v1.CacheService"

FRAME_BYTES = 1024 * 1024
TEXT_CHARS_MAX = 256
LOAD_TIMEOUT_SECONDS_MAX = 3600.0

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
        transport = _transport(request.transport)
        view = self._cache.open_session(
            NamespaceId(request.namespace_id),
            request.block_bytes,
            request.block_tokens,
            _text("client_name", request.client_name),
            transport,
        )
        response = pb.OpenSessionResponse(
            session_id=view.session_id,
            service_instance_id=self._cache.instance_id,
            session_ttl=_duration(view.session_ttl_seconds),
            lease_ttl=_duration(view.lease_ttl_seconds),
            reservation_ttl=_duration(view.reservation_ttl_seconds),
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
        view = self._cache.lookup(request.session_id, _chain(request.block_hashes))
        return pb.LookupPrefixResponse(
            present_count=view.present_count,
            tiers=view.tiers,
            miss_reason=_reason(view.miss_reason),
        )

    async def AcquirePrefix(
        self, request: pb.AcquirePrefixRequest, context: Context
    ) -> AsyncIterator[pb.AcquirePrefixResponse]:
        timeout = _timeout(request.load_timeout) if request.HasField("load_timeout") else None
        events = self._cache.acquire(
            request.session_id,
            _text("request_id", request.request_id),
            _chain(request.block_hashes),
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
        corrupt = _chain(request.corrupt_block_hashes)
        self._cache.release(request.session_id, request.lease_id, corrupt)
        return pb.ReleaseLeaseResponse()

    async def ReserveBlocks(
        self, request: pb.ReserveBlocksRequest, context: Context
    ) -> pb.ReserveBlocksResponse:
        view = await self._cache.reserve(
            request.session_id,
            _text("request_id", request.request_id),
            _chain(request.block_hashes),
        )
        response = pb.ReserveBlocksResponse(
            reservation_id=view.reservation_id,
            missing_indexes=view.missing,
            refused_count=view.refused_count,
            refused_reason=_reason(view.refused_reason),
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
        return stats_response(self._cache.stats(), self._start_seconds)

    def _acquire_event(self, session_id: str, event: AcquireEvent) -> pb.AcquirePrefixResponse:
        response = pb.AcquirePrefixResponse()
        if isinstance(event, MatchView):
            response.match.lease_id = event.lease_id
            response.match.matched_count = event.matched_count
            response.match.tiers = event.tiers
            response.match.miss_reason = _reason(event.miss_reason)
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
            response.end.miss_reason = _reason(event.miss_reason)
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
        return _timestamp(self._wall_clock() + seconds)


def stats_response(stats: CacheStats, start_seconds: float) -> pb.GetStatsResponse:
    """The wire form of the core's stats."""
    response = pb.GetStatsResponse(
        service_instance_id=stats.instance_id,
        start_time=_timestamp(start_seconds),
        session_count=stats.session_count,
        lease_count=stats.lease_count,
        reservation_count=stats.reservation_count,
        pending_write_count=stats.pending_write_count,
        counters=stats.counters,
    )
    for tier in stats.tiers:
        response.tiers.add(
            tier=_tier(tier.tier),
            capacity_bytes=tier.capacity_bytes,
            used_bytes=tier.used_bytes,
            block_count=tier.block_count,
            payload_bytes=tier.payload_bytes,
            evicted_count=tier.evicted_count,
            written_bytes=tier.written_bytes,
            read_bytes=tier.read_bytes,
        )
    if stats.recovery is not None:
        response.recovery.kept_count = stats.recovery.kept_count
        response.recovery.dropped_count = stats.recovery.dropped_count
        response.recovery.repaired_count = stats.recovery.repaired_count
        response.recovery.kept_bytes = stats.recovery.kept_bytes
        response.recovery.duration_seconds = stats.recovery.duration_seconds
    return response


def _chain(packed: bytes) -> list[BlockHash]:
    try:
        return unpack_hashes(packed)
    except MalformedHashesError as error:
        raise MalformedChainError(str(error)) from None


def _text(name: str, value: str) -> str:
    if len(value) > TEXT_CHARS_MAX:
        raise MalformedRequestError(
            f"{name} may have {TEXT_CHARS_MAX} characters, not {len(value)}", field=name
        )
    return value


def _transport(number: int) -> Transport:
    try:
        return Transport(number)
    except ValueError:
        raise InvalidTransportError(
            "name a transport: shared memory on the same host, or stream", transport=number
        ) from None


def _timeout(duration: Duration) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if not 0 <= seconds <= LOAD_TIMEOUT_SECONDS_MAX:
        raise MalformedRequestError(
            f"load_timeout must be from 0 to {LOAD_TIMEOUT_SECONDS_MAX:.0f} seconds",
            field="load_timeout",
        )
    return seconds


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int(seconds * 1e9))
    return timestamp


def _reason(reason: MissReason) -> Any:
    return int(reason)


def _tier(tier: Tier) -> Any:
    return int(tier)
