"""The command line's way to the billing service: one call, one answer or one clear line.

Main thread of the command; blocks.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import typer

from kvtier.cli.channel import open_channel
from kvtier.cli.problems import TLS_HINT, spoken
from kvtier.errors import read_error
from kvtier.v1 import budget_pb2_grpc, usage_pb2_grpc

__all__ = ["call_billing", "call_budgets"]

REPLY_BYTES_MAX = 16 * 1024 * 1024

Reply = TypeVar("Reply")


def call_billing(
    address: str,
    call: Callable[[Any, float], Reply],
    timeout_seconds: float = 30.0,
    *,
    stub: Callable[[grpc.Channel], Any] = usage_pb2_grpc.UsageServiceStub,
    command: str = "usage",
) -> Reply:
    """`call(stub, timeout)` on the service at `address`; ends the command with 1 when it fails."""
    options = (("grpc.max_receive_message_length", REPLY_BYTES_MAX),)
    with open_channel(address, options) as channel:
        try:
            return call(stub(channel), timeout_seconds)
        except grpc.RpcError as error:
            typer.echo(f"kvtier {command}: {_explain(error, address)}", err=True)
            raise typer.Exit(1) from None


def call_budgets(address: str, call: Callable[[Any, float], Reply]) -> Reply:
    """The same of the service of budgets."""
    return call_billing(address, call, stub=budget_pb2_grpc.BudgetServiceStub, command="budget")


def _explain(error: grpc.RpcError, address: str) -> str:
    return spoken(
        read_error(error),
        {
            grpc.StatusCode.UNAVAILABLE: (
                f"BILLING_UNREACHABLE: no billing service answers at {address}; start it (kvtier"
                f" up, or python -m billing), name another with --address, or, {TLS_HINT}"
            ),
            grpc.StatusCode.DEADLINE_EXCEEDED: (
                f"DEADLINE: the billing service at {address} did not answer in time"
            ),
        },
    )
