"""How fast a worker computes and loads, from what its answers say of their first tokens.

    TTFT = waiting + loading + computing, each told by the worker

An exponential mean over the last answers; an answer that computed next to nothing teaches nothing.
One writer, the event loop; one object a worker.
"""

from gateway.routing import Rates
from kvtier.v1 import inference_pb2 as pb

__all__ = ["WorkerRates"]

WEIGHT = 0.2
"""Of the newest answer."""

TOKENS_MIN = 32
"""Computed or loaded; fewer say more of a step's fixed costs than of a rate."""


class WorkerRates:
    def __init__(self) -> None:
        self.rates = Rates()

    def learn(self, usage: pb.GenerateUsage) -> None:
        if not usage.HasField("ttft"):
            return
        tiers = usage.tokens.hit_tokens_by_tier
        loading = usage.load_time.ToNanoseconds() / 1e9
        waiting = usage.queue_time.ToNanoseconds() / 1e9
        computing = usage.ttft.ToNanoseconds() / 1e9 - loading - waiting
        rates = self.rates
        self.rates = Rates(
            prefill=_mean(rates.prefill, usage.tokens.miss_tokens, computing),
            # A load of both tiers says nothing of either.
            host=rates.host if tiers.ssd else _mean(rates.host, tiers.host, loading),
            ssd=rates.ssd if tiers.host else _mean(rates.ssd, tiers.ssd, loading),
        )


def _mean(rate: float, tokens: int, seconds: float) -> float:
    if tokens < TOKENS_MIN or seconds <= 0:
        return rate
    return (1 - WEIGHT) * rate + WEIGHT * tokens / seconds
