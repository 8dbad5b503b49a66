"""A gRPC server's manners, the same for every kvtier service.

    decode (bad bytes: MALFORMED_REQUEST) -> access (who, may it) -> handler -> errors by table

One interceptor turns every `KvtierError` into the status its table names, a request that does not
parse into MALFORMED_REQUEST, and anything else into INTERNAL with the traceback in the log; inside
it `access.py` lets in whom the service's table names. Health and reflection are always on. A TCP
port is mutual TLS, or refused: `tls.py`. Runs on the server's event loop.
"""

import asyncio
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from kvtier.access import (
    Access,
    FirstMessageLateError,
    RoleNotAllowedError,
    ScopeNotAllowedError,
    TooManyCallsError,
    UnauthenticatedError,
)
from kvtier.errors import KvtierError, status_of
from kvtier.gate import AccessInterceptor
from kvtier.handlers import WrappingInterceptor
from kvtier.listening import AddressInUseError, clear_stale_socket
from kvtier.tls import in_clear, server_credentials

__all__ = [
    "ErrorInterceptor",
    "GrpcServer",
    "InternalError",
    "MalformedRequestError",
    "ShuttingDownError",
    "StatusTable",
]

log = logging.getLogger(__name__)

StatusTable = Mapping[type[KvtierError], grpc.StatusCode]
"""Which gRPC code each error class gets; a subclass inherits its nearest parent's."""

PENDING_CALLS_MIN = 8192
"""Calls that have arrived and that nobody has looked at yet: so many, or twice `calls_max`. gRPC
drops those beyond it without a reason, by default from 1,000 on; within it each is served or told
TOO_MANY_CALLS. One that waits takes about 16 KiB beside its message."""

MESSAGE_BYTES_MAX = 16 * 1024 * 1024


class MalformedRequestError(KvtierError):
    """The request's bytes are not the message this call takes, or hold text that is not UTF-8."""

    reason = "MALFORMED_REQUEST"


class ShuttingDownError(KvtierError):
    """The service is draining; another instance, or this one after its restart, will answer."""

    reason = "SHUTTING_DOWN"


class InternalError(KvtierError):
    """A fault of ours; the log has the traceback."""

    reason = "INTERNAL"


_COMMON: StatusTable = {
    MalformedRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ShuttingDownError: grpc.StatusCode.UNAVAILABLE,
    InternalError: grpc.StatusCode.INTERNAL,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    RoleNotAllowedError: grpc.StatusCode.PERMISSION_DENIED,
    ScopeNotAllowedError: grpc.StatusCode.PERMISSION_DENIED,
    TooManyCallsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FirstMessageLateError: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class _Malformed:
    """Stands in for a request that did not parse, until the handler's wrapper refuses it."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


class ErrorInterceptor(WrappingInterceptor):
    """Maps exceptions of every handler to typed statuses."""

    def __init__(self, table: StatusTable) -> None:
        super().__init__()
        self._table = {**_COMMON, **table}

    def _decoder(self, decode: Any) -> Any:
        return _tolerant(decode)

    def _unary(self, call: Callable[..., Awaitable[Any]], method: str) -> Any:
        async def wrapped(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await call(_checked(request), context)
            except Exception as error:
                await self._abort(error, context, method)

        return wrapped

    def _stream(self, call: Callable[..., AsyncIterator[Any]], method: str) -> Any:
        async def wrapped(
            request: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                async for response in call(_checked(request), context):
                    yield response
            except Exception as error:
                await self._abort(error, context, method)

        return wrapped

    async def _abort(
        self, error: Exception, context: grpc.aio.ServicerContext[Any, Any], method: str
    ) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        status = rpc_status.to_status(self.status(error, method))
        context.set_trailing_metadata(status.trailing_metadata)
        await context.abort(status.code, status.details)
        raise AssertionError("abort returned")

    def status(self, error: Exception, method: str) -> status_pb2.Status:
        """What the caller of `method` is told of `error`; the log has what is a fault of ours."""
        if not isinstance(error, KvtierError):
            log.error("unexpected failure in %s", method, exc_info=error)
            error = InternalError("internal error; the service's log has the details")
        return status_of(error, self.code_of(type(error)))

    def code_of(self, kind: type[KvtierError]) -> grpc.StatusCode:
        """The code of the nearest class in the table; INTERNAL when none is."""
        for parent in kind.__mro__:
            code = self._table.get(cast("type[KvtierError]", parent))
            if code is not None:
                return code
        return grpc.StatusCode.INTERNAL


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def decode(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except (DecodeError, ValueError) as error:
            return _Malformed(str(error))

    return decode


def _checked(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise _refusal(request)
    if hasattr(request, "__aiter__"):
        return _checked_stream(request)
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Malformed):
            raise _refusal(request)
        yield request


def _refusal(request: _Malformed) -> MalformedRequestError:
    return MalformedRequestError(
        "the request does not parse; send the message of kvtier.v1 with UTF-8 text",
        problem=request.problem[:200],
    )


class GrpcServer:
    """A started gRPC server with health, reflection and typed errors. One event loop.

    Usage: construct, register servicers on `server`, `await start(...)`, `await drain(...)`.
    """

    def __init__(
        self, table: StatusTable, access: Access, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._security = access.security
        gate = AccessInterceptor(access, wall_clock)
        self.errors = ErrorInterceptor(table)
        """How failures are told; without state, for whoever serves the same calls beside gRPC."""
        self.calls = gate.calls
        """For reading only."""
        pending_max = max(PENDING_CALLS_MIN, 2 * access.limits.calls_max)
        self.server = grpc.aio.server(
            interceptors=(self.errors, gate),
            options=(
                # From the first of these on gRPC drops some, from the second on all.
                ("grpc.server.max_pending_requests", pending_max),
                ("grpc.server.max_pending_requests_hard_limit", pending_max),
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ),
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._services: tuple[str, ...] = ()

    async def start(self, addresses: Sequence[str], services: Sequence[str]) -> list[str]:
        """Binds and serves; returns the addresses really bound (port 0 becomes the port chosen).

        `addresses` are "host:port" or "unix:PATH"; `services` are full service names for health
        and reflection. Raises AddressInUseError, TlsRequiredError, TlsFileError.
        """
        self._services = tuple(services)
        reflection.enable_server_reflection(
            (*services, reflection.SERVICE_NAME, health.SERVICE_NAME), self.server
        )
        credentials = server_credentials(self._security)
        bound = []
        for address in addresses:
            clear = in_clear(address, self._security, credentials)
            try:
                if clear or credentials is None:
                    port = self._add_clear_port(address)
                else:
                    port = self.server.add_secure_port(address, credentials)
            except RuntimeError as error:
                raise AddressInUseError(
                    f"cannot listen on {address}: another process does, {_else_wrong(address)}",
                    address=address,
                ) from error
            host = address.rpartition(":")[0]
            bound.append(address if address.startswith("unix:") else f"{host}:{port}")
        await self.server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return bound

    def _add_clear_port(self, address: str) -> int:
        """A Unix socket is its owner's alone, from the moment it is there."""
        if not address.startswith("unix:"):
            return self.server.add_insecure_port(address)
        path = Path(address.removeprefix("unix:"))
        # gRPC would replace the file under a service that listens on it.
        clear_stale_socket(path)
        before = os.umask(0o177)
        try:
            port = self.server.add_insecure_port(address)
        finally:
            os.umask(before)
        made = path.stat()
        assert stat.S_IMODE(made.st_mode) == 0o600, "the socket is open to others"
        assert made.st_uid == os.geteuid(), "the socket is somebody else's"
        return port

    async def drain(self, grace_seconds: float) -> None:
        """Says NOT_SERVING, refuses new calls, gives running ones `grace_seconds`."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self.server.stop(grace_seconds)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self.server.wait_for_termination()

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in ("", *self._services):
            await self._health.set(service, status)


async def until_signalled() -> str:
    """Waits for SIGTERM or SIGINT on the running loop; returns its name."""
    import signal

    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[str] = loop.create_future()

    def note(name: str) -> None:
        if not arrived.done():
            arrived.set_result(name)

    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, note, sig.name)
    return await arrived


def _else_wrong(address: str) -> str:
    if address.startswith("unix:"):
        return "or its directory does not exist; choose another with --set unix_socket=PATH"
    return "or the address is not this machine's; choose another with --set listen=HOST:PORT"
