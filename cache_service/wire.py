"""The core's values on the wire and back: one small pure function each, with its check.

Invariant: what comes in is refused here when it cannot mean anything; what goes out is whole.
Stateless, any thread.
"""

from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cache_service.chains import Chain
from cache_service.errors import InvalidTransportError
from cache_service.hints import ChainPlace, Hints
from cache_service.owner_runs import NOBODYS, OwnerRuns, within
from cache_service.views import Transport
from kvtier.blocks import MissReason, Tier
from kvtier.keys import HASH_BYTES, BlockHash
from kvtier.scopes import MalformedScopeError, ScopeLevel, ScopePath
from kvtier.serving import MalformedRequestError
from kvtier.v1 import cache_pb2 as pb

__all__ = [
    "bytes_per_second",
    "chain",
    "count",
    "duration",
    "hints",
    "load_timeout",
    "owner",
    "owner_runs",
    "reason",
    "recompute_time",
    "text",
    "tier",
    "timestamp",
    "transport",
]

TEXT_CHARS_MAX = 256
SECONDS_MAX = 3600.0
TTL_SECONDS_MAX = 366 * 24 * 3600


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
    """Raises MalformedRequestError."""
    ttl_seconds: int | None = None
    if request.HasField("ttl"):
        ttl_seconds = request.ttl.seconds
        if request.ttl.nanos or not 1 <= ttl_seconds <= TTL_SECONDS_MAX:
            raise MalformedRequestError(
                f"ttl must be whole seconds from 1 to {TTL_SECONDS_MAX}; unset it for no end",
                field="ttl",
            )
    if isinstance(request, pb.ReserveBlocksRequest):
        ends = tuple(request.unit_end_indexes)
        if len(ends) * HASH_BYTES > len(request.block_hashes):
            raise MalformedRequestError(
                "more unit_end_indexes than blocks; name each at most once",
                field="unit_end_indexes",
            )
        forks = request.common_prefix_ends_unit
        owners = owner_runs(request.owner_runs) if request.owner_runs else NOBODYS
        return Hints(request.one_off, ttl_seconds, unit_ends=ends, marks_forks=forks, owners=owners)
    return Hints(
        request.one_off, ttl_seconds, whole_units=request.whole_units, place=_place(request)
    )


def _place(
    request: pb.AcquirePrefixRequest | pb.AcquireResidentRequest,
) -> ChainPlace | None:
    if not request.HasField("place"):
        return None
    first, parent = request.place.first_index, request.place.parent_hash
    if first < 0 or len(parent) != (HASH_BYTES if first else 0):
        raise MalformedRequestError(
            "a place names how many blocks are before the first, and the last one's hash if any",
            field="place",
        )
    return ChainPlace(first, BlockHash(parent))


def owner_runs(runs: Sequence[pb.OwnerRun]) -> OwnerRuns:
    """Raises MalformedRequestError."""
    if len(runs) > len(ScopeLevel):
        raise MalformedRequestError(
            f"a chain has at most {len(ScopeLevel)} owners, one for each rung", field="owner_runs"
        )
    paths, ends = list[str](), list[int]()
    for run in runs:
        path = owner("owner_runs", run.owner) if run.owner else ""
        if run.block_count < 1 or (paths and not within(path, paths[-1])):
            raise MalformedRequestError(
                "each run has a block at least, and an owner within the one before it",
                field="owner_runs",
            )
        paths.append(path)
        ends.append(run.block_count + (ends[-1] if ends else 0))
    return OwnerRuns(tuple(paths), tuple(ends))


def owner(name: str, value: str) -> str:
    """The path of a scope. Raises MalformedRequestError."""
    try:
        return str(ScopePath.parse(value))
    except MalformedScopeError as error:
        raise MalformedRequestError(f"{name}: {error}", field=name) from None


def count(name: str, value: int, most: int) -> int:
    """Raises MalformedRequestError."""
    if not 0 <= value <= most:
        raise MalformedRequestError(f"{name} must be from 0 to {most}", field=name)
    return value


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
