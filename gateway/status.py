"""The one table of the gateway: what went wrong -> HTTP status and OpenAI's error, and gRPC codes.

Errors of this room by class, those of workers by reason. Invariant: of what a worker says only that
is told which has a reason for callers; the rest (gRPC's own texts, roles, addresses) is between
gateway and worker, and told by its code alone. Pure data and pure functions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from gateway import errors
from gateway.body_fields import PARAMETERS
from kvtier.errors import KvtierError, WireError
from kvtier.serving import ShuttingDownError, StatusTable

__all__ = [
    "GRPC_STATUS_TABLE",
    "HTTP_OF_CLASS",
    "HTTP_OF_REASON",
    "Refusal",
    "is_for_callers",
    "refusal_of",
    "told_of",
]

_Code = grpc.StatusCode

RETRY_AFTER_SECONDS = 1
"""Of what is full or gone for a moment; clients wait longer with each try by themselves."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_balance",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

HTTP_OF_CLASS: Mapping[type[KvtierError], int] = {
    errors.GatewayError: 500,
    errors.KeyMissingError: 401,
    errors.KeyRefusedError: 401,
    errors.ServiceClassError: 403,
    errors.ScopeTooWideError: 403,
    errors.InvalidBodyError: 400,
    errors.UnsupportedError: 422,
    errors.BodyTooLargeError: 413,
    errors.BodyLateError: 408,
    errors.HeadTooLargeError: 431,
    errors.HeadLateError: 408,
    errors.PathUnknownError: 404,
    errors.MethodNotAllowedError: 405,
    errors.KeyBusyError: 429,
    errors.GatewayBusyError: 503,
    errors.WorkersUnavailableError: 503,
    errors.KeysUnavailableError: 503,
    errors.BalanceUnavailableError: 503,
    errors.KeyChangeError: 400,
    ShuttingDownError: 503,
}

HTTP_OF_REASON: Mapping[str, int] = {
    "MODEL_UNKNOWN": 404,
    "ADAPTER_UNKNOWN": 404,
    # The operator's affair, and nothing that another request would change.
    "TENANT_UNKNOWN": 403,
    "PRICE_UNKNOWN": 403,
    "INSUFFICIENT_BALANCE": 402,
    # It comes back with the next period, and says when.
    "BUDGET_EXHAUSTED": 429,
    "QUOTA_EXCEEDED": 429,
    "BUDGET_UNAVAILABLE": 503,
    "SCOPE_TOO_WIDE": 403,
    "PRIORITY_NOT_GRANTED": 403,
    "INVALID_SCOPE": 400,
    "PROMPT_EMPTY": 400,
    "PROMPT_TOO_LONG": 400,
    "TOKEN_ID_OUT_OF_RANGE": 400,
    "INVALID_LIMIT": 400,
    "INVALID_SAMPLING": 400,
    "INVALID_MESSAGES": 400,
    "INVALID_CACHE_CONTROL": 400,
    # By gRPC alone: a message's bytes are the caller's own there.
    "MALFORMED_REQUEST": 400,
    "QUEUE_FULL": 429,
    "TOO_MANY_CALLS": 429,
    "SHUTTING_DOWN": 503,
    "DEADLINE": 504,
    "ENGINE_FAILED": 500,
    "USAGE_JOURNAL_FAILED": 500,
    "WORKER_LOST": 503,
    "INTERNAL": 500,
}
"""Of what is for callers."""

RETRY_AFTER_DIGITS_MAX = 9
"""Three decades: a worker that says more says nothing."""

_CODES = {
    "INVALID_API_KEY": "invalid_api_key",
    "API_KEY_MISSING": "invalid_api_key",
    "MODEL_UNKNOWN": "model_not_found",
    "ADAPTER_UNKNOWN": "model_not_found",
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "TOO_MANY_REQUESTS": "rate_limit_exceeded",
    "QUOTA_EXCEEDED": "rate_limit_exceeded",
    "BUDGET_EXHAUSTED": "insufficient_quota",
}
"""Where clients know a word for it; else the reason in lower case."""

_PARAMETER_OF_REASON = {
    "MODEL_UNKNOWN": "model",
    "ADAPTER_UNKNOWN": "model",
    "INVALID_MESSAGES": "messages",
}

GRPC_STATUS_TABLE: StatusTable = {
    errors.GatewayError: _Code.INTERNAL,
    errors.KeyMissingError: _Code.UNAUTHENTICATED,
    errors.KeyRefusedError: _Code.UNAUTHENTICATED,
    errors.ServiceClassError: _Code.PERMISSION_DENIED,
    errors.ScopeTooWideError: _Code.PERMISSION_DENIED,
    errors.InvalidBodyError: _Code.INVALID_ARGUMENT,
    errors.UnsupportedError: _Code.INVALID_ARGUMENT,
    errors.BodyTooLargeError: _Code.RESOURCE_EXHAUSTED,
    errors.BodyLateError: _Code.DEADLINE_EXCEEDED,
    errors.HeadTooLargeError: _Code.RESOURCE_EXHAUSTED,
    errors.HeadLateError: _Code.DEADLINE_EXCEEDED,
    errors.PathUnknownError: _Code.NOT_FOUND,
    errors.MethodNotAllowedError: _Code.UNIMPLEMENTED,
    errors.KeyBusyError: _Code.RESOURCE_EXHAUSTED,
    errors.GatewayBusyError: _Code.UNAVAILABLE,
    errors.WorkersUnavailableError: _Code.UNAVAILABLE,
    errors.KeysUnavailableError: _Code.UNAVAILABLE,
    errors.BalanceUnavailableError: _Code.UNAVAILABLE,
    errors.KeyChangeError: _Code.FAILED_PRECONDITION,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a caller of the HTTP face is told."""

    status: int
    reason: str
    """Ours, for metrics."""
    message: str
    parameter: str | None = None
    retry_after_seconds: int = RETRY_AFTER_SECONDS

    @property
    def fields(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "server_error"),
            "param": self.parameter,
            "code": _CODES.get(self.reason, self.reason.lower()),
        }
        return {"error": error}

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.status in (429, 503):
            return [(b"retry-after", b"%d" % self.retry_after_seconds)]
        if self.status == 401:
            return [(b"www-authenticate", b"Bearer")]
        return []


def refusal_of(error: KvtierError) -> Refusal:
    """Of whatever ended a request."""
    if isinstance(error, errors.WorkerError):
        return _of_worker(error.wire)
    field = error.metadata.get("field", "")
    parameter = getattr(error, "parameter", "") or PARAMETERS.get(field, field) or None
    return Refusal(_status(type(error)), error.reason, str(error), parameter)


def _status(kind: type[KvtierError]) -> int:
    for parent in kind.__mro__:
        if parent in HTTP_OF_CLASS:
            return HTTP_OF_CLASS[parent]
    return 500


def _of_worker(wire: WireError) -> Refusal:
    wire = told_of(wire)
    status = HTTP_OF_REASON[wire.reason]
    field = wire.metadata.get("field", "")
    parameter = PARAMETERS.get(field, field) or _PARAMETER_OF_REASON.get(wire.reason)
    wait = _seconds(wire.metadata.get("retry_after_seconds", ""))
    message = _renamed(wire.message, field, parameter)
    return Refusal(status, wire.reason, message, parameter, wait)


def is_for_callers(wire: WireError) -> bool:
    return wire.reason in HTTP_OF_REASON


def told_of(wire: WireError) -> WireError:
    """What a caller is told of how a worker ended: its own words, or ours for what is not for
    callers, of which the log has the rest."""
    if is_for_callers(wire):
        return wire
    if wire.code in (_Code.UNAVAILABLE, _Code.CANCELLED):
        message = "the model's worker went away; send again"
        return WireError(_Code.UNAVAILABLE, "WORKER_LOST", message, {})
    if wire.code is _Code.DEADLINE_EXCEEDED:
        return WireError(wire.code, "DEADLINE", "the request took too long", {})
    message = "internal error; the gateway's log has the details"
    return WireError(_Code.INTERNAL, "INTERNAL", message, {})


def _seconds(said: str) -> int:
    if not said.isascii() or not said.isdigit() or len(said) > RETRY_AFTER_DIGITS_MAX:
        return RETRY_AFTER_SECONDS
    return max(RETRY_AFTER_SECONDS, int(said))


def _renamed(message: str, field: str, parameter: str | None) -> str:
    """With the caller's word for what the worker calls by its own."""
    own = field.rpartition(".")[2]
    return re.sub(rf"\b{re.escape(own)}\b", parameter, message) if own and parameter else message
