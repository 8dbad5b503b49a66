"""The demo's hands: sends requests, remembers what replies said, asks the services. One thread."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kvtier.cli.channel import open_channel
from kvtier.cli.demo.result import DemoResult, Turn
from kvtier.cli.inference import Reply, ask
from kvtier.cli.processes import LocalCluster
from kvtier.errors import KvtierError
from kvtier.v1 import (
    block_pb2,
    cache_pb2,
    cache_pb2_grpc,
    inference_pb2,
    usage_pb2,
    usage_pb2_grpc,
)

__all__ = ["DemoSession", "DemoStepError"]

SETTLE_SECONDS_MAX = 30.0
COMPLETION_TOKENS = 24


class DemoStepError(KvtierError):
    """A step did not get where it must within its bound."""

    reason = "DEMO_STEP"


@dataclass(slots=True)
class DemoSession:
    """A cluster under demonstration and everything its replies said."""

    cluster: LocalCluster
    result: DemoResult
    say: Callable[[str], None]
    sent: dict[str, inference_pb2.GenerateRequest] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)

    def turn(self, name: str, request: inference_pb2.GenerateRequest) -> Reply:
        """Sends one turn and notes what its reply said."""
        reply = self.send(request)
        tokens = reply.usage.tokens
        tiers = tokens.hit_tokens_by_tier
        turn = Turn(
            name=name,
            tenant=request.tenant_id,
            request_id=reply.usage.request_id,
            prompt_tokens=tokens.prompt_tokens,
            hit_tokens=tokens.hit_tokens,
            hit_tokens_by_tier={"gpu": tiers.gpu, "host": tiers.host, "ssd": tiers.ssd},
            miss_tokens=tokens.miss_tokens,
            completion_tokens=tokens.completion_tokens,
            ttft_seconds=reply.ttft_seconds,
            miss_reason=block_pb2.MissReason.Name(reply.usage.miss_reason)
            .removeprefix("MISS_REASON_")
            .replace("UNSPECIFIED", "NONE"),
        )
        self.result.turns.append(turn)
        self.sent[name] = request
        self.replies[name] = reply
        self.say(describe(turn))
        return reply

    def send(self, request: inference_pb2.GenerateRequest) -> Reply:
        assert self.cluster.worker is not None
        with open_channel(self.cluster.worker.address) as channel:
            return ask(channel, request)

    def cache_stats(self) -> cache_pb2.GetStatsResponse:
        assert self.cluster.cache is not None
        with open_channel(self.cluster.cache.address) as channel:
            stub = cache_pb2_grpc.CacheServiceStub(channel)
            return stub.GetStats(cache_pb2.GetStatsRequest(), timeout=10)

    def ssd_block_count(self) -> int:
        return sum(
            tier.block_count for tier in self.cache_stats().tiers if tier.tier == block_pb2.TIER_SSD
        )

    def wait_until_written(self) -> int:
        """Waits until no block is on its way to the SSD; returns the blocks there."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        seen = -1
        while time.monotonic() < deadline:
            stats = self.cache_stats()
            count = self.ssd_block_count()
            # Offload runs behind the reply: still means nothing pending and no change.
            if stats.pending_write_count == 0 and stats.reservation_count == 0 and count == seen:
                return count
            seen = count
            time.sleep(0.4)
        raise DemoStepError("the cache service still writes blocks after 30 s; see its log")

    def usage_of(self, tenant: str) -> usage_pb2.UsageRow:
        assert self.cluster.billing is not None
        with open_channel(self.cluster.billing.address) as channel:
            stub = usage_pb2_grpc.UsageServiceStub(channel)
            answer = stub.GetUsage(usage_pb2.GetUsageRequest(tenant_id=tenant), timeout=10)
        return answer.rows[0] if answer.rows else usage_pb2.UsageRow()

    def wait_until_billed(self, tenant: str, request_count: int) -> usage_pb2.UsageRow:
        """Waits until the ledger has so many requests of a tenant."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while time.monotonic() < deadline:
            row = self.usage_of(tenant)
            if row.request_count >= request_count:
                return row
            time.sleep(0.2)
        raise DemoStepError(
            f"the ledger has {self.usage_of(tenant).request_count} of {request_count} requests of"
            f" {tenant} after 30 s; see the billing log"
        )

    def invoice_of(self, tenant: str) -> usage_pb2.Invoice:
        assert self.cluster.billing is not None
        with open_channel(self.cluster.billing.address) as channel:
            stub = usage_pb2_grpc.UsageServiceStub(channel)
            request = usage_pb2.GetInvoiceRequest(tenant_id=tenant)
            return stub.GetInvoice(request, timeout=10).invoice

    def ledger_holds(self) -> bool:
        assert self.cluster.billing is not None
        with open_channel(self.cluster.billing.address) as channel:
            stub = usage_pb2_grpc.UsageServiceStub(channel)
            return stub.VerifyLedger(usage_pb2.VerifyLedgerRequest(), timeout=30).verified


def describe(turn: Turn) -> str:
    """One line about a turn."""
    names = {"gpu": "GPU", "ssd": "SSD"}
    tiers = ", ".join(
        f"{n:,} {names.get(tier, tier)}" for tier, n in turn.hit_tokens_by_tier.items() if n
    )
    return (
        f"{turn.prompt_tokens:>6,} prompt = {turn.hit_tokens:,} hit"
        f"{f' ({tiers})' if tiers else ''} + {turn.miss_tokens:,} miss,"
        f" first token after {turn.ttft_seconds * 1000:,.0f} ms"
    )
