"""The gRPC face's server: typed errors, health, reflection, TLS. Event loop.

Who calls is the servicer's to ask, by API key; so there is no gate of roles in front of it, and no
certificate is asked of callers. What answers without a key and goes on, watches of health and
reflection, has an end to its number instead.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.status import GRPC_STATUS_TABLE
from kvtier.calls import Places
from kvtier.handlers import WrappingInterceptor
from kvtier.listening import AddressInUseError
from kvtier.serving import ErrorInterceptor
from kvtier.v1 import inference_pb2, inference_pb2_grpc

__all__ = ["GrpcFace"]

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
PENDING_CALLS_MAX = 8192

WATCHES_MAX = 1024
"""Of all callers: gRPC's health checking holds one for a channel."""

REFLECTIONS_MAX = 16
"""People with a tool."""


class _OpenStreams(WrappingInterceptor):
    """Bounds the calls of what needs no key, all callers' together."""

    def __init__(self) -> None:
        super().__init__()
        way_out = "try again"
        self._places = {
            f"/{health.SERVICE_NAME}/Watch": Places("watches_max", WATCHES_MAX, way_out),
            f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": Places(
                "reflections_max", REFLECTIONS_MAX, way_out
            ),
        }

    def _unary(self, call: Any, method: str) -> Any:
        places = self._places.get(method)
        if places is None:
            return call

        async def bounded(request: Any, context: Any) -> Any:
            with _place(places):
                return await call(request, context)

        return bounded

    def _stream(self, call: Any, method: str) -> Any:
        places = self._places.get(method)
        if places is None:
            return call

        async def bounded(request: Any, context: Any) -> AsyncIterator[Any]:
            with _place(places):
                async with contextlib.aclosing(call(request, context)) as responses:
                    async for response in responses:
                        yield response

        return bounded


@contextlib.contextmanager
def _place(places: Places) -> Iterator[None]:
    """Raises TooManyCallsError."""
    places.begin("anybody")
    try:
        yield
    finally:
        places.end("anybody")


class GrpcFace:
    def __init__(
        self,
        servicer: inference_pb2_grpc.InferenceServiceServicer,
        body_bytes_max: int,
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=(ErrorInterceptor(GRPC_STATUS_TABLE), _OpenStreams()),
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
                ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
                ("grpc.max_receive_message_length", body_bytes_max),
                ("grpc.max_send_message_length", 16 << 20),
            ),
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, self._server)
        names = (SERVICE, reflection.SERVICE_NAME, health.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, address: str, credentials: grpc.ServerCredentials | None) -> str:
        """The address really bound. Raises AddressInUseError."""
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressInUseError(
                f"cannot listen on {address}: another process does, or it is not this machine's;"
                " choose another with --set grpc_listen=HOST:PORT",
                address=address,
            ) from error
        await self._server.start()
        await self._set(health_pb2.HealthCheckResponse.SERVING)
        return f"{address.rpartition(':')[0]}:{port}"

    async def drain(self) -> None:
        """Says NOT_SERVING; calls go on."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self) -> None:
        """Cancels what still runs."""
        await self._server.stop(0)

    async def _set(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)
