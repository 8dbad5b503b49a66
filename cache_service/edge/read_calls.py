"""Calls that read: look up, acquire, load, renew, release."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from cache_service import wire
from cache_service.edge.calls import FRAME_BYTES, Calls, Context
from cache_service.errors import InvalidRangeError
from cache_service.views import AcquireEvent, EndView, MatchView, ReadyView
from kvtier.blocks import Tier
from kvtier.v1 import cache_pb2 as pb

__all__ = ["ReadCalls"]

Acquired = pb.AcquirePrefixResponse | pb.AcquireResidentResponse


class ReadCalls(Calls):
    """From a chain to the payloads of its blocks, under a lease."""

    async def LookupPrefix(
        self, request: pb.LookupPrefixRequest, context: Context
    ) -> pb.LookupPrefixResponse:
        view = self._cache.lookup(request.session_id, wire.chain(request.block_hashes))
        return pb.LookupPrefixResponse(
            present_count=view.present_count,
            tiers=view.tiers,
            miss_reason=wire.reason(view.miss_reason),
        )

    async def AcquireResident(
        self, request: pb.AcquireResidentRequest, context: Context
    ) -> pb.AcquireResidentResponse:
        self._cache.give_back(request.session_id, request.returned_lease_ids)
        events = self._cache.acquire_resident(
            request.session_id,
            wire.text("request_id", request.request_id),
            wire.chain(request.block_hashes),
            wire.hints(request),
        )
        response = pb.AcquireResidentResponse()
        for event in events:
            self._add_event(response, request.session_id, event)
        return response

    async def AcquirePrefix(
        self, request: pb.AcquirePrefixRequest, context: Context
    ) -> AsyncIterator[pb.AcquirePrefixResponse]:
        self._cache.give_back(request.session_id, request.returned_lease_ids)
        timeout = (
            wire.load_timeout(request.load_timeout) if request.HasField("load_timeout") else None
        )
        recompute = (
            wire.recompute_time(request.recompute_time_per_block)
            if request.HasField("recompute_time_per_block")
            else None
        )
        events = self._cache.acquire(
            request.session_id,
            wire.text("request_id", request.request_id),
            wire.chain(request.block_hashes),
            timeout,
            wire.hints(request),
            recompute,
        )
        # A client that vanishes cancels this handler: closing the core's iterator is what gives
        # its lease back, at once and not when the collector gets to it.
        async with aclosing(events):
            response, matched_count = pb.AcquirePrefixResponse(), 0
            async for event in events:
                self._add_event(response, request.session_id, event)
                if isinstance(event, MatchView):
                    matched_count = event.matched_count
                if not _more_at_once(event, matched_count):
                    yield response
                    response = pb.AcquirePrefixResponse()

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
        self._cache.give_back(request.session_id, request.returned_lease_ids)
        return pb.ReleaseLeaseResponse()

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

    def _add_event(self, response: Acquired, session_id: str, event: AcquireEvent) -> None:
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
            if self._cache.maps_arena(session_id):
                response.ready.slab_offsets.extend(slab.offset for slab in event.slabs)
        else:
            assert isinstance(event, EndView)
            response.end.ready_count = event.ready_count
            response.end.miss_reason = wire.reason(event.miss_reason)


def _more_at_once(event: AcquireEvent, matched_count: int) -> bool:
    """True when the next event needs no waiting: it travels in the same message."""
    if isinstance(event, MatchView):
        return not event.matched_count or event.tiers[0] == Tier.HOST
    if isinstance(event, ReadyView):
        return event.first_index + len(event.checksums) == matched_count
    return False
