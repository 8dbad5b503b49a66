"""CacheServicer: the calls of `kvtier.v1.CacheService`, put together from `edge/`."""

from cache_service.edge.operator_calls import OperatorCalls
from cache_service.edge.read_calls import ReadCalls
from cache_service.edge.session_calls import SessionCalls
from cache_service.edge.store_calls import StoreCalls
from kvtier.v1 import cache_pb2_grpc

__all__ = ["SERVICE_NAME", "CacheServicer"]

SERVICE_NAME = "kvtier.v1.CacheService"


class CacheServicer(
    SessionCalls, ReadCalls, StoreCalls, OperatorCalls, cache_pb2_grpc.CacheServiceServicer
):
    """Serves a cache to clients; `Calls` says what it is made of."""
