"""What `kvtier cache` says when a call failed: one line with a reason and what to do. Pure."""

import grpc

from kvtier.errors import WireError

__all__ = ["cache_problem", "worker_problem"]


def cache_problem(wire: WireError, address: str) -> str:
    """Of a call to the cache service."""
    if wire.reason:
        return f"{wire.reason}: {wire.message}"
    if wire.code is grpc.StatusCode.UNAVAILABLE:
        return (
            f"CACHE_UNREACHABLE: no cache service answers at {address}; start it (kvtier up, or"
            " python -m cache_service), name another with --address, or, where it wants TLS, show"
            " a certificate it takes (kvtier --ca --certificate --key)"
        )
    if wire.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"DEADLINE: the cache service at {address} did not answer in time"
    if wire.code is grpc.StatusCode.UNIMPLEMENTED:
        return f"TOO_OLD: the cache service at {address} is of a release without this call"
    return f"{wire.code.name}: {wire.message}"


def worker_problem(wire: WireError, address: str) -> str:
    """Of a call to the worker."""
    if wire.reason == "TENANT_UNKNOWN":
        return f"{wire.reason}: {wire.message}; choose one with --tenant (kvtier up --tenants)"
    if wire.reason:
        return f"{wire.reason}: {wire.message}"
    if wire.code is grpc.StatusCode.UNAVAILABLE:
        return (
            f"WORKER_UNREACHABLE: no worker answers at {address}, and only a worker knows what a"
            " prompt's blocks are named; start one (kvtier up), name another with --worker, or,"
            " where it wants TLS, show a certificate it takes (kvtier --ca --certificate --key)"
        )
    if wire.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"DEADLINE: the worker at {address} did not answer in time; it may be computing"
    if wire.code is grpc.StatusCode.UNIMPLEMENTED:
        return f"TOO_OLD: the worker at {address} is of a release that describes no prompts"
    return f"{wire.code.name}: {wire.message}"
