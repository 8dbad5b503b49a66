"""What a command says when a call failed: one line with a reason and what to do. Pure.

An error that came with a reason speaks for itself; the others are gRPC's own, and only a command
knows what they mean to its user.
"""

from collections.abc import Mapping

import grpc

from kvtier.errors import WireError

__all__ = ["TLS_HINT", "spoken"]

TLS_HINT = "where it wants TLS, show a certificate it takes (kvtier --ca --certificate --key)"


def spoken(wire: WireError, without_reason: Mapping[grpc.StatusCode, str]) -> str:
    """`without_reason`: what to say of a status that came without a reason."""
    if wire.reason:
        return f"{wire.reason}: {wire.message}"
    return without_reason.get(wire.code, f"{wire.code.name}: {wire.message}")
