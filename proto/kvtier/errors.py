"""Errors that cross the wire, and how.

    KvtierError                 reason, message, metadata; every room's tree grows from here
    └── (storage.errors, cache_service.errors, worker.errors, billing.errors)

On the wire an error is a gRPC status plus a `google.rpc.ErrorInfo` with domain "kvtier"
(AIP-193). The same error has the same reason for ever. Which gRPC code a class gets is written in
one table per service (`<room>/status.py`), applied by `kvtier.serving`. Any thread.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

__all__ = ["DOMAIN", "KvtierError", "WireError", "read_error", "status_of"]

DOMAIN = "kvtier"

MESSAGE_BYTES_MAX = 1024
METADATA_BYTES_MAX = 256
"""A status travels as headers, of which gRPC drops more than 8 KiB, reason and all; a message may
take three times its size there, and travels twice."""


class KvtierError(Exception):
    """Something a caller did, or a state of this machine, that has a name.

    Subclasses set `reason` (UPPER_SNAKE_CASE, frozen once released). The message says what is
    wrong and what to do next, without internals, tokens or prompts.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata: Mapping[str, str] = {k: str(v) for k, v in metadata.items()}


@dataclass(frozen=True, slots=True)
class WireError:
    """What a client learns from a failed call."""

    code: grpc.StatusCode
    reason: str
    """Empty when the peer sent no ErrorInfo, for example when nothing listens there."""
    message: str
    metadata: Mapping[str, str]


def status_of(error: KvtierError, code: grpc.StatusCode) -> status_pb2.Status:
    """The rich status of `error` under `code`."""
    detail = any_pb2.Any()
    detail.Pack(
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={k: _cut(v, METADATA_BYTES_MAX) for k, v in error.metadata.items()},
        )
    )
    message = _cut(str(error), MESSAGE_BYTES_MAX)
    return status_pb2.Status(code=code.value[0], message=message, details=[detail])


def read_error(error: grpc.RpcError) -> WireError:
    """The typed form of a failed call, sync or aio."""
    code = error.code()
    message = error.details() or ""
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key != rpc_status.GRPC_DETAILS_METADATA_KEY:
            continue
        # A peer out of its mind sends what is no status: then the code is all there is.
        with contextlib.suppress(DecodeError):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return WireError(code, info.reason, message, dict(info.metadata))
    return WireError(code, "", message, {})


def _cut(text: str, bytes_max: int) -> str:
    """`text` as UTF-8 can say it, and no longer than may travel."""
    raw = text.encode(errors="replace")
    if len(raw) <= bytes_max:
        return raw.decode()
    return raw[: bytes_max - 3].decode(errors="ignore") + "..."
