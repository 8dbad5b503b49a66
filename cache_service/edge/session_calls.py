"""Calls that open and close sessions."""

from cache_service import wire
from cache_service.edge.calls import Calls, Context
from cache_service.errors import InvalidTransportError, KeySchemeMismatchError
from cache_service.views import Transport
from kvtier.access import caller
from kvtier.keys import KEY_SCHEME_VERSION, NamespaceId
from kvtier.v1 import cache_pb2 as pb

__all__ = ["SessionCalls"]


class SessionCalls(Calls):
    """Open and close."""

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
        if transport is Transport.BULK and self._cache.bulk.place is None:
            raise InvalidTransportError(
                "this service has no bulk lane: set bulk.listen, or use stream", transport=transport
            )
        view = self._cache.open_session(
            NamespaceId(request.namespace_id),
            request.block_bytes,
            request.block_tokens,
            wire.text("client_name", request.client_name),
            transport,
            caller().key,
            caller().not_after,
            wire.text("model", request.model),
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
            response.arena.takes_calls = True
        elif transport is Transport.STREAM:
            self._intake.open_session(view.session_id)
        return response

    async def CloseSession(
        self, request: pb.CloseSessionRequest, context: Context
    ) -> pb.CloseSessionResponse:
        self._cache.close_session(request.session_id)
        return pb.CloseSessionResponse()
