"""Worker and billing as processes, clients that leave when they like, kill -9 of both: the ledger
has one entry for every request that started, and it says what the client was told."""

import asyncio
import json
import random
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvtier.v1 import inference_pb2 as pb
from kvtier.v1 import inference_pb2_grpc, usage_pb2, usage_pb2_grpc

pytestmark = pytest.mark.slow

CLIENTS = 5
DEVELOPMENT = "security.development=true"


class Service:
    """A service's process, started again at the address it had."""

    def __init__(self, module: str, *settings: str) -> None:
        self._module = module
        self._settings = settings
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        settings = (*self._settings, f"listen={self.address}", "log.level=ERROR", DEVELOPMENT)
        words = [word for setting in settings for word in ("--set", setting)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", self._module, *words, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.address = json.loads(await self._process.stdout.readline())["listen"]

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        self._process.terminate()
        assert await self._process.wait() == 0


@dataclass
class Told:
    """What clients saw: every request that started, and its usage where it came."""

    usage: dict[str, pb.GenerateUsage | None] = field(default_factory=dict)
    enough: bool = False

    async def client(self, worker: Service, chance: random.Random) -> None:
        while not self.enough:
            # A channel of its own: one that saw the worker die waits before it tries again.
            async with grpc.aio.insecure_channel(
                worker.address, options=(("grpc.use_local_subchannel_pool", 1),)
            ) as channel:
                try:
                    await self._ask(inference_pb2_grpc.InferenceServiceStub(channel), chance)
                except (grpc.aio.AioRpcError, asyncio.CancelledError):
                    await asyncio.sleep(0.02)

    async def _ask(self, stub: Any, chance: random.Random) -> None:
        request = pb.GenerateRequest(
            tenant_id="default",
            project_id="search",
            text=chance.choice(["alpha ", "beta "]) * chance.randrange(1, 60),
            max_completion_tokens=chance.randrange(1, 40),
            sample_count=chance.choice([1, 1, 3]),
            sampling=pb.SamplingParameters(temperature=1.0),
            ignore_end_of_sequence=True,
        )
        hasty = chance.random() < 0.2
        leaves_after = chance.choice([1, 4, 1000, 1000])
        call = stub.Generate(request, timeout=chance.uniform(0.005, 0.1) if hasty else 30)
        request_id = ""
        async for response in call:
            if response.WhichOneof("event") == "started":
                request_id = response.started.request_id
                self.usage[request_id] = None
            elif response.WhichOneof("event") == "usage":
                self.usage[request_id] = response.usage
            leaves_after -= 1
            if not leaves_after:
                call.cancel()
                return


def entries(directory: Path) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(directory / "ledger.sqlite")) as connection:
        events = [json.loads(text) for (text,) in connection.execute("SELECT event FROM entries")]
    by_id = {event["request_id"]: event for event in events}
    assert len(by_id) == len(events)
    return by_id


async def test_the_ledger_is_what_clients_were_told_through_kills_of_both(checkpoint, tmp_path):
    billing = Service("billing", f"data_directory={tmp_path / 'billing'}")
    await billing.start()
    worker = Service(
        "worker",
        f"model={checkpoint}",
        f"data_directory={tmp_path / 'worker'}",
        f"billing.address={billing.address}",
        "billing.backoff_seconds_max=0.2",
        "pool.page_bytes=512KiB",
        "pool.block_tokens=16",
        "threads=1",
        "drain_seconds=2",
    )
    await worker.start()
    told = Told()
    chance = random.Random(11)
    clients = [asyncio.create_task(told.client(worker, random.Random(n))) for n in range(CLIENTS)]
    for service in (billing, worker, billing):
        await asyncio.sleep(chance.uniform(0.4, 0.8))
        await service.kill()
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        await service.start()
    await asyncio.sleep(0.5)
    told.enough = True
    await asyncio.gather(*clients)
    await worker.stop()  # delivers what is left
    async with grpc.aio.insecure_channel(billing.address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        verified = await stub.VerifyLedger(usage_pb2.VerifyLedgerRequest())
        (row,) = (await stub.GetUsage(usage_pb2.GetUsageRequest(group_by=["tenant"]))).rows
    await billing.stop()

    ledger = entries(tmp_path / "billing")
    assert (verified.verified, verified.refused_count) == (True, 0)
    assert set(told.usage) <= set(ledger)
    for event in ledger.values():
        assert (event["project_id"], event["user_id"]) == ("search", "")
        tiers = sum(event[f"hit_{tier}"] for tier in ("gpu", "host", "ssd", "shared"))
        assert event["hit"] + event["miss"] == event["prompt"]
        assert tiers == event["hit"]
    replies = {name: usage.tokens for name, usage in told.usage.items() if usage is not None}
    for name, tokens in replies.items():
        event = ledger[name]
        assert (event["prompt"], event["hit"], event["miss"], event["output"]) == (
            tokens.prompt_tokens,
            tokens.hit_tokens,
            tokens.miss_tokens,
            tokens.completion_tokens,
        )
        assert event.get("cache_write", 0) == tokens.cache_write_tokens
    assert any(tokens.cache_write_tokens for tokens in replies.values())
    assert len(replies) > 20
    assert row.request_count == len(ledger)
    assert row.tokens.prompt_tokens == sum(event["prompt"] for event in ledger.values())
    assert row.tokens.hit_tokens == sum(event["hit"] for event in ledger.values())
    lost = [event for event in ledger.values() if event["end_reason"] == "worker_lost"]
    assert not [event for event in lost if event["prompt"] or event["output"]]
