"""What `kvtier cache` says when a call failed: one line with a reason and what to do. Pure."""

import grpc

from kvtier.cli.problems import TLS_HINT, spoken
from kvtier.errors import WireError

__all__ = ["cache_problem", "worker_problem"]

_Code = grpc.StatusCode


def cache_problem(wire: WireError, address: str) -> str:
    """Of a call to the cache service."""
    return spoken(
        wire,
        {
            _Code.UNAVAILABLE: (
                f"CACHE_UNREACHABLE: no cache service answers at {address}; start it (kvtier up, or"
                f" python -m cache_service), name another with --address, or, {TLS_HINT}"
            ),
            _Code.DEADLINE_EXCEEDED: (
                f"DEADLINE: the cache service at {address} did not answer in time"
            ),
            _Code.UNIMPLEMENTED: (
                f"TOO_OLD: the cache service at {address} is of a release without this call"
            ),
        },
    )


def worker_problem(wire: WireError, address: str) -> str:
    """Of a call to the worker."""
    if wire.reason == "TENANT_UNKNOWN":
        return f"{wire.reason}: {wire.message}; choose one with --tenant (kvtier up --tenants)"
    return spoken(
        wire,
        {
            _Code.UNAVAILABLE: (
                f"WORKER_UNREACHABLE: no worker answers at {address}, and only a worker knows what"
                " a prompt's blocks are named; start one (kvtier up), name another with --worker,"
                f" or, {TLS_HINT}"
            ),
            _Code.DEADLINE_EXCEEDED: (
                f"DEADLINE: the worker at {address} did not answer in time; it may be computing"
            ),
            _Code.UNIMPLEMENTED: (
                f"TOO_OLD: the worker at {address} is of a release that describes no prompts"
            ),
        },
    )
