"""What a reply costs, asked of the billing service: it alone knows prices and how to apply them.

Invariant: an amount is the service's own decimal text, or there is none and `problem` says why;
nothing is guessed, and billing being away never fails the command. One call, bounded. Any thread.
"""

from dataclasses import dataclass

import grpc

from kvtier.cli.channel import open_channel
from kvtier.errors import read_error
from kvtier.v1 import inference_pb2, usage_pb2, usage_pb2_grpc

__all__ = ["Cost", "ask_cost"]

CALL_SECONDS_MAX = 3.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Exact decimal text, or nothing but a problem."""

    amount: str = ""
    saved: str = ""
    """What the hit tokens would have cost more as miss tokens."""
    currency: str = ""
    price_book_version: str = ""
    problem: str = ""
    """Empty: the amount is known."""


def ask_cost(address: str, model: str, usage: inference_pb2.GenerateUsage) -> Cost:
    """The cost of a reply as the ledger has it, or will have it."""
    request = usage_pb2.RateUsageRequest(model=model, tokens=usage.tokens)
    if usage.HasField("end_time"):
        request.end_time.CopyFrom(usage.end_time)
    with open_channel(address) as channel:
        try:
            rated = usage_pb2_grpc.UsageServiceStub(channel).RateUsage(
                request, timeout=CALL_SECONDS_MAX
            )
        except grpc.RpcError as error:
            return Cost(problem=_problem(error, address))
    if not rated.currency_code:
        return Cost(problem=f"no version of the price book covers {model}; see kvtier usage prices")
    return Cost(rated.amount, rated.saved_amount, rated.currency_code, rated.price_book_version)


def _problem(error: grpc.RpcError, address: str) -> str:
    wire = read_error(error)
    if wire.reason:
        return f"billing at {address} says {wire.reason}: {wire.message}"
    if wire.code is grpc.StatusCode.UNIMPLEMENTED:
        return f"billing at {address} is of an older version"
    return f"no billing service answers at {address}; name it with --billing HOST:PORT"
