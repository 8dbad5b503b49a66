"""Which gRPC services the cache service has: one list, an entry each.

A new service is its servicer in a file of its own and an entry here; `server.py` serves the list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from cache_service.edge.bulk_calls import BULK_SERVICE_NAME, BulkServicer
from cache_service.edge.control_calls import CONTROL_SERVICE, ControlServicer
from cache_service.edge.event_calls import EVENTS_NAME, EventsServicer
from cache_service.edge.explain_calls import EXPLAIN_SERVICE, ExplainServicer
from cache_service.servicer import SERVICE_NAME, CacheServicer
from kvtier.v1 import (
    bulk_pb2_grpc,
    cache_pb2_grpc,
    control_pb2_grpc,
    events_pb2_grpc,
    explain_pb2_grpc,
)

if TYPE_CHECKING:
    from cache_service.cache import Cache

__all__ = ["Service", "services"]

Servicer = TypeVar("Servicer")


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Service(Generic[Servicer]):
    """A service to be served. `add` is the function the generator wrote for its servicers."""

    name: str
    servicer: Servicer
    add: Callable[[Servicer, Any], None]
    before_drain: Callable[[], None] = _nothing
    """Called when the service begins to end: what runs for ever ends by itself."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """REQUIRES: the server is not started yet."""
        self.add(self.servicer, server)


def services(cache: "Cache", servicer: CacheServicer) -> list[Service[Any]]:
    """Every service; all but the first with a servicer of their own."""
    events, control = EventsServicer(cache), ControlServicer(cache)
    return [
        Service(
            SERVICE_NAME,
            servicer,
            cache_pb2_grpc.add_CacheServiceServicer_to_server,
        ),
        Service(
            EVENTS_NAME,
            events,
            events_pb2_grpc.add_CacheEventsServicer_to_server,
            events.before_drain,
        ),
        Service(
            BULK_SERVICE_NAME,
            BulkServicer(cache),
            bulk_pb2_grpc.add_BulkServiceServicer_to_server,
        ),
        Service(
            EXPLAIN_SERVICE,
            ExplainServicer(cache),
            explain_pb2_grpc.add_ExplainServiceServicer_to_server,
        ),
        Service(
            CONTROL_SERVICE,
            control,
            control_pb2_grpc.add_ControlServiceServicer_to_server,
            control.before_drain,
        ),
    ]
