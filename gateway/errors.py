"""Errors of the gateway room.

    GatewayError
    ├── KeyMissingError            the request shows no API key
    ├── KeyRefusedError            unknown, revoked or ended: one answer for all of them
    ├── ServiceClassError          a service class that the key may not ask for
    ├── ScopeTooWideError          a cache scope wider than the key's own
    ├── InvalidBodyError           the body is no request of this path; names the parameter
    ├── UnsupportedError           understood, and not to be had here; names the parameter
    ├── BodyTooLargeError          more bytes than are taken
    ├── BodyLateError              the body did not come in time
    ├── HeadTooLargeError          more bytes before the body than are taken
    ├── HeadLateError              they did not come in time
    ├── PathUnknownError           no such path
    ├── MethodNotAllowedError      not with this method
    ├── KeyBusyError               more requests of one key at a time than it may have
    ├── GatewayBusyError           more requests at a time than the gateway takes
    ├── WorkersUnavailableError    no worker takes the request
    ├── BalanceUnavailableError    billing does not say what is left
    ├── WorkerError                a worker refused or failed: carries what it said
    ├── KeysUnavailableError       the file of keys cannot be read
    └── KeyChangeError             a change to a key that cannot be made

Statuses: `gateway/status.py`. Reasons are frozen once released.
"""

from kvtier.errors import KvtierError, WireError

__all__ = [
    "BalanceUnavailableError",
    "BodyLateError",
    "BodyTooLargeError",
    "GatewayBusyError",
    "GatewayError",
    "HeadLateError",
    "HeadTooLargeError",
    "InvalidBodyError",
    "KeyBusyError",
    "KeyChangeError",
    "KeyMissingError",
    "KeyRefusedError",
    "KeysUnavailableError",
    "MethodNotAllowedError",
    "PathUnknownError",
    "ScopeTooWideError",
    "ServiceClassError",
    "UnsupportedError",
    "WorkerError",
    "WorkersUnavailableError",
]


class GatewayError(KvtierError):
    reason = "GATEWAY"


class KeyMissingError(GatewayError):
    reason = "API_KEY_MISSING"


class KeyRefusedError(GatewayError):
    reason = "INVALID_API_KEY"


class ServiceClassError(GatewayError):
    reason = "SERVICE_CLASS_NOT_GRANTED"


class ScopeTooWideError(GatewayError):
    """The worker's reason, for what its grants cannot know."""

    reason = "SCOPE_TOO_WIDE"


class _OfParameterError(GatewayError):
    def __init__(self, message: str, parameter: str = "") -> None:
        """`parameter`: as the client spells it; empty: the body as a whole."""
        super().__init__(message, field=parameter)
        self.parameter = parameter


class InvalidBodyError(_OfParameterError):
    reason = "INVALID_BODY"


class UnsupportedError(_OfParameterError):
    reason = "UNSUPPORTED_PARAMETER"


class BodyTooLargeError(GatewayError):
    reason = "BODY_TOO_LARGE"


class BodyLateError(GatewayError):
    reason = "BODY_LATE"


class HeadTooLargeError(GatewayError):
    reason = "HEAD_TOO_LARGE"


class HeadLateError(GatewayError):
    reason = "HEAD_LATE"


class PathUnknownError(GatewayError):
    reason = "PATH_UNKNOWN"


class MethodNotAllowedError(GatewayError):
    reason = "METHOD_NOT_ALLOWED"


class KeyBusyError(GatewayError):
    reason = "TOO_MANY_REQUESTS"


class GatewayBusyError(GatewayError):
    reason = "GATEWAY_BUSY"


class WorkersUnavailableError(GatewayError):
    reason = "WORKERS_UNAVAILABLE"


class BalanceUnavailableError(GatewayError):
    reason = "BALANCE_UNAVAILABLE"


class WorkerError(GatewayError):
    """A call to a worker ended so."""

    reason = "WORKER"

    def __init__(self, wire: WireError) -> None:
        super().__init__(wire.message, **wire.metadata)
        self.wire = wire


class KeysUnavailableError(GatewayError):
    reason = "KEYS_UNAVAILABLE"


class KeyChangeError(GatewayError):
    reason = "KEY_CHANGE"
