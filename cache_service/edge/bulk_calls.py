"""BulkService: tickets for the bulk lane, on the control lane. Event loop; no state."""

from typing import TYPE_CHECKING

from cache_service import wire
from cache_service.bulk.tickets import TICKET_SECONDS
from cache_service.edge.calls import Context
from kvtier.access import caller
from kvtier.v1 import bulk_pb2 as pb
from kvtier.v1 import bulk_pb2_grpc

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["BULK_SERVICE_NAME", "BulkServicer"]

BULK_SERVICE_NAME = "kvtier.v1.BulkService"


class BulkServicer(bulk_pb2_grpc.BulkServiceServicer):
    """Where no lane is offered there is no bulk session, and nobody gets a ticket."""

    def __init__(self, cache: "Cache") -> None:
        self._cache = cache

    async def OpenBulkLane(
        self, request: pb.OpenBulkLaneRequest, context: Context
    ) -> pb.OpenBulkLaneResponse:
        ticket = self._cache.bulk.ticket(request.session_id, caller().key)
        place = self._cache.bulk.place
        assert place is not None, "a bulk session where no lane is offered"
        return pb.OpenBulkLaneResponse(
            host=place.host,
            port=place.port,
            ticket=ticket,
            ticket_ttl=wire.duration(TICKET_SECONDS),
            tls=place.tls,
            takes_calls=place.takes_calls,
        )
