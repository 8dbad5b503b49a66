"""A real worker, cache service and billing: what was served is what is billed, and a worker that
claims more is found."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from billing.commands import app
from billing.server import RunningBilling, start_billing
from billing.settings import BillingSettings
from kvtier.tls import SecuritySettings
from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import usage_pb2, usage_pb2_grpc

PROMPT = "the lighthouse keeper counts the ships that pass, one line in the log for each of them"


@pytest.fixture
async def billing(tmp_path: Path) -> AsyncIterator[RunningBilling]:
    settings = BillingSettings(
        listen="127.0.0.1:0",
        data_directory=tmp_path / "billing",
        security=SecuritySettings(development=True),
    )
    running = await start_billing(settings)
    yield running
    await running.drain()


async def ask(stub: Any) -> pb.GenerateUsage:
    request = pb.GenerateRequest(tenant_id="acme", text=PROMPT, max_completion_tokens=1)
    found = [r.usage async for r in stub.Generate(request, timeout=60) if r.HasField("usage")]
    (only,) = found
    return only


async def reconcile(billing: RunningBilling, *words: str) -> tuple[int, str]:
    arguments = ["reconcile", "--address", billing.listen, *words]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    return result.exit_code, result.stdout


async def test_a_worker_that_claims_more_hits_than_were_served_is_found_and_named(
    billing: RunningBilling, start_cache: Any, start: Any, tmp_path: Path
) -> None:
    assert json.loads((await reconcile(billing, "--json"))[1])["differences"] == []
    cache = await start_cache(billing={"address": billing.listen}, node="cache-1")
    common = (f"cache.address={cache.listen}", f"billing.address={billing.listen}")
    first, stub = await start(*common, f"data_directory={tmp_path / 'first'}")
    await ask(stub)
    await first.drain()
    secret = tmp_path / "first" / "scope_secret"
    second, stub = await start(
        *common, f"data_directory={tmp_path / 'second'}", f"scope_secret_file={secret}"
    )
    warm = await ask(stub)
    assert warm.tokens.hit_tokens_by_tier.host == 80
    await second.drain()
    await cache.stop()

    status, text = await reconcile(billing, "--json")
    found = json.loads(text)
    assert (status, found["requests"], found["leases"]) == (0, 2, 1)
    assert found["hit_tokens_by_tier"]["host"] == 80
    assert found["differences"] == []

    async with grpc.aio.insecure_channel(billing.listen) as channel:
        usage = usage_pb2_grpc.UsageServiceStub(channel)
        asked = usage_pb2.FindUsageEventsRequest(id=warm.request_id)
        (entry,) = (await usage.FindUsageEvents(asked)).entries
        assert len(entry.event.leases.ids) == 1
        forged = usage_pb2.UsageEvent.FromString(entry.event.SerializeToString())
        forged.request_id = "forged"
        await usage.RecordUsage(usage_pb2.RecordUsageRequest(events=[forged]))

    status, text = await reconcile(billing, "--json", "--tenant", "acme")
    found = json.loads(text)
    assert status == 1
    assert found["requests"] == 3
    kinds = {(each["kind"], each["request_id"]) for each in found["differences"]}
    assert kinds == {("LEASE_OF_OTHER_REQUEST", "forged"), ("HITS_NOT_SERVED", "forged")}
    (hits,) = [each for each in found["differences"] if each["kind"] == "HITS_NOT_SERVED"]
    assert (hits["expected"], hits["found"], hits["explained"]) == (0, 80, False)
    status, text = await reconcile(billing)
    assert status == 1
    assert "HITS_NOT_SERVED" in text
    assert "2 unexplained" in text
