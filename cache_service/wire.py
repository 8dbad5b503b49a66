"""The core's values on the wire and back: one small pure function each, with its check.

Invariant: what comes in is refused here when it cannot mean anything; what goes out is whole.
Stateless, any thread.
"""

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cache_service.chains import Chain
from cache_service.errors import InvalidTransportError
from cache_service.hints import NO_HINTS, Hints
from cache_service.views import Transport
from kvtier.blocks import MissReason, Tier
from kvtier.serving import MalformedRequestError
from kvtier.v1 import cache_pb2 as pb

__all__ = [
    "bytes_per_second",
    "chain",
    "duration",
    "hints",
    "load_timeout",
    "reason",
    "recompute_time",
    "text",
    "tier",
    "timestamp",
    "transport",
]

TEXT_CHARS_MAX = 256
SECONDS_MAX = 3600.0


def bytes_per_second(value: int) -> int:
    """0 for no limit."""
    if value < 0:
        raise MalformedRequestError(
            "bytes_per_second must be 0 (no limit) or more", field="bytes_per_second"
        )
    return value


def chain(packed: bytes) -> Chain:
    """Raises MalformedChainError."""
    return Chain(packed)


def text(name: str, value: str) -> str:
    """A text of bounded length. Raises MalformedRequestError."""
    if len(value) > TEXT_CHARS_MAX:
        raise MalformedRequestError(
            f"{name} may have {TEXT_CHARS_MAX} characters, not {len(value)}", field=name
        )
    return value


def transport(number: int) -> Transport:
    """Raises InvalidTransportError."""
    try:
        return Transport(number)
    except ValueError:
        raise InvalidTransportError(
            "name a transport: shared memory on the same host, stream, or bulk", transport=number
        ) from None


def hints(
    request: pb.ReserveBlocksRequest | pb.AcquirePrefixRequest | pb.AcquireResidentRequest,
) -> Hints:
    return Hints(request.one_off) if request.one_off else NO_HINTS


def load_timeout(asked: Duration) -> float:
    """Seconds. Raises MalformedRequestError."""
    return _seconds("load_timeout", asked)


def recompute_time(asked: Duration) -> float:
    """Seconds. Raises MalformedRequestError."""
    return _seconds("recompute_time_per_block", asked)


def duration(seconds: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(int(seconds * 1e9))
    return made


def timestamp(seconds: float) -> Timestamp:
    """Of Unix seconds."""
    made = Timestamp()
    made.FromNanoseconds(int(seconds * 1e9))
    return made


def reason(of: MissReason) -> Any:
    return int(of)


def tier(of: Tier) -> Any:
    return int(of)


def _seconds(name: str, asked: Duration) -> float:
    seconds = asked.seconds + asked.nanos / 1e9
    if not 0 <= seconds <= SECONDS_MAX:
        raise MalformedRequestError(
            f"{name} must be from 0 to {SECONDS_MAX:.0f} seconds", field=name
        )
    return seconds
